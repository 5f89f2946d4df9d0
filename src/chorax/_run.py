"""Running a plan: steps in, arrays out."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from ._keys import node_keys
from ._kind import ArraySpec, Lanes
from ._paths import dotted
from ._plan import Plan
from ._schedule import KEY, Step
from ._trace import Layout


# Inside somebody's `jit`, nodes run together by stacking what they read, so that the
# program does not grow with them; a copy of what one node reads beyond this many bytes
# costs more than the program's growth.
_STACK_BYTES = 1 << 20


class Values:
    """The values of a plan, each computed when it is first needed to be.

    A step that ran for many nodes at once leaves its arrays stacked. They are taken
    apart a node at a time, by one small compiled function for all nodes, and only where
    somebody wants a single one.
    """

    def __init__(self, known: Mapping[int, Any]) -> None:
        self._arrays: dict[int, Any] = dict(known)
        self._rows: dict[int, tuple[_Stack, int, int]] = {}

    def __getitem__(self, name: int) -> Any:
        if name not in self._arrays:
            stack, row, _ = self._rows[name]
            parts = _take_row(stack.arrays, row)
            self._arrays.update(zip(stack.names[row], parts, strict=True))
        return self._arrays[name]

    def set_row(self, names: Sequence[int], arrays: Sequence[Any]) -> None:
        self._arrays.update(zip(names, arrays, strict=True))

    def set_stack(
        self, names: tuple[tuple[int, ...], ...], arrays: tuple[Any, ...]
    ) -> None:
        stack = _Stack(names, arrays)
        for row, row_names in enumerate(names):
            for column, name in enumerate(row_names):
                self._rows[name] = (stack, row, column)

    def stacked(self, names: Sequence[int]) -> Any | None:
        """These values as one array, if a step left them so, in this order."""
        first = self._rows.get(names[0])
        if first is None or len(first[0].names) != len(names):
            return None
        for row, name in enumerate(names):
            place = self._rows.get(name)
            if (
                place is None
                or place[0] is not first[0]
                or place[1:] != (row, first[2])
            ):
                return None
        return first[0].arrays[first[2]]


@dataclasses.dataclass(frozen=True, eq=False)
class _Stack:
    names: tuple[tuple[int, ...], ...]
    arrays: tuple[Any, ...]


def run_plan(
    plan: Plan, values: Mapping[int, Any], keys: jax.Array | None, lanes: Lanes | None
) -> Values:
    """Runs the steps of a plan; returns the values by name."""
    done = Values({**values, **plan.known})
    in_jit = isinstance(jnp.zeros(()), jax.core.Tracer)
    for step in plan.steps:
        try:
            _run_step(step, plan, done, keys, lanes, in_jit)
        except Exception as error:
            names = [dotted(path) or "()" for path in step.paths]
            shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
            error.add_note(f"Raised while running {step.trace.label} at {shown}.")
            raise
    return done


def _run_step(
    step: Step,
    plan: Plan,
    values: Values,
    keys: jax.Array | None,
    lanes: Lanes | None,
    in_jit: bool,
) -> None:
    axes = [0 if lanes is not None else None] * len(step.inputs[0])
    for i, name in enumerate(step.inputs[0]):
        spec = plan.specs[name]
        if name != KEY and isinstance(spec, ArraySpec):
            axes[i] = spec.axis
    row_keys: Any = None
    if KEY in step.inputs[0] and keys is not None:
        row_keys = node_keys(keys, step.paths, lanes is not None)

    count = len(step.paths)
    together = _columns(step, plan, values, row_keys, in_jit) if count > 1 else None
    if together is not None:
        inputs, stacked = together
        layout = Layout(count, tuple(stacked), tuple(axes), lanes, step.out_lanes)
        values.set_stack(step.outputs, step.trace.program(layout, *inputs))
        return
    layout = Layout(None, (), tuple(axes), lanes, step.out_lanes)
    for row, names in enumerate(step.inputs):
        inputs = [
            _take_row((row_keys,), row)[0] if name == KEY else values[name]
            for name in names
        ]
        values.set_row(step.outputs[row], step.trace.program(layout, *inputs))


def _columns(
    step: Step, plan: Plan, values: Values, row_keys: Any, in_jit: bool
) -> tuple[list[Any], list[bool]] | None:
    """The inputs of all nodes at once, and which are stacked; `None` to go one by one.

    Nodes run together when that copies nothing: when all they read of their own is
    their keys, or what an earlier step left stacked. Copies are worth it only inside a
    `jit`, where one by one means a program as long as there are nodes. Outside of it
    one by one means the same small program, compiled once, called again and again.
    """
    inputs: list[Any] = []
    stacked: list[bool] = []
    copied = 0
    for names in zip(*step.inputs, strict=True):
        shared = all(name == names[0] for name in names)
        if names[0] == KEY:
            inputs.append(row_keys)
            stacked.append(True)
            continue
        ready = values[names[0]] if shared else values.stacked(names)
        stacked.append(not shared)
        if ready is not None:
            inputs.append(ready)
            continue
        first = values[names[0]]
        copied += first.size * first.dtype.itemsize
        if not in_jit or copied > _STACK_BYTES:
            return None
        inputs.append(jnp.stack([values[name] for name in names]))
    return inputs, stacked


def _take_row(arrays: tuple[Any, ...], row: int) -> tuple[Any, ...]:
    if any(isinstance(array, jax.core.Tracer) for array in arrays):
        return tuple(array[row] for array in arrays)
    return _take_compiled(arrays, np.int32(row))


@jax.jit
def _take_compiled(arrays: tuple[jax.Array, ...], row: jax.Array) -> tuple[Any, ...]:
    rows: list[Any] = [
        jax.lax.dynamic_index_in_dim(array, row, keepdims=False) for array in arrays
    ]
    return tuple(rows)
