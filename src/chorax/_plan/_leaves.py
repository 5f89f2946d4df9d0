"""The leaves of a result: which value stands where, and which of them are written."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import cast

import jax.tree_util as jtu

from .._text._places import Path, place
from .._text._show import short
from .._tree._paths import first_difference, leaf_paths, same_structure
from .._tree._same import is_same
from ._kind import ArraySpec, Spec, StaticSpec
from ._schedule import Named
from ._select import Calls


@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A leaf of the result, and the name of its value.

    `original` is the index of the target's leaf at the same path, if there is one.
    `has_lanes` is whether it is written and gets a lane axis.
    """

    path: Path
    name: int
    original: int | None
    written: bool
    has_lanes: bool


def place_leaves(model: Named, specs: Sequence[Spec], calls: Calls) -> tuple[Leaf, ...]:
    """The leaves of a model of named values; errors where one can't be as asked for."""
    tree, request = calls.tree, calls.request
    structure, names = model
    paths = tree.leaf_paths
    if not same_structure(structure, tree.structure):
        paths = leaf_paths(structure)
    originals = {path: index for index, path in enumerate(tree.leaf_paths)}
    leaves: list[Leaf] = []
    for path, name in zip(paths, names, strict=True):
        original = originals.get(path)
        written = not same_value(specs, original, name)
        has_lanes = written and request.lanes is not None
        has_lanes = has_lanes and isinstance(specs[name], ArraySpec)
        leaves.append(Leaf(path, name, original, written, has_lanes))
    if calls.excludes is not None:
        leaves = _exclude(leaves, specs, calls)
    if request.where is not None:
        _check_kept(leaves, specs)
        _check_structure(structure, calls)
    return tuple(leaves)


def same_value(specs: Sequence[Spec], one: int | None, other: int | None) -> bool:
    """Whether nobody can tell two values apart, given their names; `None`: there is
    no value."""
    if one == other:
        return True
    if one is None or other is None:
        return False
    old, new = specs[one], specs[other]
    if not (isinstance(old, StaticSpec) and isinstance(new, StaticSpec)):
        return False
    return is_same(old.value, new.value)


def _exclude(leaves: Sequence[Leaf], specs: Sequence[Spec], calls: Calls) -> list[Leaf]:
    """Takes the lane axis from the leaves that `state_to_exclude` keeps."""
    assert calls.excludes is not None
    written = {
        leaf.path: cast(ArraySpec, specs[leaf.name])
        for leaf in leaves
        if leaf.has_lanes
    }
    answers = calls.excludes((path, spec.struct) for path, spec in written.items())
    without = dict.fromkeys(itertools.compress(written, answers))
    for path in without:
        if written[path].has_lanes:
            raise ValueError(
                f"{place(path)} is excluded by `state_to_exclude`, so it is "
                "written once for all lanes, but its value differs from lane to lane: "
                "it depends on a key, a leaf or an argument that has one entry per "
                "lane. Do not exclude it, or make it the same in all lanes (with "
                "`axis_name` a method can take `jax.lax.pmean` over them)."
            )
    return [
        dataclasses.replace(leaf, has_lanes=False) if leaf.path in without else leaf
        for leaf in leaves
    ]


# How an error about `where` begins.
_MASKED = "Under `where`, lanes where it is false keep what they had, but"


def _check_kept(leaves: Sequence[Leaf], specs: Sequence[Spec]) -> None:
    """Raises unless every written leaf has something that other lanes can keep."""
    for leaf in leaves:
        if not leaf.written:
            continue
        new = specs[leaf.name]
        cure = "Call once without `where` first, or let the method keep shape and dtype"
        if leaf.original is None:
            problem = "there was no value before"
        elif not isinstance(new, ArraySpec):
            problem = "what was written is not an array, and is the same for all lanes"
            cure = "Exclude the node, or write an array"
        elif not leaf.has_lanes:
            problem = "`state_to_exclude` makes it the same for all lanes"
            cure = "Do not exclude it, or call without `where`"
        else:
            problem = _unlike(specs[leaf.original], new)
        if problem:
            raise ValueError(
                f"{_MASKED} {place(leaf.path)} has nothing to keep: {problem}. {cure}."
            )


def _check_structure(structure: jtu.PyTreeDef, calls: Calls) -> None:
    found = first_difference(calls.tree.structure, structure)
    if found is not None:
        path, old, new = found
        raise ValueError(
            f"{_MASKED} the call changed the structure at {place(path)}, which is the "
            f"same for all lanes: it was {old}, it is {new}. Call without `where`."
        )


def _unlike(old: Spec, new: ArraySpec) -> str | None:
    if not isinstance(old, ArraySpec):
        return f"there was no array before, but {short(old.value)}"
    before, after = old.struct, new.struct
    if (before.shape, before.dtype) == (after.shape, after.dtype):
        return None
    return (
        f"a lane had {before.dtype}{list(before.shape)} there, and "
        f"{after.dtype}{list(after.shape)} was written"
    )
