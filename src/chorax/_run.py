"""Running a script: values in, values out."""

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ._arrange import (
    Alone,
    Bundle,
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
from ._schedule import KEY


# How many arrays one compiled function takes out of stacks: more are fewer calls, at
# some 3 ms of compilation each.
_ARRAYS_AT_ONCE = 48


def run_script(script: Script, values: dict[int, Any], keys: LaneKeys | None) -> None:
    """Runs the steps; adds the values that they make, by name."""
    stacks: list[tuple[Any, ...]] = []
    own_keys = _own_keys(script, keys)
    for each in script.steps:
        try:
            match each:
                case Alone():
                    _run_alone(each, values, own_keys)
                    stacks.append(())
                case Bundle():
                    _run_bundle(each, values, stacks, keys)
                    stacks.append(())
                case Together():
                    stacks.append(_run_together(each, script, values, stacks, keys))
        except Exception as error:
            members = each.members if isinstance(each, Bundle) else (each,)
            for step in (member.step for member in members):
                names = [dotted(path) or "()" for path in step.paths]
                shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
                error.add_note(f"Raised while running {step.trace.label} at {shown}.")
            raise


def _run_alone(
    alone: Alone, values: dict[int, Any], own_keys: Iterator[jax.Array]
) -> None:
    step, program = alone.step, alone.program
    has_key = KEY in step.inputs[0]
    for names, made in zip(step.inputs, step.outputs, strict=True):
        key = next(own_keys) if has_key else None
        inputs = [key if name == KEY else values[name] for name in names]
        values.update(zip(made, program(*inputs), strict=True))


def _run_bundle(
    each: Bundle,
    values: dict[int, Any],
    stacks: Sequence[tuple[Any, ...]],
    keys: LaneKeys | None,
) -> None:
    def find(x: Input) -> Any:
        match x:
            case Keys():
                return None
            case Single(name):
                return values[name]
            case Column(step, column):
                return stacks[step][column]
            case Copied(names):
                return tuple(values[name] for name in names)

    inputs = [[find(x) for x in of_step] for of_step in each.inputs]
    source = keys if len(each.table) else None
    outputs = each.program(source, each.table, inputs)
    for member, rows in zip(each.members, outputs, strict=True):
        for names, arrays in zip(member.step.outputs, rows, strict=True):
            values.update(zip(names, arrays, strict=True))


def _run_together(
    together: Together,
    script: Script,
    values: dict[int, Any],
    stacks: Sequence[tuple[Any, ...]],
    keys: LaneKeys | None,
) -> tuple[Any, ...]:
    """Returns the arrays of all nodes; takes apart what is wanted of them."""

    def find(x: Input) -> Any:
        match x:
            case Keys():
                assert keys is not None
                return keys.of_nodes(together.table, script.lanes_first)
            case Single(name):
                return values[name]
            case Column(step, column):
                return stacks[step][column]
            case Copied(names):
                return jnp.stack([values[name] for name in names])

    inputs = [find(x) for x in together.inputs]
    arrays = together.program(*inputs)
    apart = together.apart
    if apart:
        axes = tuple(together.layout.out_axes[i] for i in apart)
        columns = tuple(arrays[i] for i in apart)
        rows = _rows(columns, axes, len(together.step.paths), script.in_jit)
        for names, row in zip(zip(*apart.values(), strict=True), rows, strict=True):
            values.update(zip(names, row, strict=True))
    return arrays


def _own_keys(script: Script, keys: LaneKeys | None) -> Iterator[jax.Array]:
    """The keys of the nodes that go alone, in their order."""
    if keys is None:
        return
    table, at_once = script.table, script.keys_at_once
    if at_once == 1:
        yield from map(keys.of_node, table)
        return
    for start, known in _blocks(len(table), at_once):
        own = keys.of_nodes(table[start : start + at_once], script.lanes_first)
        rows = _rows((own,), (int(script.lanes_first),), at_once, script.in_jit)
        yield from (key for (key,) in itertools.islice(rows, known, None))


def _rows(
    arrays: tuple[Any, ...], axes: tuple[int, ...], count: int, in_jit: bool
) -> Iterator[tuple[Any, ...]]:
    """The arrays of one node after the other, out of stacks with these node axes."""
    if in_jit:
        yield from (take_row(arrays, row, axes) for row in range(count))
        return
    at_once = min(count, max(1, _ARRAYS_AT_ONCE // len(arrays)))
    for start, known in _blocks(count, at_once):
        yield from _take_rows(arrays, np.int32(start), axes, at_once)[known:]


def _blocks(count: int, size: int) -> Iterator[tuple[int, int]]:
    """Where blocks of one size start, and how much of each was in the one before."""
    for done in range(0, count, size):
        start = min(done, count - size)
        yield start, done - start


@functools.partial(jax.jit, static_argnums=(2, 3))
def _take_rows(
    arrays: tuple[jax.Array, ...], start: Any, axes: tuple[int, ...], count: int
) -> tuple[tuple[jax.Array, ...], ...]:
    return tuple(take_row(arrays, start + row, axes) for row in range(count))
