"""Which nodes run together, and which arrays are taken apart for it.

All of it is known before the first value is: so it is found out once for a plan, and
running is a list of calls of compiled programs.

Nodes run together by stacking what they read, and what comes of it is taken apart
again. Both copy. What they save, outside of a `jit`, is a call a node, some 20 µs;
inside of one, that the program grows with the nodes, by tenths of a second of
compilation each. So a node goes alone once its copies cost more than that.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from ._cheaply import Compiled, LITTLE
from ._keys import path_table
from ._kind import ArraySpec, Lanes, Spec
from ._layout import Layout
from ._paths import Path
from ._plan import Plan
from ._program import Member, program
from ._schedule import KEY, Step


# The most bytes a node may read and write to be copied, outside of a `jit` and inside;
# and where it is the same program that copies, which merges the copies with the rest.
_EAGER_BYTES = 1 << 17
_JIT_BYTES = 1 << 20
_SMALL_BYTES = 1 << 21
# Of more bytes than that a program returns each node's outputs, and not stacks, out of
# which they are copied again: that takes longer to compile, and less long to run.
_APART_BYTES = 1 << 20

# The most arrays that go into and out of one program node by node, at some 10 ms of
# compilation each, and the most steps.
_ARRAYS_IN_ONE = 48
_STEPS_IN_ONE = 16


@dataclasses.dataclass(frozen=True)
class Keys:
    """The input that is the keys of the nodes."""


@dataclasses.dataclass(frozen=True)
class Single:
    """An input that all nodes read, by name."""

    name: int


@dataclasses.dataclass(frozen=True)
class Column:
    """An input that an earlier step has left stacked: which output of which step, and
    where its node axis is."""

    step: Step
    index: int
    axis: int


@dataclasses.dataclass(frozen=True)
class Copied:
    """An input that has to be stacked, by name."""

    names: tuple[int, ...]


Input: TypeAlias = Keys | Single | Column | Copied


@dataclasses.dataclass(frozen=True, eq=False)
class Arranged:
    """A step, how its inputs lie, and where they come from."""

    step: Step
    layout: Layout
    inputs: tuple[Input, ...]

    @property
    def work(self) -> int:
        """How much it computes, all nodes in all lanes."""
        lanes = self.layout.lanes
        width = 1 if lanes is None else lanes.size
        return self.step.trace.computation.work * width * (self.layout.nodes or 1)

    @property
    def member(self) -> Member:
        """The step as a member of a program."""
        return Member(self.step.trace.computation, self.layout, self.has_key)

    @property
    def has_key(self) -> bool:
        """Whether it reads the nodes' keys."""
        return KEY in self.step.inputs[0]


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Steps that are one program; the keys of their nodes begin at `start` among those
    of all nodes."""

    members: tuple[Arranged, ...]
    start: int

    @functools.cached_property
    def program(self) -> Compiled:
        """The compiled function of keys, their start and inputs."""
        return program(tuple(each.member for each in self.members))

    @functools.cached_property
    def is_little(self) -> bool:
        """Whether it computes so little that it is compiled cheaply."""
        return sum(each.work for each in self.members) <= LITTLE


@dataclasses.dataclass(frozen=True, eq=False)
class Together(Group):
    """Steps of one wave whose nodes run at once.

    `apart` are, for each step that leaves stacks, the outputs that are then taken apart
    into values, by their names.
    """

    apart: tuple[Mapping[int, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Alone(Group):
    """A step whose nodes run one by one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """The steps as they run; the keys of nodes are made from the `table`."""

    steps: tuple[Together | Alone, ...]
    table: Any
    lanes_first: bool
    in_jit: bool

    @functools.cached_property
    def takes_options(self) -> bool:
        """Whether no trace holds a value of a transformation around the call."""
        members = [member for each in self.steps for member in each.members]
        is_closed = all(member.step.trace.computation.lasts for member in members)
        return is_closed and not self.in_jit

    @functools.cached_property
    def padded(self) -> Any:
        """The table for a rounded number of nodes: calls on others share a program."""
        spare = (1 << (len(self.table) - 1).bit_length()) - len(self.table)
        return np.pad(self.table, ((0, spare), (0, 0)))

    @functools.cached_property
    def most_rows(self) -> int:
        """How many rows are taken out of a stack at most."""
        apart = [
            x for each in self.steps if isinstance(each, Together) for x in each.apart
        ]
        return max((len(names) for x in apart for names in x.values()), default=0)


def arrange(plan: Plan, lanes: Lanes | None, in_jit: bool, stacks: bool) -> Script:
    """Decides for each step how it runs; `stacks` is whether keys may be stacked."""
    # In front of the nodes, lanes may lie on several devices. Behind them, what belongs
    # to a node is in one piece.
    lanes_first = in_jit and lanes is not None
    groups: list[list[Arranged]] = []
    # Where a step has left what stacked: by the names of the whole column.
    columns: dict[tuple[int, ...], Column] = {}
    wanted = {*plan.names, *(name for each in plan.aux for name in each.names)}
    for step in plan.steps:
        inputs, copied = _inputs(step, plan, columns, lanes)
        is_one = len(step.paths) == 1 or (Keys() in inputs and not stacks)
        is_one = is_one or (in_jit and step.trace.computation.is_simple)
        is_small = not in_jit and _is_small(step, inputs, copied)
        is_small = is_small and (stacks or len(step.paths) == 1)
        is_copied = any(isinstance(x, Copied) for x in inputs)
        # To stack is a program for each number of nodes, as a `jit` is and a small one.
        fits = copied <= (_JIT_BYTES if in_jit else _EAGER_BYTES)
        if is_one or not (is_small or (fits and (in_jit or not is_copied))):
            inputs = tuple(_one_by_one(names) for names in step.inputs[0])
            nodes = None
        else:
            nodes = len(step.paths)
        layout = Layout(
            nodes,
            tuple(_node_axis(x, lanes_first) for x in inputs),
            _lane_axes(step, plan, lanes),
            lanes,
            step.out_lanes,
            lanes_first,
            halves=in_jit and nodes is not None,
            apart=is_small and (nodes is None or copied * nodes > _APART_BYTES),
        )
        arranged = Arranged(step, layout, inputs)
        if nodes is not None and not layout.apart:
            for index, names in enumerate(zip(*step.outputs, strict=True)):
                columns[names] = Column(step, index, layout.out_axes[index])
        wanted.update(
            name for names in _singles(arranged) for name in names if name != KEY
        )
        if is_small and groups and _go_together(groups[-1], step):
            groups[-1].append(arranged)
        else:
            groups.append([arranged])
    paths: list[Path] = []
    steps: list[Together | Alone] = []
    for each in groups:
        steps.append(_group(tuple(each), len(paths), wanted))
        keyed = [x.step for x in each if x.has_key]
        paths += [path for step in keyed for path in step.paths]
    return Script(tuple(steps), path_table(paths), lanes_first, in_jit)


def _inputs(
    step: Step,
    plan: Plan,
    columns: Mapping[tuple[int, ...], Column],
    lanes: Lanes | None,
) -> tuple[tuple[Input, ...], int]:
    """Where the inputs of all nodes at once come from, and the bytes a node that are
    copied to run them so."""
    width = 1 if lanes is None else lanes.size
    made = zip(step.trace.outputs, step.out_lanes, strict=True)
    copied = sum(_bytes(struct, width if has else 1) for struct, has in made)
    inputs: list[Input] = []
    rows: list[tuple[int, ...]] = list(zip(*step.inputs, strict=True))
    for names in rows:
        if names[0] == KEY:
            inputs.append(Keys())
        elif all(name == names[0] for name in names):
            inputs.append(Single(names[0]))
        elif names in columns:
            inputs.append(columns[names])
        else:
            copied += _read_bytes(plan.specs[names[0]], width)
            inputs.append(Copied(names))
    return tuple(inputs), copied


def _is_small(step: Step, inputs: Sequence[Input], copied: int) -> bool:
    """Whether a step may be one of several in a program."""
    computation = step.trace.computation
    if not computation.is_closed or computation.has_effects:
        return False
    if len(step.paths) == 1:
        return True
    if any(isinstance(x, Column) for x in inputs):
        return False
    return copied <= _SMALL_BYTES and _count(step) <= _ARRAYS_IN_ONE


def _count(step: Step) -> int:
    """How many arrays go into and out of a step, node by node."""
    return len(step.paths) * (len(step.inputs[0]) + len(step.outputs[0]))


def _go_together(group: Sequence[Arranged], step: Step) -> bool:
    arrays = _count(step) + sum(_count(each.step) for each in group)
    is_room = len(group) < _STEPS_IN_ONE and arrays <= _ARRAYS_IN_ONE
    first = group[0].step
    are_small = all(each.layout.apart for each in group) and step.wave == first.wave
    return are_small and is_room and set(step.places) == set(first.places)


def _group(
    members: tuple[Arranged, ...], start: int, wanted: set[int]
) -> Together | Alone:
    first = members[0]
    if len(members) == 1 and first.layout.nodes is None and len(first.step.paths) > 1:
        return Alone((first,), start)
    return Together(members, start, tuple(_apart(each, wanted) for each in members))


def _apart(each: Arranged, wanted: set[int]) -> Mapping[int, tuple[int, ...]]:
    """The outputs that a step leaves stacked and somebody reads one by one."""
    if each.layout.nodes is None or each.layout.apart:
        return {}
    columns = enumerate(zip(*each.step.outputs, strict=True))
    return {i: names for i, names in columns if not wanted.isdisjoint(names)}


def _one_by_one(name: int) -> Input:
    return Keys() if name == KEY else Single(name)


def _singles(each: Arranged) -> Sequence[tuple[int, ...]]:
    """The values that a step reads one by one."""
    if each.layout.nodes is None:
        return each.step.inputs
    return [
        x.names if isinstance(x, Copied) else (x.name,)
        for x in each.inputs
        if isinstance(x, Copied | Single)
    ]


def _lane_axes(step: Step, plan: Plan, lanes: Lanes | None) -> tuple[int | None, ...]:
    def axis(name: int) -> int | None:
        if name == KEY:
            return None if lanes is None else 0
        spec = plan.specs[name]
        return spec.axis if isinstance(spec, ArraySpec) else None

    return tuple(axis(name) for name in step.inputs[0])


def _node_axis(x: Input, lanes_first: bool) -> int | None:
    match x:
        case Keys():
            return int(lanes_first)
        case Single():
            return None
        case Copied():
            return 0
        case Column():
            return x.axis


def _read_bytes(spec: Spec, width: int) -> int:
    if not isinstance(spec, ArraySpec):
        return 0
    return _bytes(spec.struct, 1 if spec.axis is None else width)


def _bytes(struct: Any, width: int) -> int:
    return math.prod(struct.shape) * struct.dtype.itemsize * width
