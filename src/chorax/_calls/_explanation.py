"""What a collective call will do, told before it is made.

The call is planned as it would be for real, on shapes, and the plan is read out.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
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
from .._tree._nodes import Node, walk_nodes
from .._tree._paths import leaf_paths


@dataclasses.dataclass(frozen=True)
class LeafChange:
    """A leaf that one node's call writes.

    `before` and `after` are arrays as `jax.ShapeDtypeStruct`, with their lane axis, or
    else the values themselves; `after_axis` is the lane axis of the new one. A leaf
    that was not there, or is gone, is `None`.
    """

    path: Path
    before: Any
    after: Any
    before_axis: int | None
    after_axis: int | None

    @property
    def bytes(self) -> int:
        """The size of the new value in all lanes; 0 if it is no array."""
        return size_of(self.after) or 0


@dataclasses.dataclass(frozen=True)
class NodeCall:
    """One node's call.

    `kind` is the number of its kind, from 1; nodes of one kind are traced once. Calls
    of one `wave`, from 1, read nothing of each other. `wave` is `None` where nothing is
    left to compute: the call makes no new array, or others overwrite what it makes.
    `has_rule` is false where a function that goes by class, as `reset_parameters` does,
    has no rule for this one. `holds` is how many arrays, inexact and directly in the
    node, are left as they were, the same in all lanes.
    """

    path: Path
    class_name: str
    kind: int
    wave: int | None
    writes: tuple[LeafChange, ...]
    has_rule: bool = True
    holds: int = 0


@dataclasses.dataclass(frozen=True)
class Skipped:
    """A node that is not called, and why."""

    path: Path
    class_name: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Explanation:
    """What a collective call will do, as `chorax.explain` tells it.

    `calls` are in the order in which the nodes are called, each with its `path`,
    `class_name`, `kind`, `wave` and `writes` (leaves with `path`, `before` and
    `after`); `skipped` are the others, each with its `reason`. `paths` are the dotted
    paths of the leaves that are written in the end, and `bytes` their size in all
    lanes, which are divided among `devices` where there is a `sharding`. `shared` are
    the inexact arrays that stay the same in all lanes, by path. It prints as a table,
    in a notebook too; rows that differ in the indices of their path alone are folded
    into the first.
    """

    label: str
    axis_size: int | None
    calls: tuple[NodeCall, ...]
    skipped: tuple[Skipped, ...]
    paths: tuple[str, ...]
    bytes: int
    devices: int | None = None
    shared: tuple[tuple[Path, jax.ShapeDtypeStruct], ...] = ()

    @property
    def kinds(self) -> int:
        """How many kinds of nodes are called, each of which is traced once."""
        return len({call.kind for call in self.calls})

    @property
    def waves(self) -> int:
        """How many calls have to wait for one another at most."""
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
        yield Table(summary, head, tuple(self._rows()))
        if self.skipped:
            rows = tuple(
                Row(each.path, (each.class_name, each.reason)) for each in self.skipped
            )
            head = ("node", "class", "why")
            yield Table(f"{counted(len(rows), 'node')} skipped", head, rows)
        if self.shared:
            rows = tuple(
                Row(path, value_cells(struct, None), size_of(struct))
                for path, struct in self.shared
            )
            count = counted(len(rows), "array")
            title = f"{count} shared by all lanes: no call writes them"
            yield Table(title, ("path", "type", "shape", "bytes"), rows)

    def _rows(self) -> Iterator[Row]:
        for call in self.calls:
            own = call.class_name, str(call.kind), str(call.wave or "-")
            if not call.writes:
                yield Row(call.path, (*own, _nothing(call), "", ""))
            for leaf in call.writes:
                name = dotted(leaf.path[len(call.path) :]) or "()"
                before = _cell(leaf.before, leaf.before_axis)
                after = _cell(leaf.after, leaf.after_axis)
                size = size_of(leaf.after)
                yield Row(call.path, (*own, name, before, after), size)


def run_explanation(target: Any, request: Request) -> Explanation:
    """Plans a call, and makes no array."""
    with request.scope():
        return _explain(target, request)


def _explain(target: Any, request: Request) -> Explanation:
    calls = select(walk_nodes(target), request)
    methods, _ = find_methods(calls)
    plan = make_plan(calls, methods)
    kept = kept_arrays(plan, calls)
    reader = _Reader(plan, calls, kept)
    sharding = None if request.lanes is None else request.lanes.sharding
    skipped = [
        _skipped(node, index in calls.excluded, request.label)
        for index, node in enumerate(calls.tree.nodes)
        if index not in methods
    ]
    return Explanation(
        request.label,
        request.size,
        tuple(reader.calls()),
        tuple(skipped),
        tuple(dotted(leaf.path) for leaf in plan.leaves if leaf.written),
        reader.bytes(),
        sharding.parts if sharding is not None else None,
        tuple(row for rows in kept.values() for row in rows) if request.lanes else (),
    )


def _skipped(node: Node, is_excluded: bool, label: str) -> Skipped:
    reason = "`node_to_exclude`" if is_excluded else f"has no method `{label}`"
    return Skipped(node.path, node.cls.__name__, reason)


class _Reader:
    """Reads a plan in words of shapes."""

    def __init__(
        self, plan: Plan, calls: Calls, kept: Mapping[Path, Sequence[Any]]
    ) -> None:
        self._plan = plan
        self._kept = kept
        self._axes = calls.axes
        self._size = calls.request.size
        self._function = calls.request.fn_name
        # What was put back where it stood is as it was.
        self._has_lanes = {
            (leaf.path, leaf.name): leaf.has_lanes if leaf.written else None
            for leaf in plan.leaves
        }
        self._wave: dict[Path, int] = {
            path: step.wave + 1 for step in plan.steps for path in step.paths
        }

    def calls(self) -> Iterator[NodeCall]:
        """What each call does."""
        kinds: dict[int, int] = {}
        for visit in self._plan.visits:
            path, cls = visit.node.path, visit.node.cls
            kind = kinds.setdefault(id(visit.trace.outcome), len(kinds) + 1)
            writes = tuple(self._changes(visit))
            name = cls.__name__
            rest = has_rule(self._function, cls), len(self._kept.get(path, ()))
            yield NodeCall(path, name, kind, self._wave.get(path), writes, *rest)

    def bytes(self) -> int:
        """The size of all that is written in the end."""
        every = (leaf for leaf in self._plan.leaves if leaf.written)
        values = [self._value(leaf.name, leaf.has_lanes)[0] for leaf in every]
        return sum(size_of(x) or 0 for x in values)

    def _changes(self, visit: Visit) -> Iterator[LeafChange]:
        path = visit.node.path
        old, new = _by_path(*visit.before), _by_path(*visit.after)
        for below in dict.fromkeys([*new, *old]):
            before, after = old.get(below), new.get(below)
            if same_value(self._plan.specs, before, after):
                continue
            where = (*path, *below)
            was, was_axis = None, None
            if before is not None:
                was, was_axis = self._value(before, None)
            value, axis = None, None
            if after is not None:
                in_lanes = self._has_lanes.get((where, after), self._size is not None)
                value, axis = self._value(after, in_lanes)
            yield LeafChange(where, was, value, was_axis, axis)

    def _value(self, name: int, in_lanes: bool | None) -> tuple[Any, int | None]:
        """A value as a shape, and its lane axis; where `in_lanes` is `None`, as it is
        now, and else with its lanes in front or without them."""
        spec = self._plan.specs[name]
        if not isinstance(spec, ArraySpec):
            return spec.value, None
        axis = 0 if spec.has_lanes else None
        if in_lanes is not None:
            axis = 0 if in_lanes else None
        elif name < len(self._axes):
            axis = self._axes[name]
        shape = list(spec.struct.shape)
        if axis is not None and self._size is not None:
            shape.insert(axis, self._size)
        return jax.ShapeDtypeStruct(tuple(shape), spec.struct.dtype), axis


def _nothing(call: NodeCall) -> str:
    if call.has_rule:
        return "nothing"
    if not call.holds:
        return "nothing to draw"
    return f"no rule for {call.class_name}, holds {counted(call.holds, 'array')}"


def _by_path(structure: jtu.PyTreeDef, names: Sequence[int]) -> Mapping[Path, int]:
    return dict(zip(leaf_paths(structure), names, strict=True))


def _cell(value: Any, axis: int | None) -> str:
    if value is None:
        return "None"
    kind, form = value_cells(value, axis)
    return f"{kind} {form}"
