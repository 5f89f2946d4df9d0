"""Which calls run together.

Calls on disjoint subtrees commute, because a method reads only its own subtree, its
arguments and its key. So what orders calls is the data alone: a call comes one wave
after the latest of those whose results it reads, and in a wave all calls that compute
the same are one step, whatever their kinds and their order among the others.
"""

import dataclasses
from collections.abc import Hashable, Sequence

from .._text._places import Path
from ._trace import Trace


# Stands for the key of a node among the names of values.
KEY = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Planned:
    """One node's call: the values it reads and makes, by name.

    `inputs` are the arrays of the node and of the arguments, and `KEY`, that the
    computation reads, in its order, and `places` where they are.
    """

    path: Path
    trace: Trace
    inputs: tuple[int, ...]
    places: tuple[Hashable, ...]
    outputs: tuple[int, ...]
    out_lanes: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Calls that compute the same in the same places, in the order of their nodes;
    `trace` is the first's.

    Steps of one wave read nothing of each other.
    """

    wave: int
    trace: Trace
    places: tuple[Hashable, ...]
    out_lanes: tuple[bool, ...]
    paths: tuple[Path, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def schedule(calls: Sequence[Planned], wanted: set[int]) -> tuple[Step, ...]:
    """Groups calls into steps; leaves out those of which nobody wants anything."""
    wave_of: dict[int, int] = {}
    groups: dict[tuple[int, Hashable], list[Planned]] = {}
    for call in _needed(calls, wanted):
        wave = 1 + max((wave_of.get(name, -1) for name in call.inputs), default=-1)
        wave_of.update(dict.fromkeys(call.outputs, wave))
        alike = call.trace.computation, call.trace.in_lanes, call.places, call.out_lanes
        groups.setdefault((wave, alike), []).append(call)
    return tuple(
        Step(
            wave,
            group[0].trace,
            group[0].places,
            group[0].out_lanes,
            tuple(call.path for call in group),
            tuple(call.inputs for call in group),
            tuple(call.outputs for call in group),
        )
        for (wave, _), group in sorted(groups.items(), key=lambda item: item[0][0])
    )


def _needed(calls: Sequence[Planned], wanted: set[int]) -> list[Planned]:
    """A child whose state its parent overwrites unread need not be computed."""
    wanted = set(wanted)
    needed: list[Planned] = []
    for call in reversed(calls):
        if call.trace.computation.has_effects or not wanted.isdisjoint(call.outputs):
            needed.append(call)
            wanted.update(call.inputs)
    return needed[::-1]
