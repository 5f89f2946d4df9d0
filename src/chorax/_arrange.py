"""Which nodes run together, and which arrays are taken apart for it.

All of it is known before the first value is: so it is found out once for a plan, and
running is a list of calls of compiled functions.

Nodes run together by stacking what they read, and what comes of it is taken apart
again. Both copy. What they save, outside of a `jit`, is a call a node, some 20 µs;
inside of one, that the program grows with the nodes, by tenths of a second of
compilation each. So a node goes alone once its copies cost more than that.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from ._keys import path_table
from ._kind import ArraySpec, Lanes, Spec
from ._layout import Layout
from ._plan import Plan
from ._schedule import KEY, Step


# The most bytes a node may read and write to be copied, outside of a `jit` and inside.
_EAGER_BYTES = 1 << 17
_JIT_BYTES = 1 << 20

# The most arrays that a step's own program takes apart, which saves calls and stacks at
# some 10 ms of compilation an array; beyond, a program for all steps does it.
_ARRAYS_IN_ONE = 32


@dataclasses.dataclass(frozen=True)
class Keys:
    """The input that is the keys of the nodes."""


@dataclasses.dataclass(frozen=True)
class Single:
    """An input that all nodes read, by name."""

    name: int


@dataclasses.dataclass(frozen=True)
class Column:
    """An input that an earlier step has left stacked."""

    step: int
    column: int


@dataclasses.dataclass(frozen=True)
class Copied:
    """An input that has to be stacked, by name."""

    names: tuple[int, ...]


Input: TypeAlias = Keys | Single | Column | Copied


@dataclasses.dataclass(frozen=True, eq=False)
class Together:
    """A step whose nodes run as one.

    `apart` are the outputs that are then taken apart into values, by their names.
    """

    step: Step
    layout: Layout
    inputs: tuple[Input, ...]
    table: Any
    apart: Mapping[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Alone:
    """A step whose nodes run one by one."""

    step: Step
    layout: Layout


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """The steps as they run.

    `table` is what the keys of the nodes that go alone are made from, in their order,
    so many at a time.
    """

    steps: tuple[Together | Alone, ...]
    table: Any
    keys_at_once: int
    lanes_first: bool
    in_jit: bool


def arrange(plan: Plan, lanes: Lanes | None, in_jit: bool, key_bytes: int) -> Script:
    """Decides for each step how it runs; `key_bytes` are those of all lanes' keys."""
    # In front of the nodes, lanes may lie on several devices. Behind them, what belongs
    # to a node is in one piece.
    lanes_first = in_jit and lanes is not None
    steps: list[Together | Alone] = []
    # Where a step has left what stacked: by the names of the whole column.
    columns: dict[tuple[int, ...], Column] = {}
    wanted = {*plan.names, *(name for each in plan.aux for name in each.names)}
    for step in plan.steps:
        inputs = _together(step, plan, columns, lanes, in_jit)
        axes = _lane_axes(step, plan, lanes)
        if inputs is None:
            layout = Layout(None, (), axes, lanes, step.out_lanes)
            steps.append(Alone(step, layout))
            wanted.update(name for names in step.inputs for name in names)
            continue
        node_axes = tuple(_node_axis(x, steps, lanes_first) for x in inputs)
        count, has = len(step.paths), step.out_lanes
        layout = Layout(count, node_axes, axes, lanes, has, lanes_first, halves=in_jit)
        table = path_table(step.paths) if Keys() in inputs else None
        for index, names in enumerate(zip(*step.outputs, strict=True)):
            columns[names] = Column(len(steps), index)
        steps.append(Together(step, layout, inputs, table, {}))
        for x in inputs:
            wanted.update(x.names if isinstance(x, Copied) else ())
            wanted.update((x.name,) if isinstance(x, Single) else ())
    alone = [
        path
        for each in steps
        if isinstance(each, Alone) and KEY in each.step.inputs[0]
        for path in each.step.paths
    ]
    whole = len(alone) if in_jit else max(1, _EAGER_BYTES // max(1, key_bytes))
    reused = {column.step for each in steps for column in _columns_of(each)}
    return Script(
        tuple(
            _take_apart(each, wanted, in_one=not in_jit and index not in reused)
            for index, each in enumerate(steps)
        ),
        path_table(alone),
        min(whole, len(alone)),
        lanes_first,
        in_jit,
    )


def _together(
    step: Step,
    plan: Plan,
    columns: Mapping[tuple[int, ...], Column],
    lanes: Lanes | None,
    in_jit: bool,
) -> tuple[Input, ...] | None:
    """Where the inputs of all nodes at once come from; `None` to go one by one."""
    if len(step.paths) == 1:
        return None
    width = 1 if lanes is None else lanes.size
    made = zip(step.trace.outputs, step.out_lanes, strict=True)
    copied = sum(_bytes(struct, width if has else 1) for struct, has in made)
    inputs: list[Input] = []
    for names in zip(*step.inputs, strict=True):
        if names[0] == KEY:
            inputs.append(Keys())
        elif all(name == names[0] for name in names):
            inputs.append(Single(names[0]))
        elif names in columns:
            inputs.append(columns[names])
        else:
            # To stack is a program for each number of nodes, as only a `jit` is too.
            if not in_jit:
                return None
            spec: Spec = plan.specs[names[0]]
            if isinstance(spec, ArraySpec):
                copied += _bytes(spec.struct, 1 if spec.axis is None else width)
            inputs.append(Copied(names))
    return tuple(inputs) if copied <= (_JIT_BYTES if in_jit else _EAGER_BYTES) else None


def _lane_axes(step: Step, plan: Plan, lanes: Lanes | None) -> tuple[int | None, ...]:
    def axis(name: int) -> int | None:
        if name == KEY:
            return None if lanes is None else 0
        spec = plan.specs[name]
        return spec.axis if isinstance(spec, ArraySpec) else None

    return tuple(axis(name) for name in step.inputs[0])


def _node_axis(
    x: Input, steps: Sequence[Together | Alone], lanes_first: bool
) -> int | None:
    match x:
        case Keys():
            return int(lanes_first)
        case Single():
            return None
        case Copied():
            return 0
        case Column(index, column):
            return steps[index].layout.out_axes[column]


def _columns_of(each: Together | Alone) -> list[Column]:
    inputs = each.inputs if isinstance(each, Together) else ()
    return [x for x in inputs if isinstance(x, Column)]


def _take_apart(
    each: Together | Alone, wanted: set[int], in_one: bool
) -> Together | Alone:
    """The step with those outputs that somebody reads one by one; `in_one` if its own
    program may take them apart."""
    if isinstance(each, Alone):
        return each
    names = [name for names in each.step.outputs for name in names]
    if in_one and len(names) <= _ARRAYS_IN_ONE:
        return dataclasses.replace(
            each, layout=dataclasses.replace(each.layout, apart=True)
        )
    columns = enumerate(zip(*each.step.outputs, strict=True))
    apart = {i: names for i, names in columns if not wanted.isdisjoint(names)}
    return dataclasses.replace(each, apart=apart)


def _bytes(struct: Any, width: int) -> int:
    return math.prod(struct.shape) * struct.dtype.itemsize * width
