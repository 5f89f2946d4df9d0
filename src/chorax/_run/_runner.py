"""Running blocks: values in, values out."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from .._plan._schedule import KEY
from .._text._places import dotted
from .._tree._keys import LaneKeys
from ._blocks import Block, Blocks, Group
from ._compile import Compiled, is_concrete


# How many arrays one compiled function takes out of stacks: more arrays are fewer
# calls, and cost 3 ms of compilation each.
_ARRAYS_AT_ONCE = 48
# The number of nodes is rounded up for at most so many keys.
_TO_SPARE = 1 << 12


def run_blocks(blocks: Blocks, values: dict[int, Any], keys: LaneKeys | None) -> None:
    """Runs the blocks; adds what they make to the values, by name."""
    given = values.values() if keys is None else (*values.values(), keys.key)
    cheaply = blocks.takes_options and is_concrete(given)
    own = None if keys is None else _keys_of(blocks, keys, cheaply)
    hidden = _hidden_offsets(blocks.most_rows) if blocks.in_jit else None
    for group in blocks.groups:
        try:
            made = _run(group, values, own, cheaply)
        except Exception as error:
            for block in group.blocks:
                names = [dotted(path) or "()" for path in block.paths]
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                label = block.step.trace.label
                error.add_note(f"Raised while running {label} at {shown}.")
            raise
        for block, arrays in zip(group.blocks, made, strict=True):
            _take(block, arrays, values, hidden, cheaply)


def _run(group: Group, values: dict[int, Any], own: Any, cheaply: bool) -> list[Any]:
    """The outputs of each block."""

    def find(names: tuple[int, ...]) -> Any:
        if len(names) == 1:
            return None if names[0] == KEY else values[names[0]]
        return tuple([values[name] for name in names])

    rows = [(x.start, [find(names) for names in x.inputs]) for x in group.blocks]
    own = own if any(block.layout.has_key for block in group.blocks) else None
    return group.program(cheaply and group.is_little, own, *rows)


def _take(
    block: Block,
    made: Sequence[Any],
    values: dict[int, Any],
    hidden: Sequence[Any] | None,
    cheaply: bool,
) -> None:
    """Adds what a block has made to the values, node by node."""
    if block.layout.nodes is None:
        for index, names in block.outputs.items():
            values.update(zip(names, [made[index]], strict=True))
        return
    stacks = tuple([made[index] for index in block.outputs])
    axes = tuple([int(block.layout.out_lanes[index]) for index in block.outputs])
    rows = _rows(stacks, axes, block.layout.nodes, hidden, cheaply)
    for names, row in zip(zip(*block.outputs.values(), strict=True), rows, strict=True):
        values.update(zip(names, row, strict=True))


def _keys_of(blocks: Blocks, keys: LaneKeys, cheaply: bool) -> Any:
    """The keys of all nodes that read their key."""
    if not len(blocks.table):
        return None
    spare = not blocks.in_jit and len(blocks.padded) * (keys.size or 1) <= _TO_SPARE
    return _derived(cheaply, keys, blocks.padded if spare else blocks.table)


_derived = Compiled(LaneKeys.of_nodes)


def _rows(
    stacks: tuple[Any, ...],
    axes: tuple[int, ...],
    count: int,
    hidden: Sequence[Any] | None,
    cheaply: bool,
) -> Iterator[Sequence[Any]]:
    """The arrays of one node after the other, taken out of stacks along these axes."""
    if not stacks:
        return
    if hidden is not None:
        yield from _take_rows(stacks, hidden[:count], axes)
        return
    at_once = min(count, max(1, _ARRAYS_AT_ONCE // len(stacks)))
    for done in range(0, count, at_once):
        # The last slice starts earlier, so that it is as long as the others.
        start = min(done, count - at_once)
        rows = tuple([_offset(i) for i in range(start, start + at_once)])
        yield from _taken(cheaply, stacks, rows, axes)[done - start :]


# XLA compiles a copy at a known offset once per offset, 25 ms each, and copies at
# unknown offsets only once: so offsets are arguments, or come out of a loop.
@functools.lru_cache(maxsize=4096)
def _offset(row: int) -> jax.Array:
    return cast(Any, jax).device_put(np.int32(row))


def _hidden_offsets(count: int) -> Sequence[Any]:
    if count <= 1:
        return [np.int32(0)] * count
    rows = [jnp.int32(row) for row in range(count)]
    start = (jnp.int32(0), [jnp.zeros_like(row) for row in rows])
    return jax.lax.while_loop(
        lambda state: state[0] < 2, lambda state: (state[0] + 1, rows), start
    )[1]


def _take_rows(
    stacks: tuple[Any, ...], offsets: Sequence[Any], axes: tuple[int, ...]
) -> list[list[Any]]:
    return [
        [
            jax.lax.dynamic_index_in_dim(x, offset, axis, keepdims=False)
            for x, axis in zip(stacks, axes, strict=True)
        ]
        for offset in offsets
    ]


_taken = Compiled(_take_rows, 2, copies=True)
