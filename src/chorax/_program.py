"""The compiled programs that steps run as.

A program derives the keys of its nodes, runs them in all lanes, and takes apart what
comes of it, as its layout says. It may do so for several small steps of one wave: each
compiled function costs some 20 µs a call, and takes a while to be compiled however
little it does, so where there are few nodes, or many kinds of one node each, one
program for all is both sooner compiled and sooner run.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast, NamedTuple

import jax
import jax.numpy as jnp

from ._computation import Computation
from ._keys import LaneKeys
from ._layout import Layout, over_nodes, take_row


class Member(NamedTuple):
    """A step: what it computes, how its inputs lie, and whether the nodes' keys are
    among them."""

    computation: Computation
    layout: Layout
    has_key: bool


def program(members: tuple[Member, ...]) -> Callable[..., Sequence[Any]]:
    """The program `(keys, table, inputs)`, which returns the outputs of each step.

    `table` is a `path_table` of the nodes that read a key. An input is an array that
    the step's nodes share or that holds those of all, or a tuple of one for each node;
    where it is `None` the nodes' keys go. The outputs of a step are stacks, or those of
    one node after the other.
    """
    # It goes with the first computation, so that nothing else keeps what is compiled,
    # some MB, and the arrays that a computation may hold.
    first = next(iter(members))
    return first.computation.remember(_compile, members)


def _compile(members: tuple[Member, ...]) -> Callable[..., Sequence[Any]]:
    def run(
        keys: LaneKeys | None, table: Any, inputs: Sequence[Sequence[Any]]
    ) -> list[Any]:
        # All members lie alike.
        lanes_first = members[0].layout.lanes_first
        own: Any = None if keys is None else keys.of_nodes(table, lanes_first)
        done = 0
        outputs: list[Any] = []
        for (computation, layout, has_key), given in zip(members, inputs, strict=True):
            of_step: Any = None
            if has_key:
                of_step = _rows_of(own, done, layout)
                done += layout.nodes or 1
            arrays = [_resolve(x, of_step) for x in given]
            outputs.append(_outputs(over_nodes(computation, layout, arrays), layout))
        return outputs

    return jax.jit(run)


def _rows_of(own: jax.Array, start: int, layout: Layout) -> jax.Array:
    """The keys of a step's nodes, of all nodes' keys."""
    axis = int(layout.lanes_first)
    if layout.nodes is None:
        return jax.lax.index_in_dim(own, start, axis, keepdims=False)
    return jax.lax.slice_in_dim(own, start, start + layout.nodes, axis=axis)


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
