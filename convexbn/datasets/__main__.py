"""The command `python -m convexbn.datasets NAME FOLDER`: download an official data set, checked by its md5 sums."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from convexbn.datasets.official import OFFICIAL, download
from convexbn.progress import console
from convexbn.validation import ConvexBNError


def main(arguments: Sequence[str] | None = None) -> int:
    """Download what the command line names, and print where it is; the exit status is 1 where that failed."""
    parser = argparse.ArgumentParser(prog="python -m convexbn.datasets", description="Download the official files of a data set.")
    parser.add_argument("name", choices=sorted(OFFICIAL))
    parser.add_argument("folder", help="where the files go; it is made where it is missing")
    options = parser.parse_args(arguments)
    try:
        for path in download(options.name, options.folder):
            print(path)
    except ConvexBNError as error:
        console().print(str(error), style="red", markup=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
