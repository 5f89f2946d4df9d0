"""What a call returns: the new model, its delta and `aux`, put together from leaves.

Where each leaf comes from is a part of the plan; nothing is computed here.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import jax.tree_util as jtu

from .._deltas._delta import LeafRecord, make_delta, StateDelta
from .._text._places import dotted, Path
from ._kind import ArraySpec
from ._leaves import Leaf
from ._planner import Plan
from ._schedule import Named
from ._select import Calls


@dataclasses.dataclass(frozen=True)
class NewArray:
    """An array of the results: a value, with lanes or without them, and the value that
    lanes keep under a mask."""

    name: int
    has_lanes: bool
    kept: int | None


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """Where the leaves of the results come from.

    The leaves of `model`, and of `aux` by dotted path, are indices into a pool: the
    target's leaves, then `constants`, then the new `arrays`. `written` is
    whether each leaf of the model is written; those leaves are the `delta`, of which
    this is the structure. `paths` are all paths that were written, those of leaves that
    are gone included.
    """

    arrays: tuple[NewArray, ...]
    constants: tuple[Any, ...]
    model: Named
    aux: Mapping[str, Named]
    written: tuple[bool, ...]
    delta: jtu.PyTreeDef
    paths: tuple[Path, ...]


def plan_results(plan: Plan, calls: Calls) -> Results:
    """Where the leaves of a planned call's results come from."""
    tree, request = calls.tree, calls.request
    count = len(tree.leaves)
    arrays: dict[NewArray, int] = {}
    constants: list[Any] = []

    def source(name: int, has_lanes: bool, kept: int | None) -> tuple[bool, int]:
        spec = plan.specs[name]
        if isinstance(spec, ArraySpec):
            return True, arrays.setdefault(NewArray(name, has_lanes, kept), len(arrays))
        if name < count:
            return False, name
        constants.append(spec.value)
        return False, count + len(constants) - 1

    def of_leaf(leaf: Leaf) -> tuple[bool, int]:
        if not leaf.written and leaf.original is not None:
            return False, leaf.original
        kept = None if request.where is None else leaf.original
        return source(leaf.name, leaf.has_lanes, kept)

    has_lanes = request.lanes is not None
    leaves = list(map(of_leaf, plan.leaves))
    aux = {
        dotted(path): (structure, [source(name, has_lanes, None) for name in names])
        for path, (structure, names) in plan.aux.items()
    }

    def named(structure: jtu.PyTreeDef, sources: Sequence[tuple[bool, int]]) -> Named:
        start = count + len(constants)
        return structure, tuple(start + i if is_new else i for is_new, i in sources)

    remaining = {leaf.path for leaf in plan.leaves}
    written = [leaf.path for leaf in plan.leaves if leaf.written]
    return Results(
        tuple(arrays),
        tuple(constants),
        named(plan.structure, leaves),
        {path: named(*row) for path, row in aux.items()},
        tuple(leaf.written for leaf in plan.leaves),
        _describe(plan, calls),
        (*written, *(path for path in tree.leaf_paths if path not in remaining)),
    )


def put_together(
    results: Results, pool: Sequence[Any]
) -> tuple[Any, StateDelta[Any], dict[str, Any]]:
    """The new model, the delta, and each called node's `aux`, from the pool."""
    structure, sources = results.model
    leaves = [pool[i] for i in sources]
    model = jtu.tree_unflatten(structure, leaves)
    written = itertools.compress(leaves, results.written)
    delta = jtu.tree_unflatten(results.delta, written)
    aux = {
        path: jtu.tree_unflatten(below, [pool[i] for i in rows])
        for path, (below, rows) in results.aux.items()
    }
    return model, delta, aux


def _describe(plan: Plan, calls: Calls) -> jtu.PyTreeDef:
    """The structure of a call's delta, whose leaves are the written values."""
    tag, size = calls.request.state_tag, calls.request.size
    own = frozenset(() if tag is None else (tag,))

    def record(leaf: Leaf) -> LeafRecord:
        before = None if leaf.original is None else calls.axes[leaf.original]
        if not leaf.written:
            return LeafRecord(axis=before, axis_before=before)
        return LeafRecord(True, 0 if leaf.has_lanes else None, own, before)

    rows = [(object(), record(leaf)) for leaf in plan.leaves]
    delta = make_delta(calls.tree.structure, plan.structure, rows, size)
    return jtu.tree_structure(delta)
