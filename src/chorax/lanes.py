"""Lanes taken apart and put together.

Each function takes `axes`: the `StateDelta` of the call that made the batched model, or
a tree of lane axes, in any form that `eqx.filter_vmap` takes as `in_axes`. Leaves
without a lane axis are shared by all lanes. All of it works inside `jit`, `grad`,
`vmap` and `scan`. NumPy's arrays stay what they are, with dtypes that JAX would change;
but what is put together with an array of JAX, or taken or chosen by a traced one,
becomes one of JAX. Arrays that JAX does not take, of strings say, have no lanes.
"""

from ._ensemble import Ensemble as Ensemble
from ._lanes._picking import shard as shard, take as take, where as where
from ._lanes._stacking import (
    broadcast as broadcast,
    concatenate as concatenate,
    stack as stack,
    unstack as unstack,
)


__all__ = [
    "Ensemble",
    "broadcast",
    "concatenate",
    "shard",
    "stack",
    "take",
    "unstack",
    "where",
]
