"""The documents: their code runs and prints what they say, their names and links lead somewhere.

`python tests/test_docs.py` writes what the code prints today into the documents: read the change before you keep it.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import pkgutil
import re
import tempfile
from pathlib import Path

import pytest

import convexbn
import convexbn.datasets
import convexbn.training

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", *ROOT.glob("docs/*.md"), ROOT / "data/README.md", ROOT / "examples/README.md"])
# Code, and the output that may stand right below it.
BLOCK = re.compile(r"```python\n(?P<code>.*?)```(?:\n\n```text\n(?P<output>.*?)```)?", re.DOTALL)
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?:e[+-]?\d+)?(?!\w)")
# Numbers on lines with these words belong to the machine.
OF_THE_MACHINE = ("time", "neurons", "  bound  ")  # a proof goes as far as its seconds reach

with_code = pytest.mark.parametrize("document", [path for path in DOCUMENTS if BLOCK.search(path.read_text())], ids=lambda path: path.name)
every_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))


def outputs(text: str) -> list[str]:
    """What each block of code prints; the blocks of a document share their names, in a folder of their own."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed = []
    home = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            for block in BLOCK.finditer(text):
                stream = io.StringIO()
                with contextlib.redirect_stdout(stream):
                    exec(compile(block["code"], "document", "exec"), names)
                printed.append(stream.getvalue())
        finally:
            os.chdir(home)
    return printed


def assert_same(printed: str, written: str) -> None:
    """Words are equal; numbers agree to 5 % or to 0.02, as other machines round differently."""
    assert NUMBER.sub("#", printed) == NUMBER.sub("#", written)
    for one, other in zip(printed.splitlines(), written.splitlines(), strict=True):
        if not any(word in one for word in OF_THE_MACHINE):
            for a, b in zip(NUMBER.findall(one), NUMBER.findall(other), strict=True):
                assert math.isclose(float(a), float(b), rel_tol=0.05, abs_tol=0.02), f"{one!r} is not {other!r}"


@with_code
def test_the_code_runs_and_prints_what_stands_below_it(document):
    text = document.read_text()
    for block, printed in zip(BLOCK.finditer(text), outputs(text), strict=True):
        assert_same(printed, block["output"] or "")


@every_document
def test_links_lead_to_files(document):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text()):
        assert target.startswith("https://") or (document.parent / target).exists(), target


@every_document
def test_named_files_exist(document):
    for name in re.findall(r"`((?:docs|tests|examples|convexbn|data)/[\w/.-]+\.\w+)`", document.read_text()):
        assert (ROOT / name).is_file(), name


@every_document
def test_named_objects_exist(document):
    for name in re.findall(r"`(convexbn\.[\w.]+)`", document.read_text()):
        assert pkgutil.resolve_name(name) is not None, name


def test_the_list_of_public_names_is_complete():
    rows = re.findall(r"^\| `([\w.]+)` \| .+ \|$", (ROOT / "docs/api.md").read_text(), re.MULTILINE)
    assert len(rows) == len(set(rows))
    modules = (convexbn.training, convexbn.datasets)
    inside = {f"{module.__name__.removeprefix('convexbn.')}.{name}" for module in modules for name in module.__all__}
    assert set(rows) == {*convexbn.__all__, *inside}


def write(document: Path) -> None:
    """Replace the printed outputs of a document."""
    text = document.read_text()
    fresh = iter(outputs(text))

    def replace(block: re.Match[str]) -> str:
        printed, code = next(fresh), f"```python\n{block['code']}```"
        return code if block["output"] is None else f"{code}\n\n```text\n{printed}```"

    document.write_text(BLOCK.sub(replace, text))


if __name__ == "__main__":
    for path in DOCUMENTS:
        write(path)
