"""What comes of a plan: the leaves of the new model, and what to say of them."""

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import equinox as eqx
import jax.tree_util as jtu

from .._deltas._delta import make_delta
from .._lanes._axes import Axes
from .._text._places import Path, place
from .._text._show import short
from .._tree._nodes import Walked
from .._tree._paths import first_difference, leaf_paths, same_structure
from .._tree._same import is_same as is_unchanged
from ._excludes import Excludes
from ._kind import ArraySpec, StaticSpec
from ._planner import Plan
from ._request import Request


@dataclasses.dataclass(frozen=True, eq=False)
class Placed:
    """A leaf of the result: which value stands there.

    `original` is the index of the leaf of the target at the same path, if there was
    one. `has_lanes` is whether a written leaf gets a lane axis.
    """

    path: Path
    name: int
    original: int | None
    written: bool
    has_lanes: bool


def place_leaves(
    plan: Plan, walked: Walked, request: Request, excludes: Excludes | None
) -> tuple[Placed, ...]:
    """Says of each leaf of the result where it comes from; errors where it can't be."""
    paths = walked.leaf_paths
    if not same_structure(plan.structure, walked.structure):
        paths = leaf_paths(plan.structure)
    originals = {path: index for index, path in enumerate(walked.leaf_paths)}
    placed: list[Placed] = []
    for path, name in zip(paths, plan.names, strict=True):
        original = originals.get(path)
        written = original is None or not is_same(plan, original, name)
        has_lanes = written and request.lanes is not None
        has_lanes = has_lanes and isinstance(plan.specs[name], ArraySpec)
        placed.append(Placed(path, name, original, written, has_lanes))
    if excludes is not None:
        placed = _exclude(placed, plan, excludes)
    if request.where is not None:
        _check_kept(placed, plan, walked)
    return tuple(placed)


def is_same(plan: Plan, original: int, name: int) -> bool:
    """Whether nobody can tell two values apart."""
    if original == name:
        return True
    old, new = plan.specs[original], plan.specs[name]
    if not (isinstance(old, StaticSpec) and isinstance(new, StaticSpec)):
        return False
    return is_unchanged(old.value, new.value)


def _exclude(placed: list[Placed], plan: Plan, excludes: Excludes) -> list[Placed]:
    written = {
        leaf.path: cast(ArraySpec, plan.specs[leaf.name])
        for leaf in placed
        if leaf.has_lanes
    }
    answers = excludes((path, spec.struct) for path, spec in written.items())
    without = dict.fromkeys(itertools.compress(written, answers))
    for path in without:
        if written[path].has_lanes:
            raise ValueError(
                f"{place(path)} is excluded by `state_to_exclude`, so it is "
                "written once for all lanes, but its value differs from lane to lane: "
                "it depends on a key, a leaf or an argument that has one entry a lane. "
                "Do not exclude it, or make it the same in all lanes (with `axis_name` "
                "a method can take `jax.lax.pmean` over them)."
            )
    return [
        dataclasses.replace(leaf, has_lanes=False) if leaf.path in without else leaf
        for leaf in placed
    ]


def _check_kept(placed: Sequence[Placed], plan: Plan, walked: Walked) -> None:
    """Raises unless every written leaf has something that other lanes can keep."""
    reason = "Under `where`, lanes where it is false keep what they had, but"
    for leaf in placed:
        if not leaf.written:
            continue
        new = plan.specs[leaf.name]
        cure = "Call once without `where` first, or let the method keep shape and dtype"
        if leaf.original is None:
            problem = "there was no value before"
        elif not isinstance(new, ArraySpec):
            problem = "what was written is no array, and is the same for all lanes"
            cure = "Exclude the node, or write an array"
        elif not leaf.has_lanes:
            problem = "`state_to_exclude` makes it the same for all lanes"
            cure = "Do not exclude it, or call without `where`"
        else:
            problem = _unlike(plan.specs[leaf.original], new)
        if problem:
            raise ValueError(
                f"{reason} {place(leaf.path)} has nothing to keep: {problem}. {cure}."
            )
    found = first_difference(walked.structure, plan.structure)
    if found is not None:
        path, old, new = found
        raise ValueError(
            f"{reason} the call changed the structure at {place(path)}, which is the "
            f"same for all lanes: it was {old}, it is {new}. Call without `where`."
        )


def _unlike(old: Any, new: ArraySpec) -> str | None:
    if not isinstance(old, ArraySpec):
        return f"there was no array before, but {short(old.value)}"
    before, after = old.struct, new.struct
    if (before.shape, before.dtype) == (after.shape, after.dtype):
        return None
    return (
        f"a lane had {before.dtype}{list(before.shape)} there, and "
        f"{after.dtype}{list(after.shape)} was written"
    )


@dataclasses.dataclass(frozen=True)
class Made:
    """An array of the results: a value, with lanes or without them, and what lanes keep
    of it under a mask."""

    name: int
    has_lanes: bool
    kept: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Sources:
    """Where each leaf of the results is among the target's leaves, `constants` and the
    arrays that are `made`, one after the other; and the same for each `aux`."""

    made: tuple[Made, ...]
    constants: tuple[Any, ...]
    leaves: tuple[int, ...]
    aux: tuple[tuple[int, ...], ...]


def find_sources(
    plan: Plan, placed: Sequence[Placed], walked: Walked, request: Request
) -> Sources:
    """Says what is to be made, and where it goes."""
    count = len(walked.leaves)
    made: dict[Made, int] = {}
    constants: list[Any] = []

    def source(name: int, has_lanes: bool, kept: int | None) -> tuple[bool, int]:
        spec = plan.specs[name]
        if isinstance(spec, ArraySpec):
            return True, made.setdefault(Made(name, has_lanes, kept), len(made))
        if name < count:
            return False, name
        constants.append(spec.value)
        return False, count + len(constants) - 1

    def of_leaf(leaf: Placed) -> tuple[bool, int]:
        if not leaf.written and leaf.original is not None:
            return False, leaf.original
        kept = None if request.where is None else leaf.original
        return source(leaf.name, leaf.has_lanes, kept)

    has_lanes = request.lanes is not None
    leaves = list(map(of_leaf, placed))
    aux = [[source(name, has_lanes, None) for name in each.names] for each in plan.aux]
    start = count + len(constants)

    def index(rows: Sequence[tuple[bool, int]]) -> tuple[int, ...]:
        return tuple(start + i if is_made else i for is_made, i in rows)

    return Sources(tuple(made), tuple(constants), index(leaves), tuple(map(index, aux)))


def describe(
    plan: Plan, placed: Sequence[Placed], axes: Axes, walked: Walked, request: Request
) -> jtu.PyTreeDef:
    """The structure of a call's delta, whose leaves are the written values."""
    own = frozenset(() if request.state_tag is None else (request.state_tag,))
    delta = make_delta(
        walked.structure,
        plan.structure,
        [object() if leaf.written else None for leaf in placed],
        [leaf.written for leaf in placed],
        [_axis(leaf, axes) for leaf in placed],
        [own if leaf.written else frozenset() for leaf in placed],
        request.size,
        [None if leaf.original is None else axes[leaf.original] for leaf in placed],
    )
    return jtu.tree_structure(delta)


def _axis(leaf: Placed, axes: Axes) -> int | None:
    if leaf.written:
        return 0 if leaf.has_lanes else None
    return None if leaf.original is None else axes[leaf.original]


def written_paths(
    plan: Plan, placed: Sequence[Placed], walked: Walked
) -> tuple[Path, ...]:
    """What was written, leaves that are gone among it."""
    written = [leaf.path for leaf in placed if leaf.written]
    remaining = {leaf.path for leaf in placed}
    return (*written, *(path for path in walked.leaf_paths if path not in remaining))


def writing_warnings(
    written: Sequence[Path], walked: Walked, label: str, calls: int, is_use: bool
) -> Iterator[str]:
    """What to warn of after a call: nothing written, or something shared written.

    `is_use` is whether it was of use in any case: it asked for `aux`, or changed the
    structure.
    """
    if not calls:
        yield (
            f"`{label}` wrote nothing at all: it was called on no node, for each is "
            "excluded or has no such method. `chorax.explain` tells which."
        )
    elif not written and not is_use:
        yield (
            f"`{label}` wrote nothing at all: no called node returned a changed leaf. "
            "Methods must return the updated node, as `chorax.replace(self, ...)`."
        )
    told: set[Path] = set()
    above: set[Path] | None = None
    for one, other in _shared(walked):
        if above is None:
            above = {path[:i] for path in written for i in range(len(path) + 1)}
        if one not in told and (one in above or other in above):
            told.add(one)
            yield (
                f"The same object stands at {place(one)} and at {place(other)}, and "
                "was written. PyTrees have no sharing: from here on the two part ways. "
                "To keep them tied, use `eqx.nn.Shared`."
            )


def _shared(walked: Walked) -> Iterator[tuple[Path, Path]]:
    """Pairs of paths of one object, the first and each further one: modules, and arrays
    outside of those modules."""
    firsts: dict[Path, Path] = {}
    items = (*walked.modules, *walked.leaves)
    if len(set(map(id, items))) == len(items):
        return
    arrays = [
        (path, leaf)
        for path, leaf in zip(walked.leaf_paths, walked.leaves, strict=True)
        if eqx.is_array(leaf)
    ]
    # Parents come first, so what is inside of a pair is met after it.
    first: dict[int, Path] = {}
    modules = zip(walked.survey.module_paths, walked.modules, strict=True)
    for path, item in (*modules, *arrays):
        other = first.setdefault(id(item), path)
        if other is path:
            continue
        around = (path[:i] for i in range(len(path)))
        inside = [firsts[each] for each in around if each in firsts]
        if not any(other[: len(each)] == each for each in inside):
            firsts[path] = other
            yield other, path
