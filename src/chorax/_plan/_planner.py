"""From calls to a plan: what runs on which values, and what becomes of them.

The calls are gone through one by one, in the order that users rely on, but on names of
values instead of values: a kind is traced when its first node is met, and for every
other node of that kind the result is only written down. Nothing is computed; every
error that a call can raise is raised before the first array is made.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeAlias

import jax.tree_util as jtu

from .._annotations._check import CheckContext
from .._lanes._axes import in_front
from .._text._places import Path, place
from .._tree._draft import Ref
from .._tree._nodes import Node
from .._tree._paths import leaf_paths
from ._check_annotations import BATCHED, check_in_draft, UNBATCHED
from ._kind import (
    ArraySpec,
    Kept,
    Kind,
    New,
    Origin,
    Spec,
    spec_of,
    StaticSpec,
)
from ._leaves import Leaf, place_leaves
from ._levels import check_counts, levels_of, note_lanes
from ._methods import Method
from ._schedule import KEY, Named, schedule, Step, Visit
from ._select import Calls
from ._trace import PlainRun, Trace, trace_kind


# Runs a method, given a kind, values for its inputs and a path, where it is not traced.
Perform: TypeAlias = Callable[[Kind, Sequence[Any], Path], PlainRun]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """A collective call without values.

    A value's name is the index of its spec: the leaves of the target come first, then
    the arrays of the arguments. `leaves` are those of the result, which has that
    `structure`, and `aux` is what nodes returned besides, by path. `visits` are all
    calls in order. `known` are values that planning had to compute. `lasts` is whether
    later calls may use the plan.
    """

    specs: tuple[Spec, ...]
    steps: tuple[Step, ...]
    structure: jtu.PyTreeDef
    leaves: tuple[Leaf, ...]
    aux: Mapping[Path, Named]
    visits: tuple[Visit, ...]
    known: Mapping[int, Any]
    lasts: bool


def make_plan(
    calls: Calls, methods: Mapping[int, Method], perform: Perform | None = None
) -> Plan:
    """Plans the calls of `methods`, by index of node; `None`: methods are traced."""
    planner = _Planner(calls, perform)
    # Unmarked methods first, then by level; nodes are children before parents.
    order = sorted(
        methods, key=lambda i: (methods[i].level is not None, methods[i].level or 0, i)
    )
    for index in order:
        planner.plan_call(calls.tree.nodes[index], methods[index])
    return planner.finish()


class _Planner:
    def __init__(self, calls: Calls, perform: Perform | None) -> None:
        leaves, axes = calls.tree.leaves, calls.axes
        own = [spec_of(x, axis) for x, axis in zip(leaves, axes, strict=True)]
        arrays = [spec for spec in calls.call.specs if isinstance(spec, ArraySpec)]
        self._calls = calls
        self._call = calls.call
        self._draft = calls.tree.draft()
        self._specs: list[Spec] = [*own, *arrays]
        self._arguments = tuple(range(len(own), len(own) + len(arrays)))
        self._perform = perform
        self._known: dict[int, Any] = {}
        if perform is not None:
            values = [*map(in_front, leaves, axes), *calls.arrays]
            self._known = dict(enumerate(values))
        self._places: dict[tuple[Hashable, ...], int] = {}
        self._traces: dict[Hashable, Trace] = {}
        self._varying: dict[Trace | PlainRun, tuple[bool, ...]] = {}
        self._visits: list[Visit] = []
        self._aux: dict[Path, Named] = {}
        check_counts(self._draft, calls.tree.nodes, own)

    def plan_call(self, node: Node, method: Method) -> None:
        """Calls one node's method on names, and writes the result into the draft."""
        slot, found = self._draft.find(node.path)
        value = slot.current()
        if not found or type(value) is not node.cls:
            self._raise_gone(node, None if not found else value, slot.author)
        refs, structure = jtu.tree_flatten(value)
        names: tuple[int, ...] = tuple(ref.name for ref in refs)
        specs = tuple(self._specs[name] for name in names)
        levels = levels_of(self._draft, node, structure, self._specs)
        kind = Kind(structure, specs, method.definition, method.gets_key, levels)
        arrays = [name for name in names if isinstance(self._specs[name], ArraySpec)]
        inputs = (*arrays, *self._arguments)

        if self._perform is None:
            trace = self._trace(kind, node.path)
        else:
            known = [self._known[name] for name in inputs]
            trace = self._perform(kind, known, node.path)
        every = (*inputs, KEY)
        read = tuple(every[i] for i in trace.reads)
        places = tuple(map(self._place, read))
        # The results are somewhere else for each combination of places.
        made = (
            self._places.setdefault(places, len(self._places)) if any(places) else None
        )
        out_lanes = self._out_lanes(trace, node.path)
        outputs = tuple(
            self._name(ArraySpec(struct, has_lanes, place=made))
            for struct, has_lanes in zip(trace.outputs, out_lanes, strict=True)
        )
        if isinstance(trace, PlainRun):
            self._know(trace, outputs, out_lanes)

        outcome = trace.outcome
        after = self._named(outcome.structure, outcome.origins, names, outputs)
        before = structure, names
        self._visits.append(
            Visit(node, trace, before, after, read, places, outputs, out_lanes)
        )
        slot.assign(jtu.tree_unflatten(after[0], map(Ref, after[1])), node.path)
        note_lanes(self._draft, node, outcome)
        if self._call.has_aux:
            aux = outcome.aux_structure, outcome.aux_origins
            self._aux[node.path] = self._named(*aux, names, outputs)

    def finish(self) -> Plan:
        """The plan, once every call is planned."""
        self._check_annotations()
        refs, structure = jtu.tree_flatten(self._draft.current())
        names: tuple[int, ...] = tuple(ref.name for ref in refs)
        specs = tuple(self._specs)
        nodes = self._calls.tree.nodes
        aux = {n.path: self._aux[n.path] for n in nodes if n.path in self._aux}
        wanted = {*names, *(name for _, below in aux.values() for name in below)}
        return Plan(
            specs,
            schedule(self._visits, wanted),
            structure,
            place_leaves((structure, names), specs, self._calls),
            aux,
            tuple(self._visits),
            self._known,
            all(visit.trace.lasts for visit in self._visits),
        )

    def _check_annotations(self) -> None:
        """Checks every called node that is still there, as all calls have left it."""
        lanes = self._call.lanes
        size, cure = (None, UNBATCHED) if lanes is None else (lanes.size, BATCHED)
        for index, visit in enumerate(self._visits):
            after = functools.partial(self._after, index)
            context = CheckContext(size, cure, after, self._call.admits_stacks)
            check_in_draft(self._draft, visit.node, self._specs, context)

    def _after(self, index: int) -> str:
        """Which call a node is the result of, for a message: a later one than its own
        may have changed it."""
        visit, later = self._visits[index], self._visits[index + 1 :]
        slot, _ = self._draft.find(visit.node.path)
        names = {ref.name for ref in jtu.tree_leaves(slot.current())}
        new = names.difference(visit.after[1])
        authors = (x.node.path for x in later if not new.isdisjoint(x.after[1]))
        author = next(authors, None)
        where = "" if author is None else f" of the node at {place(author)}"
        return f" after `{self._call.label}`{where}"

    def _trace(self, kind: Kind, path: Path) -> Trace:
        try:
            token = kind.token
            trace = self._traces.get(token)
        except TypeError:
            # Something static can't be hashed: the node is a kind of its own.
            return trace_kind(kind, self._call, path)
        if trace is None:
            trace = trace_kind(kind, self._call, path)
            if trace.outcome.is_fixed:
                self._traces[token] = trace
        return trace

    def _out_lanes(self, trace: Trace | PlainRun, path: Path) -> tuple[bool, ...]:
        """Which outputs get a lane axis: all but excluded ones equal in all lanes."""
        lanes, excludes = self._call.lanes, self._calls.excludes
        flags = [lanes is not None] * len(trace.outputs)
        if lanes is None or excludes is None or not trace.outputs:
            return tuple(flags)
        below = leaf_paths(trace.outcome.structure)
        rows = [
            (origin.index, (*path, *rest), trace.outputs[origin.index])
            for origin, rest in zip(trace.outcome.origins, below, strict=True)
            if isinstance(origin, New)
        ]
        excluded = excludes([(where, struct) for _, where, struct in rows])
        if trace not in self._varying:
            self._varying[trace] = trace.varies(lanes)
        varies = self._varying[trace]
        for (index, _, _), is_excluded in zip(rows, excluded, strict=True):
            flags[index] = not is_excluded or varies[index]
        return tuple(flags)

    def _named(
        self,
        structure: jtu.PyTreeDef,
        origins: Sequence[Origin],
        names: tuple[int, ...],
        outputs: tuple[int, ...],
    ) -> Named:
        """What a call returned, as a structure of named values."""

        def name(origin: Origin) -> int:
            match origin:
                case Kept(index):
                    return names[index]
                case New(index):
                    return outputs[index]
                case StaticSpec():
                    return self._name(origin)

        return structure, tuple(map(name, origins))

    def _place(self, name: int) -> Hashable:
        spec = None if name == KEY else self._specs[name]
        return spec.place if isinstance(spec, ArraySpec) else None

    def _name(self, spec: Spec) -> int:
        self._specs.append(spec)
        return len(self._specs) - 1

    def _know(
        self, run: PlainRun, names: tuple[int, ...], out_lanes: tuple[bool, ...]
    ) -> None:
        for name, array, has_lanes in zip(names, run.arrays, out_lanes, strict=True):
            whole = has_lanes or self._call.lanes is None
            self._known[name] = array if whole else array[0]

    def _raise_gone(self, node: Node, found: Any, author: Path | None) -> None:
        gone = found is None or isinstance(found, Ref)
        kind = type(found).__name__
        change = "removed it" if gone else f"changed its class to {kind}"
        raise ValueError(
            f"`{self._call.label}` was still to be called on the "
            f"{node.cls.__name__} at {place(node.path)}, but the earlier call "
            f"on the node at {place(author or ())} {change}. Nodes are enumerated "
            f"once, at the start; exclude the one at {place(node.path)}, or give the "
            "calls another `call_order`."
        )
