"""Functions of batched models: lanes joined and taken apart, models run over them.

Each function but `vmap` takes `axes`: the `StateDelta` of the call that made the
batched model, or a tree of lane axes in any form that `eqx.filter_vmap` takes as
`in_axes`. Leaves without a lane axis are shared by all lanes. Everything works inside
`jit`, `grad`, `vmap` and `scan`; where no values are needed, on trees of
`jax.ShapeDtypeStruct` too, as `eqx.filter_eval_shape` returns them.
NumPy arrays stay NumPy arrays, of dtypes too that JAX would change; but joined with a
JAX array, or selected by a traced one, they become JAX arrays. Arrays of a dtype that
JAX does not take, such as strings, can't have lanes.
"""

from ._ensemble import Ensemble as Ensemble
from ._groups import Groups as Groups, groups as groups
from ._lanes._fold import fold as fold
from ._lanes._leafwise import partition as partition, perturb as perturb
from ._lanes._picking import shard as shard, take as take, where as where
from ._lanes._scan import scan as scan
from ._lanes._stacking import (
    broadcast as broadcast,
    concatenate as concatenate,
    stack as stack,
    unstack as unstack,
)
from ._lanes._vmap import vmap as vmap


__all__ = [
    "Ensemble",
    "Groups",
    "broadcast",
    "concatenate",
    "fold",
    "groups",
    "partition",
    "perturb",
    "scan",
    "shard",
    "stack",
    "take",
    "unstack",
    "vmap",
    "where",
]
