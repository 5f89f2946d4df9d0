"""Ensembles inside a model: the further lanes that calls on their nodes run over."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from .._ensemble import Ensemble
from .._text._places import Path, place
from .._tree._draft import Ref, Slot
from .._tree._nodes import Node
from .._tree._paths import leaf_paths
from .._tree._replace import replace
from ._kind import (
    ArraySpec,
    Call,
    innermost,
    Kept,
    Kind,
    Level,
    New,
    Origin,
    Outcome,
    Spec,
    StaticSpec,
)
from ._lane import call_once


# An ensemble: its path, its place, and the lane axes of its leaves by path.
_Row: TypeAlias = tuple[Path, Slot, Mapping[Path, int]]


def check_counts(draft: Slot, nodes: Sequence[Node], specs: Sequence[Spec]) -> None:
    """Raises for an ensemble whose leaves disagree on its number of lanes."""
    around = [node.ensembles for node in nodes]
    for paths in dict.fromkeys(p[: i + 1] for p in around for i in range(len(p))):
        rows = _rows(draft, paths)
        counts = {count: path for path, count in _counts(rows, specs)}
        if len(counts) > 1:
            one, *_, other = sorted(counts)
            raise ValueError(
                f"The leaves of the ensemble at {place(paths[-1])} disagree on its "
                f"lanes: {place(counts[one])} has {one} along its lane axis, and "
                f"{place(counts[other])} has {other}."
            )


def levels_of(
    draft: Slot, node: Node, structure: jtu.PyTreeDef, specs: Sequence[Spec]
) -> tuple[Level, ...]:
    """The lanes of the ensembles around a node of this structure, the outermost first;
    `specs` are those of all values."""
    if not node.ensembles:
        return ()
    below = leaf_paths(structure)
    levels: list[Level] = []
    rows = _rows(draft, node.ensembles)
    for index, (path, slot, known) in enumerate(rows):
        within = _within(node.path, path)
        axes = tuple(known.get((*within, *rest)) for rest in below)
        counts = (count for _, count in _counts(rows[: index + 1], specs))
        levels.append(Level(next(counts, int(slot.value.size_when_made)), axes))
    return tuple(levels)


def _rows(draft: Slot, paths: Sequence[Path]) -> list[_Row]:
    places = [(path, *draft.find(path)) for path in paths]
    return [
        (path, slot, dict(slot.value.mapped))
        for path, slot, is_there in places
        if is_there and _holds_ensemble(slot)
    ]


def _counts(rows: Sequence[_Row], specs: Sequence[Spec]) -> Iterator[tuple[Path, int]]:
    """For each leaf of the last of some nested ensembles its path and the length of its
    lane axis, as one lane of the others sees it."""
    for path, slot, known in rows[-1:]:
        for leaf, axis in known.items():
            found, is_there = slot.find(("model", *leaf))
            if not is_there or not isinstance(found.value, Ref):
                continue
            where = (*path, "model", *leaf)
            outer = [axes.get(_within(where, above)) for above, _, axes in rows[:-1]]
            spec = innermost(specs[found.value.name], outer)
            if isinstance(spec, ArraySpec) and axis < len(spec.struct.shape):
                yield where, spec.struct.shape[axis]


def in_levels(specs: Sequence[Spec], levels: Sequence[Level]) -> list[Spec]:
    """What one lane of all surrounding ensembles sees of a node's leaves."""
    return [
        innermost(spec, [level.axes[index] for level in levels])
        for index, spec in enumerate(specs)
    ]


def call_lane(
    kind: Kind, call: Call, inputs: Sequence[Any], path: Path
) -> tuple[list[Any], Outcome]:
    """Calls a node's method in one lane, as `call_once`; inside of ensembles under
    `jax.vmap` over their lanes, each with its own key. New arrays get a lane axis for
    each ensemble."""
    if not kind.levels:
        return call_once(kind, call, inputs, path)
    is_array = [isinstance(spec, ArraySpec) for spec in kind.specs]
    count = sum(is_array)
    shared, key = list(inputs[count:]), None
    if kind.gets_key:
        key = shared.pop()
    outcome: Outcome | None = None

    def once(arrays: Sequence[Any], key: Any) -> tuple[Any, ...]:
        nonlocal outcome
        rest = shared if key is None else [*shared, key]
        news, outcome = call_once(kind, call, [*arrays, *rest], path)
        return tuple(news)

    run: Callable[[Sequence[Any], Any], tuple[Any, ...]] = once
    for level in reversed(kind.levels):
        pairs = zip(level.axes, is_array, strict=True)
        run = _over_level(run, level.size, [axis for axis, is_one in pairs if is_one])
    news = list(run(inputs[:count], key))
    assert outcome is not None
    outcome = dataclasses.replace(outcome, levels=_levels_after(kind, outcome, news))
    for origin, axes in zip(outcome.origins, outcome.levels, strict=True):
        if isinstance(origin, New):
            news[origin.index] = _with_axes(news[origin.index], axes)
    return news, outcome


def _levels_after(
    kind: Kind, outcome: Outcome, news: Sequence[Any]
) -> tuple[tuple[int | None, ...], ...]:
    """The lane axes of each leaf; a new array has them where the old one had them."""
    old = dict(zip(leaf_paths(kind.structure), range(len(kind.specs)), strict=True))

    def of(index: int) -> tuple[int | None, ...]:
        return tuple(level.axes[index] for level in kind.levels)

    def after(path: Path, origin: Origin) -> tuple[int | None, ...]:
        match origin:
            case Kept(index):
                return of(index)
            case StaticSpec():
                return (None,) * len(kind.levels)
            case New(index):
                spec = kind.specs[old[path]] if path in old else None
                ndim = len(spec.struct.shape) if isinstance(spec, ArraySpec) else None
                axes = of(old[path]) if ndim == news[index].ndim else (None,)
                return (0,) * len(kind.levels) if None in axes else axes

    pairs = zip(leaf_paths(outcome.structure), outcome.origins, strict=True)
    return tuple(after(path, origin) for path, origin in pairs)


def _with_axes(x: jax.Array, axes: Sequence[int | None]) -> jax.Array:
    """Moves the leading lane axes, the outermost first, to where they belong."""
    order = list(range(len(axes), x.ndim))
    for level, axis in reversed(list(enumerate(axes))):
        order.insert(axis or 0, level)
    return x if order == sorted(order) else jnp.transpose(x, order)


def _over_level(
    run: Callable[[Sequence[Any], Any], tuple[Any, ...]],
    size: int,
    axes: list[int | None],
) -> Callable[[Sequence[Any], Any], tuple[Any, ...]]:
    def over(arrays: Sequence[Any], key: Any) -> tuple[Any, ...]:
        keys = None if key is None else jax.random.split(key, size)
        in_axes = (axes, None if key is None else 0)
        return jax.vmap(run, in_axes, 0, axis_size=size)(list(arrays), keys)

    return over


def note_lanes(draft: Slot, node: Node, outcome: Outcome) -> None:
    """Updates the ensembles around a node: which lane axes its leaves have by now."""
    if not node.ensembles or not outcome.levels:
        return
    below = leaf_paths(outcome.structure)
    for level, (path, slot, _) in enumerate(_rows(draft, node.ensembles)):
        within = _within(node.path, path)
        rows = {
            (*within, *rest): axes
            for rest, axes in zip(below, outcome.levels, strict=True)
        }
        old: frozenset[tuple[Path, int]] = slot.value.mapped
        # Where there is no leaf for the moment, its axis is kept.
        new = {row for row in old if row[0] not in rows}
        for leaf, axes in rows.items():
            axis = axes[level]
            if axis is not None:
                new.add((leaf, axis))
        mapped = frozenset(new)
        if mapped != old:
            slot.restate(replace(slot.value, mapped=mapped))


def _holds_ensemble(slot: Slot) -> bool:
    return isinstance(slot.value, Ensemble)


def _within(path: Path, ensemble: Path) -> Path:
    """A path as counted from the model that an ensemble holds, its field `model`."""
    return path[len(ensemble) + 1 :]
