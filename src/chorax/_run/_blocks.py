"""Which nodes run stacked: the steps of a plan as blocks.

A block holds the nodes of a step that run as one: all of them, stacked, or a single
one. Stacking copies what nodes read and what they write. Outside of a `jit` it saves
one call of a program per node, 20 µs; inside of one it keeps the program from growing
with the nodes, by tenths of a second of compilation each. So nodes run one by one where
the copies cost more than that.

Outside of a `jit` a program runs one block, or several where many kinds have one node
each: 400 such kinds then compile, and run, in two thirds of the time.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._plan._computation import Computation
from .._plan._kind import ArraySpec, Lanes
from .._plan._planner import Plan
from .._plan._schedule import KEY, Step
from .._plan._work import LITTLE
from .._text._places import Path
from .._tree._keys import path_table
from ._compile import Compiled
from ._layout import Layout, over_nodes


# Nodes are stacked if at most so many bytes per node are copied.
_BYTES = 1 << 20
# The most arrays that one program outside of a `jit` stacks or takes for several kinds:
# each costs 10 ms to compile, anew for another number of them.
_ARRAYS = 48
# The most kinds that one program runs.
_KINDS = 16


@dataclasses.dataclass(frozen=True, eq=False)
class Block:
    """Nodes of a step that run as one.

    `inputs` are names of values: one that all nodes read, or one per node, which are
    stacked; `KEY` stands for the nodes' keys, which begin at `start` among those of all
    nodes. `outputs` are, by index of the output, the names of values that are used.
    """

    step: Step
    paths: tuple[Path, ...]
    inputs: tuple[tuple[int, ...], ...]
    outputs: Mapping[int, tuple[int, ...]]
    layout: Layout
    start: Any

    @functools.cached_property
    def work(self) -> int:
        """How much it computes."""
        lanes = self.layout.lanes
        width = 1 if lanes is None else lanes.size
        return self.step.trace.computation.work * width * len(self.paths)


@dataclasses.dataclass(frozen=True, eq=False)
class Group:
    """Blocks that one program runs."""

    blocks: tuple[Block, ...]

    @functools.cached_property
    def is_little(self) -> bool:
        """Whether it computes so little that it is compiled cheaply."""
        return sum(block.work for block in self.blocks) <= LITTLE

    @functools.cached_property
    def program(self) -> Compiled:
        """The compiled function of all keys and, for each block, `start` and inputs."""
        # Kept by a computation, so that nothing else keeps what is compiled, some MB,
        # and the arrays that a computation may hold.
        parts = tuple((x.step.trace.computation, x.layout) for x in self.blocks)
        return parts[0][0].remember(_compile, parts)


def _compile(parts: tuple[tuple[Computation, Layout], ...]) -> Compiled:
    def run(keys: Any, *rows: tuple[Any, Sequence[Any]]) -> list[tuple[Any, ...]]:
        pairs = zip(parts, rows, strict=True)
        return [_run_block(*part, keys, *row) for part, row in pairs]

    return Compiled(run)


def _run_block(
    computation: Computation, layout: Layout, keys: Any, start: Any, inputs: Any
) -> tuple[Any, ...]:
    own, axis = None, int(layout.lanes is not None)
    if layout.has_key:
        own = jax.lax.dynamic_slice_in_dim(keys, start, layout.nodes or 1, axis)
        own = own if layout.nodes else jnp.squeeze(own, axis)
    pairs = zip(inputs, layout.in_lanes, strict=True)
    arrays = [own if x is None else _stacked(x, has) for x, has in pairs]
    return over_nodes(computation, layout, arrays)


def _stacked(x: Any, has_lanes: bool) -> Any:
    if not isinstance(x, tuple):
        return x
    return jnp.stack(cast("tuple[Any, ...]", x), int(has_lanes))


@dataclasses.dataclass(frozen=True, eq=False)
class Blocks:
    """The steps as they run; `table` is what the keys of nodes are made from.

    `program` is what many devices run; it is `None` on one device.
    """

    groups: tuple[Group, ...]
    table: Any
    in_jit: bool
    program: Callable[..., Any] | None = None

    @functools.cached_property
    def takes_options(self) -> bool:
        """Whether no trace holds a value of a transformation around the call."""
        blocks = [block for group in self.groups for block in group.blocks]
        return not self.in_jit and all(x.step.trace.computation.lasts for x in blocks)

    @functools.cached_property
    def most_rows(self) -> int:
        """The most rows that are taken out of a stack."""
        blocks = [block for group in self.groups for block in group.blocks]
        return max((block.layout.nodes or 0 for block in blocks), default=0)

    @functools.cached_property
    def padded(self) -> Any:
        """The table for a rounded number of nodes, so that calls share a program."""
        spare = (1 << (len(self.table) - 1).bit_length()) - len(self.table)
        return np.pad(self.table, ((0, spare), (0, 0)))


def make_blocks(plan: Plan, lanes: Lanes | None, in_jit: bool, stacks: bool) -> Blocks:
    """Decides for each step how it runs; `stacks` is whether keys may be stacked."""
    groups: list[list[Block]] = []
    keyed: list[Path] = []
    read = {*(leaf.name for leaf in plan.leaves)}
    read.update(name for _, names in plan.aux.values() for name in names)
    read.update(name for step in plan.steps for row in step.inputs for name in row)
    for step in plan.steps:
        count = len(step.paths)
        inputs = [_once(names) for names in zip(*step.inputs, strict=True)]
        stackable = count > 1 and (stacks or (KEY,) not in inputs)
        width = 1
        if stackable and _pays(step, inputs, plan, lanes, in_jit):
            width = count
        for start in range(0, count, width):
            rows = slice(start, start + width)
            block = _block(step, rows, lanes, read, len(keyed), in_jit)
            keyed += block.paths if block.layout.has_key else ()
            if groups and not in_jit and _go_together(groups[-1], step):
                groups[-1].append(block)
            else:
                groups.append([block])
    made = tuple(Group(tuple(blocks)) for blocks in groups)
    return Blocks(made, path_table(keyed), in_jit)


def _go_together(group: Sequence[Block], step: Step) -> bool:
    """Whether one program runs a further step besides: all steps have one node, are of
    one wave and in the same places, hold no arrays and have no effects."""
    steps = [*(block.step for block in group), step]
    first = group[0].step
    return (
        all(len(each.paths) == 1 for each in steps)
        and all(each.trace.computation.is_pure for each in steps)
        and step.wave == first.wave
        and set(step.places) == set(first.places)
        and len(steps) <= _KINDS
        and sum(map(_count, steps)) <= _ARRAYS
    )


def _count(step: Step) -> int:
    """How many arrays a step reads and writes."""
    return len(step.paths) * (len(step.inputs[0]) + len(step.outputs[0]))


def _block(
    step: Step,
    rows: slice,
    lanes: Lanes | None,
    read: set[int],
    start: int,
    in_jit: bool,
) -> Block:
    paths = step.paths[rows]
    inputs = [_once(names) for names in zip(*step.inputs[rows], strict=True)]
    outputs = enumerate(zip(*step.outputs[rows], strict=True))
    is_stacked = len(paths) > 1
    layout = Layout(
        lanes,
        len(paths) if is_stacked else None,
        step.trace.in_lanes,
        tuple(is_stacked and (len(x) > 1 or x == (KEY,)) for x in inputs),
        step.out_lanes,
        has_key=(KEY,) in inputs,
        halves=in_jit and is_stacked,
    )
    wanted = {i: names for i, names in outputs if not read.isdisjoint(names)}
    return Block(step, paths, tuple(inputs), wanted, layout, np.int32(start))


def _once(names: tuple[int, ...]) -> tuple[int, ...]:
    """The names of an input: one where all nodes read the same."""
    return names[:1] if len(set(names)) == 1 else names


def _pays(
    step: Step,
    inputs: Sequence[tuple[int, ...]],
    plan: Plan,
    lanes: Lanes | None,
    in_jit: bool,
) -> bool:
    """Whether stacking costs less than it saves."""
    width = 1 if lanes is None else lanes.size
    stacked = [names for names in inputs if len(names) > 1]
    made = zip(step.trace.outputs, step.out_lanes, strict=True)
    copied = sum(_bytes(struct, width if has else 1) for struct, has in made)
    for names in stacked:
        spec = plan.specs[names[0]]
        assert isinstance(spec, ArraySpec)
        copied += _bytes(spec.struct, width if spec.has_lanes else 1)
    if copied > _BYTES:
        return False
    if in_jit:
        return not step.trace.computation.is_simple
    return not stacked or _count(step) <= _ARRAYS


def _bytes(struct: Any, width: int) -> int:
    return math.prod(struct.shape) * struct.dtype.itemsize * width
