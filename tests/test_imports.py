"""Imports point down the floors of the house, foreign libraries live where they belong, and `import convexbn` stays light."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from itertools import takewhile
from pathlib import Path

import pytest

import convexbn

ROOT = Path(convexbn.__file__).parent
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix("__init__").rstrip("."): path for path in ROOT.rglob("*.py")}


def part(module: str) -> str:
    """The file or folder of a module right below convexbn."""
    return module.split(".")[0]


PARTS = {part(name) for name in FILES} - {""}


def floors() -> Iterator[list[str]]:
    """The names of each line of the picture in the document on architecture, the highest floor first; [] between house and annexes."""
    picture = re.search(r"^```\n(.*?)^```", (ROOT.parent / "docs/architecture.md").read_text(), re.MULTILINE | re.DOTALL)
    assert picture
    for line in picture[1].splitlines():
        yield list(takewhile(PARTS.__contains__, (word.rstrip("/") for word in line.split())))


*HOUSE, _, TRAINING, DATASETS = floors()
FLOOR = {name: -number for number, names in enumerate(HOUSE) for name in names} | {"": 1}  # convexbn itself is above all
APART = {*TRAINING, *DATASETS}  # imported by none of the others
FLOOR |= dict.fromkeys(APART, FLOOR["solvers"])
HOMES = {
    "cvxpy": {"post_bn.conic", "solvers.conic"},
    "matplotlib": {"path"},
    "sklearn": {"estimators"},
    "torch": {"devices", "export", "features", "gated", "pricing.products", "shards", "solvers", "training"},
}
EVERYWHERE = {*sys.stdlib_module_names, "numpy", "scipy", "rich", "threadpoolctl"}
HEAVY = ["torch", "cvxpy", "sklearn", "scipy.optimize", "rich", "matplotlib", "pandas"]


def imports(tree: ast.AST) -> Iterator[str]:
    """The modules that are imported anywhere below, also inside of functions, but not for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            yield from (f"convexbn.{alias.name}" for alias in node.names) if node.module == "convexbn" else [str(node.module)]
        elif not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield from imports(node)


INSIDE = {
    name: {m.removeprefix("convexbn.") for m in imports(ast.parse(path.read_text())) if part(m) == "convexbn"}
    for name, path in FILES.items()
}
OUTSIDE = {name: {m for m in imports(ast.parse(path.read_text())) if part(m) != "convexbn"} for name, path in FILES.items()}


def test_every_part_has_one_floor() -> None:
    assert sorted([*FLOOR]) == sorted([*PARTS, ""])
    assert sum(map(len, HOUSE)) == len(PARTS - APART)


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_point_down(module: str) -> None:
    for target in INSIDE[module]:
        assert part(target) == part(module) or FLOOR[part(target)] < FLOOR[part(module)], f"{module} imports {target}"
        assert part(target) == part(module) or part(target) not in APART, f"{module} imports {target}"


def test_imports_form_no_circle() -> None:
    assert set(TopologicalSorter(INSIDE).static_order()) == set(FILES)


@pytest.mark.parametrize("module", sorted(FILES))
def test_foreign_libraries_stay_where_they_belong(module: str) -> None:
    for library in {part(target) for target in OUTSIDE[module]} - EVERYWHERE:
        assert {module, part(module)} & HOMES[library], f"{module} imports {library}"


@pytest.mark.parametrize("module", sorted(name for name in FILES if part(name) != "training" and name != "gated.module"))
def test_torch_is_imported_inside_of_functions_only(module: str) -> None:
    statements = ast.parse(FILES[module].read_text()).body
    top = [target for node in statements if isinstance(node, ast.Import | ast.ImportFrom) for target in imports(ast.Module([node], []))]
    assert "torch" not in map(part, top)


def test_importing_the_package_imports_nothing_heavy() -> None:
    script = f"import sys, convexbn; print([name for name in {HEAVY} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True).stdout == "[]\n"
