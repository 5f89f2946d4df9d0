"""Several small steps as one compiled program.

Each compiled function costs some 20 µs a call, and takes a while to be compiled however
little it does. So where there are few nodes, or many kinds of one node each, one
program for all steps of a wave is both sooner compiled and sooner run.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast, TypeAlias

import jax
import jax.numpy as jnp

from ._computation import Computation
from ._keys import LaneKeys
from ._layout import Layout, over_nodes, take_row


# A step: what it computes, how its inputs lie, and whether the nodes' keys are among
# them.
Member: TypeAlias = tuple[Computation, Layout, bool]


@functools.lru_cache(maxsize=256)
def bundle(members: tuple[Member, ...]) -> Callable[..., Sequence[Any]]:
    """The program `(keys, table, inputs)`, which returns the outputs of each node of
    each step.

    An input of a step is an array that its nodes share, or a tuple of one for each;
    where it is `None` the nodes' keys go, made from `table` for all steps.
    """

    def run(
        keys: LaneKeys | None, table: Any, inputs: Sequence[Sequence[Any]]
    ) -> list[Any]:
        own: Any = None if keys is None else keys.of_nodes(table, lanes_first=False)
        rows: list[Any] = []
        done = 0
        for (computation, layout, has_key), given in zip(members, inputs, strict=True):
            nodes = layout.nodes
            of_step: Any = None
            if has_key:
                count = nodes or 1
                of_step = own[done] if nodes is None else own[done : done + count]
                done += count
            arrays = [_resolve(x, of_step) for x in given]
            outputs = over_nodes(computation, layout, arrays)
            axes = layout.out_axes
            rows.append(
                [outputs]
                if nodes is None
                else [take_row(outputs, row, axes) for row in range(nodes)]
            )
        return rows

    return jax.jit(run)


def _resolve(x: Any, own: Any) -> Any:
    if x is None:
        return own
    return jnp.stack(cast("tuple[Any, ...]", x)) if isinstance(x, tuple) else x
