"""The ensembles around a node, whose lanes its calls are mapped over."""

from collections.abc import Sequence
from typing import Any

import jax.tree_util as jtu

from ._draft import Slot
from ._ensemble import Ensemble
from ._kind import innermost, Level, Outcome, Spec
from ._nodes import Node
from ._paths import leaf_paths, Path
from ._replace import replace


def levels_of(draft: Slot, node: Node, structure: jtu.PyTreeDef) -> tuple[Level, ...]:
    """The lanes around a node of this structure, those of the outermost first."""
    if not node.ensembles:
        return ()
    below = leaf_paths(structure)
    levels: list[Level] = []
    for path in node.ensembles:
        slot, found = draft.find(path)
        ensemble: Any = slot.value
        if found and isinstance(ensemble, Ensemble):
            known = dict(ensemble.mapped)
            within = _within(node.path, path)
            axes = tuple(known.get((*within, *rest)) for rest in below)
            levels.append(Level(ensemble.axis_size, axes))
    return tuple(levels)


def in_levels(specs: Sequence[Spec], levels: Sequence[Level]) -> list[Spec]:
    """What one lane of all ensembles around sees of a node's leaves."""
    return [
        innermost(spec, [level.axes[index] for level in levels])
        for index, spec in enumerate(specs)
    ]


def note_lanes(draft: Slot, node: Node, outcome: Outcome) -> None:
    """Tells the ensembles around a node which lane axes its leaves have by now."""
    if not node.ensembles or not outcome.levels:
        return
    below = leaf_paths(outcome.structure)
    slots = [(path, *draft.find(path)) for path in node.ensembles]
    known = [(p, s) for p, s, is_there in slots if is_there and _holds_ensemble(s)]
    for level, (path, slot) in enumerate(known):
        within = _within(node.path, path)
        rows = {
            (*within, *rest): axes
            for rest, axes in zip(below, outcome.levels, strict=True)
        }
        old: frozenset[tuple[Path, int]] = slot.value.mapped
        # Where there is no leaf for the moment, what was known of it stays.
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
