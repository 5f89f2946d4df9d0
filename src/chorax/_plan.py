"""From nodes to a plan: which kinds run when, on which values, and what comes of it.

Calls on disjoint subtrees commute, because a method reads only its own subtree, its
arguments and its key. So within one order level the nodes fall into waves, each node
after the called nodes below it, and in a wave all nodes of a kind are one step. A plan
is a straight line of such steps over named values. Making it runs no computation: every
error that a call can raise is raised before the first array is made.
"""

import dataclasses
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.tree_util as jtu

from ._draft import Ref, Slot
from ._kind import ArraySpec, Call, Constant, Kept, Kind, New, Origin, Spec, StaticSpec
from ._methods import Method
from ._nodes import Node, Walked
from ._paths import leaf_paths, Path, place
from ._plain import PlainRun, run_plainly
from ._trace import Trace, trace_kind
from .filters import Predicate


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One kind at work: `inputs` and `outputs` name values, one row a node.

    Inputs are the arrays of the node and those of the arguments that the computation
    reads, in its order; where it reads the key, the name is `KEY`.
    """

    trace: Trace
    label: str
    paths: tuple[Path, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: tuple[tuple[int, ...], ...]
    out_lanes: tuple[bool, ...]


KEY = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Plan:
    """What a collective call comes to.

    `result` and `aux` are trees of `Ref`s to values, whose specs are `specs`; the
    leaves of the target come first among them, then the arrays of the arguments.
    `known` holds values that planning had to compute.
    """

    specs: tuple[Spec, ...]
    steps: tuple[Step, ...]
    structure: jtu.PyTreeDef
    result: tuple[int, ...]
    aux: tuple[tuple[Path, jtu.PyTreeDef, tuple[int, ...]], ...]
    known: Mapping[int, Any]


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """A node whose turn it is: where it stands now, and its leaves by name."""

    index: int
    slot: Slot
    refs: tuple[Ref, ...]
    kind: Kind


def make_plan(
    walked: Walked,
    methods: Mapping[int, Method],
    call: Call,
    specs: Sequence[Spec],
    excludes: "Excludes | None",
    values: Sequence[Any] | None,
    keys: jax.Array | None,
) -> Plan:
    """Plans the calls of `methods`, by index of node.

    `specs` describe the leaves of the target. `values`, the leaves and the arguments'
    arrays, are given where methods are to run plainly, not traced.
    """
    planner = _Planner(walked, methods, call, specs, excludes, values, keys)
    for waves in _levels(walked.nodes, methods):
        planner.run_level(waves)
    return planner.finish()


class Excludes:
    """Which written leaves are to be the same for all lanes."""

    def __init__(
        self, keeps: Predicate, tags: Mapping[Path, frozenset[str]], tag: str | None
    ):
        self._keeps = keeps
        self._tags = tags
        self._own = frozenset(() if tag is None else (tag,))

    def __call__(self, rows: Sequence[tuple[Path, Spec]]) -> tuple[bool, ...]:
        """Asks the filter about leaves, arrays among them as a trace shows them."""
        kept: tuple[bool, ...] = ()

        def ask(arrays: list[jax.Array]) -> None:
            nonlocal kept
            rest = iter(arrays)
            kept = tuple(
                self._keeps(
                    path,
                    next(rest) if isinstance(spec, ArraySpec) else spec.value,
                    self._own | self._tags.get(path, frozenset()),
                )
                for path, spec in rows
            )

        jax.eval_shape(ask, [s.struct for _, s in rows if isinstance(s, ArraySpec)])
        return kept


def _levels(
    nodes: Sequence[Node], methods: Mapping[int, Method]
) -> Iterable[list[list[int]]]:
    """The waves of each order level; a node comes after the called nodes below it."""
    marked = {method.level for method in methods.values()}
    for level in sorted(marked, key=lambda x: (x is not None, x)):
        depth = [0] * len(nodes)
        waves: list[list[int]] = []
        for index, node in enumerate(nodes):
            called = index in methods and methods[index].level == level
            if called:
                while len(waves) <= depth[index]:
                    waves.append([])
                waves[depth[index]].append(index)
            if node.parent is not None:
                below = depth[index] + called
                depth[node.parent] = max(depth[node.parent], below)
        yield waves


class _Planner:
    def __init__(
        self,
        walked: Walked,
        methods: Mapping[int, Method],
        call: Call,
        specs: Sequence[Spec],
        excludes: Excludes | None,
        values: Sequence[Any] | None,
        keys: jax.Array | None,
    ) -> None:
        self.nodes = walked.nodes
        self.draft = walked.draft
        self.methods = methods
        self.call = call
        self.excludes = excludes
        self.keys = keys
        arrays = [spec for spec in call.specs if isinstance(spec, ArraySpec)]
        self.arguments = tuple(range(len(specs), len(specs) + len(arrays)))
        self.specs: list[Spec] = [*specs, *arrays]
        self.known = None if values is None else dict(enumerate(values))
        self.steps: list[Step] = []
        self.aux: dict[int, tuple[Path, jtu.PyTreeDef, tuple[int, ...]]] = {}

    def run_level(self, waves: list[list[int]]) -> None:
        """Runs a level; raises what the first node to fail, one by one, would raise."""
        failed: int | None = None
        failure: Exception | None = None
        for wave in waves:
            # A wave may hold nodes that come before the one that failed: they may fail.
            due = [index for index in wave if failed is None or index < failed]
            groups: dict[Hashable, list[_Ready]] = {}
            for index in due:
                try:
                    ready = self._look(index)
                except Exception as error:
                    if failed is None or index < failed:
                        failed, failure = index, error
                    continue
                groups.setdefault(_token(ready, self.known is not None), []).append(
                    ready
                )
            for group in groups.values():
                try:
                    self._run(group)
                except Exception as error:
                    if failed is None or group[0].index < failed:
                        failed, failure = group[0].index, error
        if failure is not None:
            raise failure

    def finish(self) -> Plan:
        refs, structure = jtu.tree_flatten(self.draft.current())
        return Plan(
            tuple(self.specs),
            tuple(self.steps),
            structure,
            tuple(ref.name for ref in refs),
            tuple(self.aux[index] for index in sorted(self.aux)),
            {} if self.known is None else self.known,
        )

    def _look(self, index: int) -> _Ready:
        node, method = self.nodes[index], self.methods[index]
        slot, found = self.draft.find(node.path)
        value = slot.current()
        kind = type(node.module).__name__
        if not found or type(value) is not type(node.module):
            author = place(slot.author or ())
            gone = not found or value is None or isinstance(value, Ref)
            name = type(value).__name__
            change = "removed it" if gone else f"changed its class to {name}"
            raise ValueError(
                f"`{self.call.label}` was still to be called on the {kind} at "
                f"{place(node.path)}, but the earlier call on the node at {author} "
                f"{change}. Nodes are enumerated once, at the start; exclude the one "
                f"at {place(node.path)}, or give the calls another `call_order`."
            )
        refs, structure = jtu.tree_flatten(value)
        specs = tuple(self.specs[ref.name] for ref in refs)
        return _Ready(
            index,
            slot,
            tuple(refs),
            Kind(structure, specs, method.definition, method.gets_key),
        )

    def _run(self, group: list[_Ready]) -> None:
        first = group[0]
        path = self.nodes[first.index].path
        if self.known is None:
            done = trace_kind(first.kind, self.call, path)
        else:
            inputs = [self.known[name] for name in self._inputs(first)]
            done = run_plainly(first.kind, self.call, inputs, self.keys, path)
        by_lanes: dict[tuple[bool, ...], list[_Ready]] = {}
        for ready in group:
            by_lanes.setdefault(self._out_lanes(done, ready), []).append(ready)
        for out_lanes, part in by_lanes.items():
            outputs = [self._write(done, ready, out_lanes) for ready in part]
            if isinstance(done, Trace):
                self._add_step(done, part, outputs, out_lanes)
            else:
                self._know(done, outputs[0], out_lanes)

    def _know(
        self, run: PlainRun, names: tuple[int, ...], out_lanes: tuple[bool, ...]
    ) -> None:
        assert self.known is not None
        for name, array, has_lanes in zip(names, run.arrays, out_lanes, strict=True):
            whole = has_lanes or self.call.lanes is None
            self.known[name] = array if whole else array[0]

    def _inputs(self, ready: _Ready) -> tuple[int, ...]:
        """The arrays that a call is handed, by name: the node's and the arguments'."""
        names = [ref.name for ref in ready.refs]
        arrays = [name for name in names if isinstance(self.specs[name], ArraySpec)]
        return (*arrays, *self.arguments)

    def _add_step(
        self,
        trace: Trace,
        group: list[_Ready],
        outputs: list[tuple[int, ...]],
        out_lanes: tuple[bool, ...],
    ) -> None:
        if not trace.outputs and not trace.has_effects:
            return
        rows: list[tuple[int, ...]] = []
        for ready in group:
            names = (*self._inputs(ready), KEY)
            rows.append(tuple(names[i] for i in trace.reads))
        kind = type(self.nodes[group[0].index].module).__name__
        paths = tuple(self.nodes[ready.index].path for ready in group)
        label = f"`{self.call.label}` of {kind}"
        step = Step(trace, label, paths, tuple(rows), tuple(outputs), out_lanes)
        self.steps.append(step)

    def _write(
        self, done: Trace | PlainRun, ready: _Ready, out_lanes: tuple[bool, ...]
    ) -> tuple[int, ...]:
        """Puts the node that a call returned in its place; the names of its arrays."""
        batched = self.call.lanes is not None
        outputs: list[int] = []
        for struct, has_lanes in zip(done.outputs, out_lanes, strict=True):
            axis = 0 if batched and has_lanes else None
            outputs.append(self._name(ArraySpec(struct, axis)))

        def ref(origin: Origin) -> Ref:
            match origin:
                case Kept(index):
                    return ready.refs[index]
                case New(index):
                    return Ref(outputs[index])
                case Constant(value):
                    return Ref(self._name(StaticSpec(value)))

        outcome = done.outcome
        path = self.nodes[ready.index].path
        refs = [ref(origin) for origin in outcome.origins]
        ready.slot.assign(jtu.tree_unflatten(outcome.structure, refs), path)
        if self.call.has_aux:
            names = tuple(ref(origin).name for origin in outcome.aux_origins)
            self.aux[ready.index] = (path, outcome.aux_structure, names)
        return tuple(outputs)

    def _name(self, spec: Spec) -> int:
        self.specs.append(spec)
        return len(self.specs) - 1

    def _out_lanes(self, done: Trace | PlainRun, ready: _Ready) -> tuple[bool, ...]:
        """Which outputs get a lane axis: all but excluded ones equal in all lanes."""
        flags = [True] * len(done.outputs)
        if self.excludes is None or not done.outputs:
            return tuple(flags)
        path = self.nodes[ready.index].path
        below = leaf_paths(done.outcome.structure)
        rows = [
            (origin.index, (*path, *rest), ArraySpec(done.outputs[origin.index], 0))
            for origin, rest in zip(done.outcome.origins, below, strict=True)
            if isinstance(origin, New)
        ]
        excluded = self.excludes([(leaf_path, spec) for _, leaf_path, spec in rows])
        for (index, _, _), is_excluded in zip(rows, excluded, strict=True):
            flags[index] = not is_excluded or done.varies[index]
        return tuple(flags)


def _token(ready: _Ready, plain: bool) -> Hashable:
    """Equal for nodes that one trace serves; a node's own where nothing is traced."""
    token = object() if plain else ready.kind.token
    try:
        hash(token)
    except TypeError:
        return object()
    return token
