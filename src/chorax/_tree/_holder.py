"""Marker bases for what knows lane axes: its own, or those of another tree."""

import abc
from collections.abc import Collection, Mapping
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._text._places import Path
from ._draft import Slot
from ._replace import replace


class AxesHolder(eqx.Module):
    """The base of `StateDelta`, for code that only needs to know lane axes."""

    axis_size: int | None = eqx.field(static=True)
    """The number of lanes; `None` without lanes."""

    @property
    @abc.abstractmethod
    def in_axes(self) -> Any:
        """The lane axis of each leaf, as a tree."""

    @property
    @abc.abstractmethod
    def path_tags(self) -> Mapping[Path, frozenset[str]]:
        """The tags of each leaf that has some, by path."""


class LaneHolder(eqx.Module):
    """The base of `Ensemble`, for code that only needs to know lane axes.

    `mapped` has the path below the field `model` of each leaf with a lane axis, and the
    axis; so it still holds when a transformation replaces or removes leaves.
    `size_when_made` is the number of lanes if no leaf says it.
    """

    model: eqx.AbstractVar[Any]
    mapped: frozenset[tuple[Path, int]] = eqx.field(static=True, repr=False)
    size_when_made: int = eqx.field(static=True, repr=False)


class Wrapper(eqx.Module):
    """A module of chorax around functions or models: not a node, but walked through."""


def undo_lanes(
    after: jtu.PyTreeDef, before: jtu.PyTreeDef, undone: Collection[Path]
) -> jtu.PyTreeDef:
    """A structure in which leaves at these paths have the lane axes they had before."""
    old = dict(_holders(Slot.of(before)))
    draft = Slot.of(after)
    for path, holder in _holders(draft):
        if path not in old:
            continue
        start = (*path, "model")
        below = {p[len(start) :] for p in undone if p[: len(start)] == start}
        rows = {row for row in holder.mapped if row[0] not in below}
        rows |= {row for row in old[path].mapped if row[0] in below}
        slot, _ = draft.find(path)
        slot.assign(replace(slot.current(), mapped=frozenset(rows)), ())
    return jtu.tree_structure(draft.current())


def without_sizes(structure: jtu.PyTreeDef) -> jtu.PyTreeDef:
    """A structure without the sizes that ensembles note, except where no leaf says how
    many lanes there are."""
    draft = Slot.of(structure)
    for path, holder in _holders(draft):
        if holder.mapped:
            slot, _ = draft.find(path)
            slot.assign(replace(slot.current(), size_when_made=0), ())
    return jtu.tree_structure(draft.current())


def _holders(draft: Slot) -> list[tuple[Path, LaneHolder]]:
    """The ensembles in a draft, inner ones first, so that outer ones contain them."""
    rows = [(path, slot.value) for path, slot in draft.walk()]
    return [row for row in reversed(rows) if isinstance(row[1], LaneHolder)]
