"""The compiled programs that steps run as.

A program runs nodes in all lanes, each with its keys, and takes apart what comes of it,
as its layout says. It may do so for several small steps of one wave: each
compiled function costs some 20 µs a call, and takes a while to be compiled however
little it does, so where there are few nodes, or many kinds of one node each, one
program for all is both sooner compiled and sooner run.
"""

from collections.abc import Sequence
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ._cheaply import Compiled
from ._computation import Computation
from ._layout import Layout, over_nodes, take_row


class Member(NamedTuple):
    """A step: what it computes, how its inputs lie, and whether the nodes' keys are
    among them."""

    computation: Computation
    layout: Layout
    has_key: bool


def program(members: tuple[Member, ...]) -> Compiled:
    """The program `(keys, start, inputs)`, which returns the outputs of each step.

    `keys` are those of all nodes of a call, and its own begin at `start`. An input is
    an array that the step's nodes share or that holds those of all, or a tuple of one
    for each node; where it is `None` the nodes' keys go. The outputs of a step are
    stacks, or those of one node after the other.
    """
    # It goes with the first computation, so that nothing else keeps what is compiled,
    # some MB, and the arrays that a computation may hold.
    first = next(iter(members))
    return first.computation.remember(_compile, members)


def _compile(members: tuple[Member, ...]) -> Compiled:
    def run(keys: Any, start: Any, inputs: Sequence[Sequence[Any]]) -> list[Any]:
        done = start
        outputs: list[Any] = []
        for (computation, layout, has_key), given in zip(members, inputs, strict=True):
            of_step: Any = None
            if has_key:
                of_step = _rows_of(keys, done, layout)
                done += np.int32(layout.nodes or 1)
            arrays = [_resolve(x, of_step) for x in given]
            outputs.append(_outputs(over_nodes(computation, layout, arrays), layout))
        return outputs

    return Compiled(run)


def _rows_of(keys: jax.Array, start: Any, layout: Layout) -> jax.Array:
    """The keys of a step's nodes, of all nodes' keys."""
    axis = int(layout.lanes_first)
    rows = jax.lax.dynamic_slice_in_dim(keys, start, layout.nodes or 1, axis)
    return jnp.squeeze(rows, axis) if layout.nodes is None else rows


def _resolve(x: Any, own: Any) -> Any:
    if x is None:
        return own
    return jnp.stack(cast("tuple[Any, ...]", x)) if isinstance(x, tuple) else x


def _outputs(arrays: tuple[Any, ...], layout: Layout) -> Any:
    if layout.nodes is None:
        return (arrays,)
    if not layout.apart:
        return arrays
    axes = layout.out_axes
    return tuple(take_row(arrays, row, axes) for row in range(layout.nodes))
