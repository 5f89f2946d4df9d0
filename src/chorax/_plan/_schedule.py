"""Which calls run together.

Calls on disjoint subtrees commute, because a method reads only its own subtree, its
arguments and its key. So data alone orders calls: a call comes one wave after the
latest of those whose results it reads. In a wave all calls that compute the same are
one step, whatever their kinds and their order.
"""

import dataclasses
from collections.abc import Hashable, Sequence
from typing import TypeAlias

import jax.tree_util as jtu

from .._text._places import Path
from .._tree._nodes import Node
from ._trace import PlainRun, Trace


# Stands for the key of a node among the names of values.
KEY = -1
# Leaves of a structure, by the names of their values.
Named: TypeAlias = tuple[jtu.PyTreeDef, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Visit:
    """One node's call, with names for values.

    `before` and `after` are the node's subtree. `inputs` are the arrays of the node and
    of the arguments, and `KEY`, that the computation reads, in its order, and `places`
    where they are. `out_lanes` is whether lanes have one each of the `outputs`.
    """

    node: Node
    trace: Trace | PlainRun
    before: Named
    after: Named
    inputs: tuple[int, ...]
    places: tuple[Hashable, ...]
    outputs: tuple[int, ...]
    out_lanes: tuple[bool, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """Calls that compute the same in the same places, in the order of their nodes;
    `trace` is the first one's.

    Steps of one wave read nothing of each other.
    """

    wave: int
    trace: Trace
    places: tuple[Hashable, ...]
    out_lanes: tuple[bool, ...]
    paths: tuple[Path, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]


def schedule(visits: Sequence[Visit], wanted: set[int]) -> tuple[Step, ...]:
    """Groups calls into steps; leaves out those whose results nobody wants."""
    wave_of: dict[int, int] = {}
    groups: dict[tuple[int, Hashable], list[Visit]] = {}
    first: dict[tuple[int, Hashable], Trace] = {}
    for visit, trace in _needed(visits, wanted):
        wave = 1 + max((wave_of.get(name, -1) for name in visit.inputs), default=-1)
        wave_of.update(dict.fromkeys(visit.outputs, wave))
        alike = trace.computation, trace.in_lanes, visit.places, visit.out_lanes
        groups.setdefault((wave, alike), []).append(visit)
        first.setdefault((wave, alike), trace)
    return tuple(
        Step(
            key[0],
            first[key],
            group[0].places,
            group[0].out_lanes,
            tuple(visit.node.path for visit in group),
            tuple(visit.inputs for visit in group),
            tuple(visit.outputs for visit in group),
        )
        for key, group in sorted(groups.items(), key=lambda item: item[0][0])
    )


def _needed(visits: Sequence[Visit], wanted: set[int]) -> list[tuple[Visit, Trace]]:
    """The calls that compute something of use, in order: a child whose state its parent
    overwrites unread need not be computed, and what ran plainly has been."""
    wanted = set(wanted)
    needed: list[tuple[Visit, Trace]] = []
    for visit in reversed(visits):
        trace = visit.trace
        if isinstance(trace, PlainRun):
            continue
        if trace.computation.has_effects or not wanted.isdisjoint(visit.outputs):
            needed.append((visit, trace))
            wanted.update(visit.inputs)
    return needed[::-1]
