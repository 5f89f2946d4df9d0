"""From nodes to a plan: what runs on which values, and what comes of it.

The calls are gone through one by one, in the order that users rely on, but on names of
values instead of values: a kind is traced when its first node is met, and every other
node of that kind only has its result written down. Nothing is computed; every error
that a call can raise is raised before the first array is made.
"""

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple

import jax.tree_util as jtu

from .._annotations._check import Sight
from .._text._places import Path, place
from .._tree._draft import Ref
from .._tree._nodes import Node, Walked
from .._tree._paths import leaf_paths
from ._check_annotations import BATCHED, check_in_draft, UNBATCHED
from ._excludes import Excludes
from ._kind import ArraySpec, Call, Constant, Kept, Kind, New, Origin, Spec, StaticSpec
from ._levels import check_counts, levels_of, note_lanes
from ._methods import Method
from ._schedule import KEY, Planned, schedule, Step
from ._trace import PlainRun, Trace, trace_kind


@dataclasses.dataclass(frozen=True, eq=False)
class Aux:
    """What a node's call returned beside the node: a structure of named values."""

    path: Path
    structure: jtu.PyTreeDef
    names: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Visit:
    """One node's call, in the order of calls: its subtree before and after it, as
    structures of named values."""

    node: Node
    done: Trace | PlainRun
    before: tuple[jtu.PyTreeDef, tuple[int, ...]]
    after: tuple[jtu.PyTreeDef, tuple[int, ...]]


class Plain(NamedTuple):
    """How methods run without `jit`: on the leaves of the target and the arrays of the
    arguments, by a function of a kind, its inputs and a path."""

    values: Sequence[Any]
    run: Callable[[Kind, Sequence[Any], Path], PlainRun]


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a collective call comes to.

    Values go by the index of their spec: the leaves of the target come first, then the
    arrays of the arguments. `names` are the leaves of the result, of that `structure`.
    `known` are values that planning had to compute. `lasts` is whether later calls may
    use it.
    """

    specs: tuple[Spec, ...]
    steps: tuple[Step, ...]
    structure: jtu.PyTreeDef
    names: tuple[int, ...]
    aux: tuple[Aux, ...]
    known: Mapping[int, Any]
    lasts: bool


def make_plan(
    walked: Walked,
    methods: Mapping[int, Method],
    call: Call,
    specs: Sequence[Spec],
    excludes: Excludes | None,
    plain: Plain | None,
) -> tuple[Plan, Sequence[Visit]]:
    """Plans the calls of `methods`, by index of node; and what each of them comes to.

    `specs` describe the leaves of the target. `plain` is given where methods are to run
    instead of being traced.
    """
    planner = _Planner(walked, call, specs, excludes, plain)
    # Unmarked methods first, then by level; `walked` has children before parents.
    order = sorted(
        methods, key=lambda i: (methods[i].level is not None, methods[i].level or 0, i)
    )
    for index in order:
        planner.plan_call(walked.nodes[index], methods[index])
    return planner.finish(walked.nodes), planner.visits


class _Planner:
    def __init__(
        self,
        walked: Walked,
        call: Call,
        specs: Sequence[Spec],
        excludes: Excludes | None,
        plain: Plain | None,
    ) -> None:
        self._draft = walked.draft()
        self._call = call
        self._excludes = excludes
        self._plain = plain
        arrays = [spec for spec in call.specs if isinstance(spec, ArraySpec)]
        self._arguments = tuple(range(len(specs), len(specs) + len(arrays)))
        self._specs: list[Spec] = [*specs, *arrays]
        self._known = None if plain is None else dict(enumerate(plain.values))
        self._places: dict[tuple[Hashable, ...], int] = {}
        self._traces: dict[Hashable, Trace] = {}
        self._varying: dict[Trace, tuple[bool, ...]] = {}
        self._planned: list[Planned] = []
        self._aux: dict[Path, Aux] = {}
        self.visits: list[Visit] = []
        check_counts(self._draft, walked.nodes, specs)

    def plan_call(self, node: Node, method: Method) -> None:
        """Calls one node's method on names, and writes the result into the draft."""
        slot, found = self._draft.find(node.path)
        value = slot.current()
        if not found or type(value) is not type(node.module):
            self._raise_gone(node, None if not found else value, slot.author)
        refs, structure = jtu.tree_flatten(value)
        names: tuple[int, ...] = tuple(ref.name for ref in refs)
        specs = tuple(self._specs[name] for name in names)
        levels = levels_of(self._draft, node, structure, self._specs)
        kind = Kind(structure, specs, method.definition, method.gets_key, levels)
        arrays = [name for name in names if isinstance(self._specs[name], ArraySpec)]
        inputs = (*arrays, *self._arguments)

        if self._plain is None or self._known is None:
            done = self._trace(kind, node.path)
        else:
            known = [self._known[name] for name in inputs]
            done = self._plain.run(kind, known, node.path)
        out_lanes = self._out_lanes(done, node.path)
        every = (*inputs, KEY)
        read = () if isinstance(done, PlainRun) else tuple(every[i] for i in done.reads)
        places = tuple(self._place(name) for name in read)
        # What is made of them is somewhere else for each combination of places.
        made = (
            self._places.setdefault(places, len(self._places)) if any(places) else None
        )
        outputs = tuple(
            self._name(ArraySpec(struct, has_lanes, place=made))
            for struct, has_lanes in zip(done.outputs, out_lanes, strict=True)
        )
        if isinstance(done, PlainRun):
            self._know(done, outputs, out_lanes)
        else:
            planned = Planned(node.path, done, read, places, outputs, out_lanes)
            self._planned.append(planned)

        outcome = done.outcome
        new = tuple(self._source(each, names, outputs) for each in outcome.origins)
        after = outcome.structure, new
        self.visits.append(Visit(node, done, (structure, names), after))
        refs = [Ref(name) for name in new]
        slot.assign(jtu.tree_unflatten(outcome.structure, refs), node.path)
        note_lanes(self._draft, node, outcome)
        if self._call.has_aux:
            origins = outcome.aux_origins
            aux = tuple(self._source(origin, names, outputs) for origin in origins)
            self._aux[node.path] = Aux(node.path, outcome.aux_structure, aux)

    def finish(self, nodes: Sequence[Node]) -> Plan:
        """The plan, once every call is planned."""
        self._check_annotations()
        refs, structure = jtu.tree_flatten(self._draft.current())
        names: tuple[int, ...] = tuple(ref.name for ref in refs)
        paths = [node.path for node in nodes if node.path in self._aux]
        aux = tuple(self._aux[path] for path in paths)
        wanted = {*names, *(name for each in aux for name in each.names)}
        return Plan(
            tuple(self._specs),
            schedule(self._planned, wanted),
            structure,
            names,
            aux,
            {} if self._known is None else self._known,
            all(isinstance(x.done, Trace) and x.done.lasts for x in self.visits),
        )

    def _check_annotations(self) -> None:
        """Checks every called node that is still there, as all calls have left it."""
        lanes = self._call.lanes
        size, cure = (None, UNBATCHED) if lanes is None else (lanes.size, BATCHED)
        for index, visit in enumerate(self.visits):
            after = functools.partial(self._after, index)
            sight = Sight(size, cure, after, self._call.admits_stacks)
            check_in_draft(self._draft, visit.node, self._specs, sight)

    def _after(self, index: int) -> str:
        """What a node comes from, for a message: a later call may have changed it."""
        visit, later = self.visits[index], self.visits[index + 1 :]
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

    def _out_lanes(self, done: Trace | PlainRun, path: Path) -> tuple[bool, ...]:
        """Which outputs get a lane axis: all but excluded ones equal in all lanes."""
        flags = [self._call.lanes is not None] * len(done.outputs)
        if self._excludes is None or not done.outputs:
            return tuple(flags)
        below = leaf_paths(done.outcome.structure)
        rows = [
            (origin.index, (*path, *rest), done.outputs[origin.index])
            for origin, rest in zip(done.outcome.origins, below, strict=True)
            if isinstance(origin, New)
        ]
        excluded = self._excludes([(where, struct) for _, where, struct in rows])
        varies = self._varies(done)
        for (index, _, _), is_excluded in zip(rows, excluded, strict=True):
            flags[index] = not is_excluded or varies[index]
        return tuple(flags)

    def _varies(self, done: Trace | PlainRun) -> tuple[bool, ...]:
        if isinstance(done, PlainRun):
            return done.varies
        if done not in self._varying:
            assert self._call.lanes is not None
            self._varying[done] = done.varies(self._call.lanes)
        return self._varying[done]

    def _source(
        self, origin: Origin, names: tuple[int, ...], outputs: tuple[int, ...]
    ) -> int:
        """The name of the value that a leaf of the result is."""
        match origin:
            case Kept(index):
                return names[index]
            case New(index):
                return outputs[index]
            case Constant(value):
                return self._name(StaticSpec(value))

    def _place(self, name: int) -> Hashable:
        spec = None if name == KEY else self._specs[name]
        return spec.place if isinstance(spec, ArraySpec) else None

    def _name(self, spec: Spec) -> int:
        self._specs.append(spec)
        return len(self._specs) - 1

    def _know(
        self, run: PlainRun, names: tuple[int, ...], out_lanes: tuple[bool, ...]
    ) -> None:
        assert self._known is not None
        for name, array, has_lanes in zip(names, run.arrays, out_lanes, strict=True):
            whole = has_lanes or self._call.lanes is None
            self._known[name] = array if whole else array[0]

    def _raise_gone(self, node: Node, found: Any, author: Path | None) -> None:
        gone = found is None or isinstance(found, Ref)
        kind = type(found).__name__
        change = "removed it" if gone else f"changed its class to {kind}"
        raise ValueError(
            f"`{self._call.label}` was still to be called on the "
            f"{type(node.module).__name__} at {place(node.path)}, but the earlier call "
            f"on the node at {place(author or ())} {change}. Nodes are enumerated "
            f"once, at the start; exclude the one at {place(node.path)}, or give the "
            "calls another `call_order`."
        )
