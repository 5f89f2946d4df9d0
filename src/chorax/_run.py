"""Running a script: values in, values out."""

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
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
from ._keys import LaneKeys
from ._layout import take_row
from ._paths import dotted
from ._schedule import KEY, Step


# How many arrays one compiled function takes out of stacks: more are fewer calls, at
# some 3 ms of compilation each.
_ARRAYS_AT_ONCE = 48

# The outputs of steps that left them stacked.
Stacks = dict[Step, Sequence[Any]]


def run_script(script: Script, values: dict[int, Any], keys: LaneKeys | None) -> None:
    """Runs the steps; adds the values that they make, by name."""
    stacks: Stacks = {}
    for each in script.steps:
        try:
            if isinstance(each, Alone):
                _run_alone(each, values, keys)
            else:
                _run_together(each, values, stacks, keys, script.in_jit)
        except Exception as error:
            for step in (member.step for member in each.members):
                names = [dotted(path) or "()" for path in step.paths]
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                error.add_note(f"Raised while running {step.trace.label} at {shown}.")
            raise


def _run_alone(alone: Alone, values: dict[int, Any], keys: LaneKeys | None) -> None:
    [member] = alone.members
    step, table, program = member.step, alone.table, alone.program
    has_key = len(table) > 0
    # Split once, and not again for every node.
    own = keys.split() if keys is not None and has_key else None
    for row, (names, made) in enumerate(zip(step.inputs, step.outputs, strict=True)):
        inputs = [None if name == KEY else values[name] for name in names]
        words = table[row : row + 1] if has_key else table
        [[outputs]] = program(own, words, [inputs])
        values.update(zip(made, outputs, strict=True))


def _run_together(
    together: Together,
    values: dict[int, Any],
    stacks: Stacks,
    keys: LaneKeys | None,
    in_jit: bool,
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
    own = keys if len(together.table) else None
    outputs = together.program(own, together.table, inputs)
    rows = zip(together.members, outputs, together.apart, strict=True)
    for member, made, apart in rows:
        if member.layout.nodes is None or member.layout.apart:
            for names, arrays in zip(member.step.outputs, made, strict=True):
                values.update(zip(names, arrays, strict=True))
        else:
            stacks[member.step] = made
            _take_apart(member, made, apart, values, in_jit)


def _take_apart(
    member: Arranged,
    arrays: Sequence[Any],
    apart: Mapping[int, tuple[int, ...]],
    values: dict[int, Any],
    in_jit: bool,
) -> None:
    """Adds the values among a step's stacks that are read one by one."""
    if not apart:
        return
    axes = tuple(member.layout.out_axes[i] for i in apart)
    columns = tuple(arrays[i] for i in apart)
    rows = _rows(columns, axes, len(member.step.paths), in_jit)
    for names, row in zip(zip(*apart.values(), strict=True), rows, strict=True):
        values.update(zip(names, row, strict=True))


def _rows(
    arrays: tuple[Any, ...], axes: tuple[int, ...], count: int, in_jit: bool
) -> Iterator[tuple[Any, ...]]:
    """The arrays of one node after the other, out of stacks with these node axes."""
    if in_jit:
        yield from (take_row(arrays, row, axes) for row in range(count))
        return
    at_once = min(count, max(1, _ARRAYS_AT_ONCE // len(arrays)))
    for done in range(0, count, at_once):
        # The last block starts earlier, to be of the same size.
        start = min(done, count - at_once)
        yield from _take_rows(arrays, np.int32(start), axes, at_once)[done - start :]


@functools.partial(jax.jit, static_argnums=(2, 3))
def _take_rows(
    arrays: tuple[jax.Array, ...], start: Any, axes: tuple[int, ...], count: int
) -> tuple[tuple[jax.Array, ...], ...]:
    return tuple(take_row(arrays, start + row, axes) for row in range(count))
