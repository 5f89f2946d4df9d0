"""Which nodes run together, and which arrays are taken apart for it.

All of it is known before the first value is: so it is found out once for a plan, and
running is a list of calls of compiled functions.

Nodes run together by stacking what they read, and what comes of it is taken apart
again. Both copy. What they save, outside of a `jit`, is a call a node, some 20 µs;
inside of one, that the program grows with the nodes, by tenths of a second of
compilation each. So a node goes alone once its copies cost more than that.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from ._bundle import bundle
from ._keys import path_table
from ._kind import ArraySpec, Lanes, Spec
from ._layout import Layout
from ._plan import Plan
from ._schedule import KEY, Step


# The most bytes a node may read and write to be copied, outside of a `jit` and inside.
_EAGER_BYTES = 1 << 17
_JIT_BYTES = 1 << 20

# The most arrays that go into and out of one program for several steps, at some 10 ms
# of compilation each, and the most steps.
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
    """An input that an earlier step has left stacked."""

    step: int
    column: int


@dataclasses.dataclass(frozen=True)
class Copied:
    """An input that has to be stacked, by name."""

    names: tuple[int, ...]


Input: TypeAlias = Keys | Single | Column | Copied


@dataclasses.dataclass(frozen=True, eq=False)
class Arranged:
    """A step, and how its inputs lie."""

    step: Step
    layout: Layout

    @functools.cached_property
    def program(self) -> Callable[..., tuple[Any, ...]]:
        """The compiled function of the inputs."""
        return self.step.trace.computation.program(self.layout)


@dataclasses.dataclass(frozen=True, eq=False)
class Together(Arranged):
    """A step whose nodes run as one.

    `apart` are the outputs that are then taken apart into values, by their names.
    """

    inputs: tuple[Input, ...]
    table: Any
    apart: Mapping[int, tuple[int, ...]]


@dataclasses.dataclass(frozen=True, eq=False)
class Alone(Arranged):
    """A step whose nodes run one by one."""


@dataclasses.dataclass(frozen=True, eq=False)
class Bundle:
    """Small steps of one wave that run as one; the inputs are those of each step."""

    members: tuple[Arranged, ...]
    inputs: tuple[tuple[Input, ...], ...]
    table: Any

    @functools.cached_property
    def program(self) -> Callable[..., Sequence[Any]]:
        """The compiled function of keys, table and inputs."""
        return bundle(
            tuple(
                (each.step.trace.computation, each.layout, Keys() in inputs)
                for each, inputs in zip(self.members, self.inputs, strict=True)
            )
        )


@dataclasses.dataclass(frozen=True, eq=False)
class Script:
    """The steps as they run.

    `table` is what the keys of the nodes that go alone are made from, in their order,
    so many at a time.
    """

    steps: tuple[Together | Alone | Bundle, ...]
    table: Any
    keys_at_once: int
    lanes_first: bool
    in_jit: bool


def arrange(plan: Plan, lanes: Lanes | None, in_jit: bool, key_bytes: int) -> Script:
    """Decides for each step how it runs; `key_bytes` are those of all lanes' keys."""
    # In front of the nodes, lanes may lie on several devices. Behind them, what belongs
    # to a node is in one piece.
    lanes_first = in_jit and lanes is not None
    steps: list[Together | Alone | Bundle] = []
    small: list[tuple[Arranged, tuple[Input, ...]]] = []
    # Where a step has left what stacked: by the names of the whole column.
    columns: dict[tuple[int, ...], Column] = {}
    wanted = {*plan.names, *(name for each in plan.aux for name in each.names)}
    for step in plan.steps:
        axes = _lane_axes(step, plan, lanes)
        inputs, copied = _inputs(step, plan, columns, lanes)
        count, has = len(step.paths), step.out_lanes
        wanted.update(name for x in inputs for name in _names(x))
        if not in_jit and _is_small(step, inputs, copied):
            if small and not _go_together(small, step):
                steps.append(_bundle(small))
                small = []
            nodes = None if count == 1 else count
            node_axes = tuple(_node_axis(x, steps, lanes_first) for x in inputs)
            layout = Layout(nodes, node_axes, axes, lanes, has)
            small.append((Arranged(step, layout), inputs))
            continue
        if small:
            steps.append(_bundle(small))
            small = []
        # To stack is a program for each number of nodes, as only a `jit` is too.
        is_copied = any(isinstance(x, Copied) for x in inputs)
        limit = _JIT_BYTES if in_jit else _EAGER_BYTES
        if count == 1 or copied > limit or (is_copied and not in_jit):
            layout = Layout(None, (), axes, lanes, step.out_lanes)
            steps.append(Alone(step, layout))
            wanted.update(name for names in step.inputs for name in names)
            continue
        node_axes = tuple(_node_axis(x, steps, lanes_first) for x in inputs)
        layout = Layout(count, node_axes, axes, lanes, has, lanes_first, halves=in_jit)
        table = path_table(step.paths) if Keys() in inputs else None
        for index, names in enumerate(zip(*step.outputs, strict=True)):
            columns[names] = Column(len(steps), index)
        steps.append(Together(step, layout, inputs, table, {}))
    if small:
        steps.append(_bundle(small))
    alone = [
        path
        for each in steps
        if isinstance(each, Alone) and KEY in each.step.inputs[0]
        for path in each.step.paths
    ]
    whole = len(alone) if in_jit else max(1, _EAGER_BYTES // max(1, key_bytes))
    return Script(
        tuple(_take_apart(each, wanted) for each in steps),
        path_table(alone),
        min(whole, len(alone)),
        lanes_first,
        in_jit,
    )


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
    return copied <= _EAGER_BYTES and _count(step) <= _ARRAYS_IN_ONE


def _count(step: Step) -> int:
    """How many arrays go into and out of a step, node by node."""
    return len(step.paths) * (len(step.inputs[0]) + len(step.outputs[0]))


def _go_together(small: Sequence[tuple[Arranged, Any]], step: Step) -> bool:
    first = small[0][0].step
    arrays = _count(step) + sum(_count(each.step) for each, _ in small)
    is_room = len(small) < _STEPS_IN_ONE and arrays <= _ARRAYS_IN_ONE
    return step.wave == first.wave and is_room


def _bundle(small: Sequence[tuple[Arranged, tuple[Input, ...]]]) -> Bundle:
    paths = [
        path for each, inputs in small if Keys() in inputs for path in each.step.paths
    ]
    members = tuple(each for each, _ in small)
    return Bundle(members, tuple(inputs for _, inputs in small), path_table(paths))


def _lane_axes(step: Step, plan: Plan, lanes: Lanes | None) -> tuple[int | None, ...]:
    def axis(name: int) -> int | None:
        if name == KEY:
            return None if lanes is None else 0
        spec = plan.specs[name]
        return spec.axis if isinstance(spec, ArraySpec) else None

    return tuple(axis(name) for name in step.inputs[0])


def _node_axis(
    x: Input, steps: Sequence[Together | Alone | Bundle], lanes_first: bool
) -> int | None:
    match x:
        case Keys():
            return int(lanes_first)
        case Single():
            return None
        case Copied():
            return 0
        case Column(index, column):
            earlier = steps[index]
            assert isinstance(earlier, Together)
            return earlier.layout.out_axes[column]


def _names(x: Input) -> tuple[int, ...]:
    """The values that an input reads one by one."""
    match x:
        case Single(name):
            return (name,)
        case Copied(names):
            return names
        case _:
            return ()


def _take_apart(
    each: Together | Alone | Bundle, wanted: set[int]
) -> Together | Alone | Bundle:
    """The step with those outputs that somebody reads one by one."""
    if not isinstance(each, Together):
        return each
    columns = enumerate(zip(*each.step.outputs, strict=True))
    apart = {i: names for i, names in columns if not wanted.isdisjoint(names)}
    return dataclasses.replace(each, apart=apart)


def _read_bytes(spec: Spec, width: int) -> int:
    if not isinstance(spec, ArraySpec):
        return 0
    return _bytes(spec.struct, 1 if spec.axis is None else width)


def _bytes(struct: Any, width: int) -> int:
    return math.prod(struct.shape) * struct.dtype.itemsize * width
