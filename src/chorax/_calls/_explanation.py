"""What a collective call will do: the call is planned on shapes, and the plan is read
out."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.tree_util as jtu

from .._plan._kept import has_rule, kept_arrays
from .._plan._kind import ArraySpec
from .._plan._leaves import same_value
from .._plan._planner import make_plan, Plan
from .._plan._request import Request
from .._plan._schedule import Visit
from .._plan._select import Calls, find_methods, select
from .._text._places import dotted, Path
from .._text._table import counted, in_bytes, Row, size_of, Table, value_cells
from .._tree._nodes import walk_nodes
from .._tree._paths import leaf_paths


@dataclasses.dataclass(frozen=True)
class LeafChange:
    """A leaf that one node's call writes.

    `before` and `after` are arrays as `jax.ShapeDtypeStruct` with their lane axis, the
    index of which is `before_axis` or `after_axis`; or else the values themselves. A
    leaf that was not there, or is not there any more, is `None`.
    """

    path: Path
    before: Any
    after: Any
    before_axis: int | None
    after_axis: int | None

    @property
    def bytes(self) -> int:
        """The size of the new value in all lanes; 0 if it is not an array."""
        return size_of(self.after) or 0


@dataclasses.dataclass(frozen=True)
class ExplainedNode:
    """A node that is called, or skipped.

    `reason` says why it is skipped, or why its call writes nothing. `kind` is the
    number of its kind, from 1; nodes of one kind are traced once. Calls of one `wave`,
    from 1, do not read each other's results. `wave` is `None` where nothing is left to
    compute: the call makes no new array, or other calls overwrite what it makes.
    """

    path: Path
    class_name: str
    reason: str
    kind: int | None = None
    wave: int | None = None
    writes: tuple[LeafChange, ...] = ()


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a collective call will do, as `chorax.explain` finds it.

    It prints as a table, in a notebook too; rows that differ only in the indices of
    their paths are folded into one.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     weight: jnp.ndarray
    ...     v: jnp.ndarray | None = None
    ...     def init_state(self):
    ...         return chorax.replace(self, v=jnp.zeros_like(self.weight))
    >>> net = {"a": Neuron(jnp.ones(3, "float32")), "b": eqx.nn.Identity()}
    >>> plan = chorax.explain(net, "init_state", axis_size=8, fn_if_not_exist="pass")
    >>> plan.label, plan.axis_size, plan.devices, plan.kinds, plan.waves
    ('init_state', 8, None, 1, 1)
    >>> [(node.path, node.writes[0].after.shape) for node in plan.calls]
    [(('a',), (8, 3))]
    >>> [(node.path, node.reason) for node in plan.skipped]
    [(('b',), 'has no method `init_state`')]
    >>> plan.paths, plan.bytes, [path for path, _ in plan.shared]
    (('a.v',), 96, [('a', 'weight')])

    ```
    """

    label: str
    """The name of the method or function that is called."""
    axis_size: int | None
    """The number of lanes; `None` without lanes."""
    calls: tuple[ExplainedNode, ...]
    """The nodes that are called, in the order of the calls."""
    skipped: tuple[ExplainedNode, ...]
    """The nodes that are not called, each with its `reason`."""
    paths: tuple[str, ...]
    """The dotted paths of the leaves that are written in the end."""
    bytes: int
    """The size of these leaves in all lanes."""
    devices: int | None = None
    """How many devices these bytes are divided among; `None` without a `sharding`."""
    shared: tuple[tuple[Path, jax.ShapeDtypeStruct], ...] = ()
    """The inexact arrays that stay the same in all lanes, with their paths."""

    @property
    def kinds(self) -> int:
        """How many kinds of nodes are called, each of which is traced once."""
        return len({call.kind for call in self.calls})

    @property
    def waves(self) -> int:
        """How many waves there are: the longest chain of calls that read each other's
        results."""
        return max((call.wave or 0 for call in self.calls), default=0)

    def __repr__(self) -> str:
        return "\n\n".join(table.text() for table in self._tables())

    def _repr_html_(self) -> str:
        return "".join(table.html() for table in self._tables())

    def _tables(self) -> Iterator[Table]:
        lanes = "without lanes"
        if self.axis_size is not None:
            lanes = f"in {counted(self.axis_size, 'lane')}"
        if self.devices is not None:
            lanes = f"{lanes} on {counted(self.devices, 'device')}"
        summary = (
            f"`{self.label}` {lanes}: {counted(len(self.calls), 'call')} of "
            f"{counted(self.kinds, 'kind')} in {counted(self.waves, 'wave')}, "
            f"{counted(len(self.paths), 'written leaf', 'written leaves')}, "
            f"{in_bytes(self.bytes)}"
        )
        head = ("node", "class", "kind", "wave", "writes", "before", "after", "bytes")
        rows = [row for call in self.calls for row in _rows(call)]
        yield Table(summary, head, tuple(rows))
        if self.skipped:
            rows = [Row(x.path, (x.class_name, x.reason)) for x in self.skipped]
            title = f"{counted(len(rows), 'node')} skipped"
            yield Table(title, ("node", "class", "why"), tuple(rows))
        if self.shared:
            rows = [Row(p, value_cells(x, None), size_of(x)) for p, x in self.shared]
            count = counted(len(rows), "array")
            title = f"{count} shared by all lanes: no call writes them"
            yield Table(title, ("path", "type", "shape", "bytes"), tuple(rows))


def _rows(call: ExplainedNode) -> Iterator[Row]:
    first = call.class_name, str(call.kind), str(call.wave or "-")
    if not call.writes:
        yield Row(call.path, (*first, call.reason, "", ""))
    for leaf in call.writes:
        name = dotted(leaf.path[len(call.path) :]) or "()"
        before = _cell(leaf.before, leaf.before_axis)
        after = _cell(leaf.after, leaf.after_axis)
        yield Row(call.path, (*first, name, before, after), size_of(leaf.after))


def _cell(value: Any, axis: int | None) -> str:
    return "None" if value is None else " ".join(value_cells(value, axis))


def run_explanation(target: Any, request: Request) -> Explanation:
    """Plans a call, and computes no array."""
    with request.scope():
        return _explain(target, request)


def _explain(target: Any, request: Request) -> Explanation:
    why_not = f"has no method `{request.label}`"
    if request.fn_if_not_exist == "raise":
        # The error would name one node; here all of them are listed.
        why_not = "no method: the call would raise"
        request = dataclasses.replace(request, fn_if_not_exist="pass")
    calls = select(walk_nodes(target), request)
    methods, _ = find_methods(calls)
    plan = make_plan(calls, methods)
    kept = kept_arrays(plan, calls)
    reader = _Reader(plan, calls)
    waves = {path: step.wave + 1 for step in plan.steps for path in step.paths}
    kinds: dict[int, int] = {}
    called: list[ExplainedNode] = []
    for visit in plan.visits:
        path, cls = visit.node.path, visit.node.cls
        kind = kinds.setdefault(id(visit.trace.outcome), len(kinds) + 1)
        writes = tuple(reader.changes(visit))
        reason = "" if writes else "nothing"
        if not writes and not has_rule(request.fn_name, cls):
            count = len(kept.get(path, ()))
            holds = f"no rule for {cls.__name__}, holds {counted(count, 'array')}"
            reason = holds if count else "nothing to draw"
        wave = waves.get(path)
        called.append(ExplainedNode(path, cls.__name__, reason, kind, wave, writes))
    skipped = [
        ExplainedNode(
            node.path,
            node.cls.__name__,
            "`node_to_exclude`" if index in calls.excluded else why_not,
        )
        for index, node in enumerate(calls.tree.nodes)
        if index not in methods
    ]
    written = [leaf for leaf in plan.leaves if leaf.written]
    sizes = [size_of(reader.value(x.name, x.has_lanes)[0]) or 0 for x in written]
    sharding = None if request.lanes is None else request.lanes.sharding
    return Explanation(
        request.label,
        request.size,
        tuple(called),
        tuple(skipped),
        tuple(dotted(leaf.path) for leaf in written),
        sum(sizes),
        None if sharding is None else sharding.parts,
        tuple(row for rows in kept.values() for row in rows) if request.lanes else (),
    )


class _Reader:
    """Reads values off a plan, as shapes."""

    def __init__(self, plan: Plan, calls: Calls) -> None:
        self._specs = plan.specs
        self._axes = calls.axes
        self._size = calls.request.size
        # A value that was put back where it was has the lanes it had.
        self._has_lanes: dict[tuple[Path, int | None], bool | None] = {
            (leaf.path, leaf.name): leaf.has_lanes if leaf.written else None
            for leaf in plan.leaves
        }

    def changes(self, visit: Visit) -> Iterator[LeafChange]:
        """The leaves that a call writes, whether or not others overwrite them."""
        old, new = _by_path(*visit.before), _by_path(*visit.after)
        for below in dict.fromkeys([*new, *old]):
            before, after = old.get(below), new.get(below)
            if not same_value(self._specs, before, after):
                path = (*visit.node.path, *below)
                is_batched = self._size is not None
                has_lanes = self._has_lanes.get((path, after), is_batched)
                was, was_axis = self.value(before, None)
                value, axis = self.value(after, has_lanes)
                yield LeafChange(path, was, value, was_axis, axis)

    def value(self, name: int | None, has_lanes: bool | None) -> tuple[Any, int | None]:
        """A value as a shape, and its lane axis: in front, or none; where `has_lanes`
        is `None`, the one that it has."""
        if name is None:
            return None, None
        spec = self._specs[name]
        if not isinstance(spec, ArraySpec):
            return spec.value, None
        axis = 0 if (spec.has_lanes if has_lanes is None else has_lanes) else None
        if has_lanes is None and name < len(self._axes):
            axis = self._axes[name]
        shape = list(spec.struct.shape)
        if axis is not None and self._size is not None:
            shape.insert(axis, self._size)
        return jax.ShapeDtypeStruct(tuple(shape), spec.struct.dtype), axis


def _by_path(structure: jtu.PyTreeDef, names: tuple[int, ...]) -> Mapping[Path, int]:
    return dict(zip(leaf_paths(structure), names, strict=True))
