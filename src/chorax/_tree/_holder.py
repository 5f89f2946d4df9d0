"""What knows where lanes lie: modules whose leaves have some, and those that say which
leaves of another do."""

import abc
from collections.abc import Collection, Iterator
from typing import Any

import equinox as eqx
import jax.tree_util as jtu

from .._text._places import Path
from ._draft import Ref, Slot
from ._replace import replace


class AxesHolder(eqx.Module):
    """What a `StateDelta` is to those who only have to know where lanes lie."""

    axis_size: int | None = eqx.field(static=True)
    """The number of lanes; `None` without lanes."""

    @property
    @abc.abstractmethod
    def in_axes(self) -> Any:
        """The lane axis of each leaf, as a tree."""


class LaneHolder(eqx.Module):
    """What an `Ensemble` is to those who only have to know where lanes lie.

    `mapped` has the lane axis of each leaf that has one, by its path below the field
    `model`. What a transformation puts in place of other leaves, or takes away for the
    moment, changes nothing for these.
    """

    mapped: frozenset[tuple[Path, int]] = eqx.field(static=True, repr=False)


def undo_lanes(
    after: jtu.PyTreeDef, before: jtu.PyTreeDef, undone: Collection[Path]
) -> jtu.PyTreeDef:
    """A structure in which leaves at these paths have the lane axes they had before."""
    old = dict(_holders(_draft(before)))
    draft = _draft(after)
    for path, holder in sorted(_holders(draft), key=lambda row: -len(row[0])):
        if path not in old:
            continue
        start = (*path, "model")
        below = {p[len(start) :] for p in undone if p[: len(start)] == start}
        rows = {row for row in holder.mapped if row[0] not in below}
        rows |= {row for row in old[path].mapped if row[0] in below}
        slot, _ = draft.find(path)
        slot.assign(replace(slot.current(), mapped=frozenset(rows)), ())
    return jtu.tree_structure(draft.current())


def _draft(structure: jtu.PyTreeDef) -> Slot:
    refs = [Ref(index) for index in range(structure.num_leaves)]
    return Slot(jtu.tree_unflatten(structure, refs), None, None)


def _holders(draft: Slot) -> Iterator[tuple[Path, LaneHolder]]:
    for path, slot in draft.walk():
        if isinstance(slot.value, LaneHolder):
            yield path, slot.value
