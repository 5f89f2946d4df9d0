"""Running a script: values in, values out."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np

from ._arrange import (
    Alone,
    Arranged,
    Column,
    Copied,
    Input,
    Keys,
    Script,
    Single,
    Together,
)
from ._cheaply import Compiled, is_concrete
from ._keys import LaneKeys
from ._layout import take_row
from ._paths import dotted
from ._schedule import KEY, Step


# How many arrays one compiled function takes out of stacks: more are fewer calls, at
# some 3 ms of compilation each.
_ARRAYS_AT_ONCE = 48
# The most keys that are made where the number of nodes is rounded up.
_TO_SPARE = 1 << 12

# The outputs of steps that left them stacked.
Stacks = dict[Step, Sequence[Any]]


def run_script(script: Script, values: dict[int, Any], keys: LaneKeys | None) -> None:
    """Runs the steps; adds the values that they make, by name."""
    stacks: Stacks = {}
    given = values.values() if keys is None else (*values.values(), keys.key)
    cheaply = script.takes_options and is_concrete(given)
    own = None if keys is None else _keys_of(script, keys, cheaply)
    offsets = _hidden_offsets(script.most_rows) if script.in_jit else None
    for each in script.steps:
        try:
            if isinstance(each, Alone):
                _run_alone(each, values, own, cheaply)
            else:
                _run_together(each, values, stacks, own, offsets, cheaply)
        except Exception as error:
            for step in (member.step for member in each.members):
                names = [dotted(path) or "()" for path in step.paths]
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                error.add_note(f"Raised while running {step.trace.label} at {shown}.")
            raise


def _keys_of(script: Script, keys: LaneKeys, cheaply: bool) -> Any:
    """The keys of all nodes that read one."""
    if not len(script.table):
        return None
    spare = not script.in_jit and len(script.padded) * (keys.size or 1) <= _TO_SPARE
    table = script.padded if spare else script.table
    return _derived(cheaply, keys, table, script.lanes_first)


_derived = Compiled(LaneKeys.of_nodes, 2)


def _run_alone(alone: Alone, values: dict[int, Any], own: Any, cheaply: bool) -> None:
    [member] = alone.members
    step, program = member.step, alone.program
    cheaply = cheaply and alone.is_little
    own = own if member.has_key else None
    for row, (names, made) in enumerate(zip(step.inputs, step.outputs, strict=True)):
        inputs = [None if name == KEY else values[name] for name in names]
        [[outputs]] = program(cheaply, own, np.int32(alone.start + row), [inputs])
        values.update(zip(made, outputs, strict=True))


def _run_together(
    together: Together,
    values: dict[int, Any],
    stacks: Stacks,
    own: Any,
    offsets: Sequence[Any] | None,
    cheaply: bool,
) -> None:
    def find(x: Input) -> Any:
        match x:
            case Keys():
                return None
            case Single(name):
                return values[name]
            case Column():
                return stacks[x.step][x.index]
            case Copied(names):
                return tuple([values[name] for name in names])

    inputs = [[find(x) for x in member.inputs] for member in together.members]
    own = own if any(member.has_key for member in together.members) else None
    is_cheap = cheaply and together.is_little
    outputs = together.program(is_cheap, own, np.int32(together.start), inputs)
    rows = zip(together.members, outputs, together.apart, strict=True)
    for member, made, apart in rows:
        if member.layout.nodes is None or member.layout.apart:
            for names, arrays in zip(member.step.outputs, made, strict=True):
                values.update(zip(names, arrays, strict=True))
        else:
            stacks[member.step] = made
            _take_apart(member, made, apart, values, offsets, cheaply)


def _take_apart(
    member: Arranged,
    arrays: Sequence[Any],
    apart: Mapping[int, tuple[int, ...]],
    values: dict[int, Any],
    offsets: Sequence[Any] | None,
    cheaply: bool,
) -> None:
    """Adds the values among a step's stacks that are read one by one."""
    if not apart:
        return
    axes = tuple(member.layout.out_axes[i] for i in apart)
    columns = tuple(arrays[i] for i in apart)
    rows = _rows(columns, axes, len(member.step.paths), offsets, cheaply)
    for names, row in zip(zip(*apart.values(), strict=True), rows, strict=True):
        values.update(zip(names, row, strict=True))


def _rows(
    stacks: tuple[Any, ...],
    axes: tuple[int, ...],
    count: int,
    offsets: Sequence[Any] | None,
    cheaply: bool,
) -> Iterator[tuple[Any, ...]]:
    """The arrays of one node after the other, out of stacks with these node axes."""
    if offsets is not None:
        yield from _take_rows(stacks, offsets[:count], axes)
        return
    at_once = min(count, max(1, _ARRAYS_AT_ONCE // len(stacks)))
    for done in range(0, count, at_once):
        # The last block starts earlier, to be of the same size.
        start = min(done, count - at_once)
        rows = tuple([_offset(i) for i in range(start, start + at_once)])
        yield from _taken(cheaply, stacks, rows, axes)[done - start :]


# XLA compiles a copy at an offset that it can work out once for each such offset, some
# 25 ms each, and those at offsets that it can't once for all: so they are arguments, or
# come out of a loop.
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
) -> tuple[tuple[jax.Array, ...], ...]:
    return tuple(take_row(stacks, each, axes) for each in offsets)


_taken = Compiled(_take_rows, 2, copies=True)
