"""The official files: where they are, the md5 sums by which they are known, and their download."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from convexbn.datasets.images import as_path, check_choice, readable, reason
from convexbn.progress import console
from convexbn.validation import ConvexBNError, InputError

CHUNK = 1 << 18
SECONDS = 60.0  # without a byte, until a download is given up


class DownloadError(ConvexBNError):
    """A file couldn't be fetched; the message says why and what to do."""


@dataclass(frozen=True)
class OfficialFile:
    """Where a file is, and its md5 sum in hexadecimal digits."""

    url: str
    md5: str

    @property
    def name(self) -> str:
        """Its name without the place."""
        return self.url.rpartition("/")[2]


CIFAR = "https://www.cs.toronto.edu/~kriz/"
MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"  # PyTorch's copy; the authors' own site refuses most requests
FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"

OFFICIAL: dict[str, tuple[OfficialFile, ...]] = {
    "cifar10": (OfficialFile(f"{CIFAR}cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),),
    "cifar100": (OfficialFile(f"{CIFAR}cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),),
    "mnist": (
        OfficialFile(f"{MNIST}train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873"),
        OfficialFile(f"{MNIST}train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432"),
        OfficialFile(f"{MNIST}t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3"),
        OfficialFile(f"{MNIST}t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c"),
    ),
    "fashion-mnist": (
        OfficialFile(f"{FASHION}train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
        OfficialFile(f"{FASHION}train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe"),
        OfficialFile(f"{FASHION}t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79"),
        OfficialFile(f"{FASHION}t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310"),
    ),
}


def md5_of(stream: BufferedReader) -> str:
    """The md5 sum of the rest of a stream, in hexadecimal digits. It tells a damaged file from a whole one, not friend from foe."""
    return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def download(name: str, folder: str | os.PathLike[str]) -> list[Path]:
    """Fetch the official files of "cifar10", "cifar100", "mnist" or "fashion-mnist" into a folder, and return their paths.

    A file gets its name once its md5 sum is right; one that is there already, with the right sum, is not fetched again.

    Raises
    ------
    InputError
        For an unknown name, and for a folder that can't be made or holds another file of that name.
    DownloadError
        Without a connection, on an error of the server, and for a wrong md5 sum.
    """
    files, place = OFFICIAL[check_choice(name, "name", list(OFFICIAL))], as_path(folder, "folder")
    try:
        place.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise InputError(f"folder = {str(folder)!r} can't be made ({error}): pass a folder that can be written to") from error
    return [place / file.name if _is_there(file, place / file.name) else _fetch(file, place / file.name) for file in files]


def _is_there(file: OfficialFile, target: Path) -> bool:
    if not target.exists():
        return False
    if target.is_file():
        with readable(target), open(target, "rb") as stream:
            if md5_of(stream) == file.md5:
                return True
    raise InputError(f"folder: {target} is there with another md5 sum than the official {file.md5}: remove it, or pass another folder")


def _fetch(file: OfficialFile, target: Path) -> Path:
    """Download beside the target, compare, rename: a target that exists is whole."""
    from http.client import HTTPException

    partial = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        _copy(file, partial)
        with open(partial, "rb") as stream:
            md5 = md5_of(stream)
        if md5 != file.md5:
            raise DownloadError(f"{file.url} came with the md5 sum {md5}, not the official {file.md5}, and was discarded: try again later")
        partial.replace(target)
    except (OSError, HTTPException) as error:
        raise DownloadError(
            f"{file.url} couldn't be fetched ({reason(error)}): check the connection, the proxy settings and the space "
            f"on the disk, or fetch it by other means and put it into {target.parent}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return target


def _copy(file: OfficialFile, target: Path) -> None:
    """Write what the server sends, with a bar on the console."""
    from urllib.request import urlopen

    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    with urlopen(file.url, timeout=SECONDS) as source, open(target, "wb") as copy, Progress(*columns, console=console()) as progress:
        length = source.headers.get("Content-Length")
        task = progress.add_task(file.name, total=int(length) if length else None)
        while chunk := source.read(CHUNK):
            copy.write(chunk)
            progress.advance(task, len(chunk))
