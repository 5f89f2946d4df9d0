"""Packages stand on floors, and each imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import chorax


ROOT = Path(chorax.__file__).parent
# From the ground up. What stands on one floor does not import from beside it either.
FLOORS = [
    ["_text", "_attributes"],
    ["_tree"],
    ["_filters"],
    ["filters"],
    ["_lanes"],
    ["_deltas", "_annotations", "_layers", "_ensemble"],
    ["_groups"],
    ["_plan"],
    ["_run"],
    ["_calls"],
    ["lanes"],
    ["__init__"],
]
FLOOR_OF = {package: floor for floor, row in enumerate(FLOORS) for package in row}


def imports_of(file: Path) -> set[str]:
    """The modules or packages right below `chorax` that a file imports from."""
    found: set[str] = set()
    # The package that a file of it means by one dot.
    here = ["chorax", *file.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(file.read_text())):
        names: list[list[str]] = []
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            base = [*base, *(node.module.split(".") if node.module else [])]
            names = [[*base, alias.name] for alias in node.names]
        found.update(name[1] for name in names if name[0] == "chorax" and name[1:])
    return found


def own_package(file: Path) -> str:
    return file.relative_to(ROOT).parts[0].removesuffix(".py")


def test_every_module_has_a_floor():
    assert {own_package(file) for file in ROOT.rglob("*.py")} == set(FLOOR_OF)


def test_imports_go_downward():
    climbs = [
        f"{file.relative_to(ROOT)} from {other}"
        for file in ROOT.rglob("*.py")
        for other in sorted(imports_of(file) - {own_package(file)})
        if FLOOR_OF[other] >= FLOOR_OF[own_package(file)]
    ]
    assert not climbs, "These imports climb: " + ", ".join(climbs)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("from ._a import x", {"_a"}),
        ("from . import _a, _b as c", {"_a", "_b"}),
        ("from chorax._a._b import x", {"_a"}),
        ("import chorax._a, os", {"_a"}),
        ("if TYPE_CHECKING:\n    from ._a import x", {"_a"}),
        ("def f():\n    from ._a import x", {"_a"}),
        ("import jax", set()),
    ],
)
def test_imports_are_read_in_every_form(text, expected, tmp_path, monkeypatch):
    monkeypatch.setattr("test_imports.ROOT", tmp_path)
    (tmp_path / "_own.py").write_text(text)
    assert imports_of(tmp_path / "_own.py") == expected
    (tmp_path / "_p").mkdir()
    inner = text.replace("from .", "from ..")
    (tmp_path / "_p" / "_own.py").write_text(inner)
    assert imports_of(tmp_path / "_p" / "_own.py") == expected
