"""Packages stand on floors, and each imports only from floors below its own."""

import ast
from pathlib import Path

import pytest

import chorax


ROOT = Path(chorax.__file__).parent
# From the ground up. What stands on one floor does not import from beside it either.
FLOORS = [
    ["_text"],
    ["_tree"],
    ["filters"],
    ["_lanes"],
    ["_deltas", "_annotations", "_layers", "_ensemble"],
    ["_plan"],
    ["_run"],
    ["_calls"],
    ["lanes"],
    ["__init__"],
]
FLOOR_OF = {package: floor for floor, row in enumerate(FLOORS) for package in row}
# The package of each module that is not yet in the folder of one.
PACKAGE_OF = {
    module: package
    for package, modules in {
        "_text": "_places _show _table _typed _warn",
        "_tree": "_draft _holder _keys _memo _nodes _paths _replace _same",
        "_lanes": (
            "_arguments _axes _lane_axes _lane_checks _picking _spread _stacking"
        ),
        "_deltas": "_apply _delta",
        "_annotations": "_fits _hints _names",
        "_layers": "_redraw _reset",
        "_plan": (
            "_check_annotations _computation _constants _doubts _excludes _finish "
            "_kept _kind _lane _levels _methods _order _over_lanes _recipe _request "
            "_schedule _select _trace _work"
        ),
        "_run": "_blocks _compile _execute _layout _plain",
        "_calls": "_assign _call _checks _collective _explain _explanation _states",
    }.items()
    for module in modules.split()
}
# Imports that still climb: this list only gets shorter.
CLIMBS: set[tuple[str, str]] = set()


def package_of(name: str) -> str:
    return PACKAGE_OF.get(name, name)


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


def climbs() -> set[tuple[str, str]]:
    rows: set[tuple[str, str]] = set()
    for file in ROOT.rglob("*.py"):
        name = file.relative_to(ROOT).parts[0].removesuffix(".py")
        for other in imports_of(file):
            package, source = package_of(name), package_of(other)
            is_above = FLOOR_OF[source] >= FLOOR_OF[package]
            if is_above and source != package:
                rows.add((name, other))
    return rows


def test_every_module_has_a_floor():
    names = {file.relative_to(ROOT).parts[0] for file in ROOT.rglob("*.py")}
    for name in names:
        assert package_of(name.removesuffix(".py")) in FLOOR_OF, name


def test_imports_go_downward():
    new = climbs() - CLIMBS
    assert not new, "These imports climb: " + ", ".join(
        f"{name} from {other}" for name, other in sorted(new)
    )


def test_exceptions_are_needed():
    assert climbs() >= CLIMBS


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
