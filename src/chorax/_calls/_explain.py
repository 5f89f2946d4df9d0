"""The public function `explain`."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, SupportsIndex, TYPE_CHECKING, TypeAlias

from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from .._plan._request import IfNotExist, LANE_OPTIONS
from ..filters import Filter
from ._checks import check_request
from ._explanation import Explanation, run_explanation


if TYPE_CHECKING:
    _Function: TypeAlias = str | Callable[..., Any]
    _Kwargs: TypeAlias = Mapping[str, Any] | None
    _Size: TypeAlias = SupportsIndex | None
    _Key: TypeAlias = ArrayLike | None
    _Mask: TypeAlias = ArrayLike | Sequence[bool] | None
    _Tag: TypeAlias = str | None
    _Flag: TypeAlias = bool
    _Name: TypeAlias = Hashable
    _Sharding: TypeAlias = NamedSharding | None
else:
    # Wrong arguments raise the errors of the call, even if an import hook checks types.
    _Function = _Kwargs = _Size = _Key = _Mask = _Tag = _Flag = _Name = _Sharding = Any
    IfNotExist = Any


def explain(
    target: Any,
    fn_name: _Function,
    args: Any = (),
    kwargs: _Kwargs = None,
    axis_size: _Size = None,
    node_to_exclude: Filter = None,
    state_tag: _Tag = None,
    fn_if_not_exist: IfNotExist = "raise",
    *,
    key: _Key = None,
    state_to_exclude: Filter = None,
    where: _Mask = None,
    has_aux: _Flag = False,
    in_axes: Any = None,
    args_in_axes: Any = None,
    kwargs_in_axes: Any = None,
    axis_name: _Name = None,
    spmd_axis_name: _Name = None,
    chunk_size: _Size = None,
    sharding: _Sharding = None,
) -> Explanation:
    """Shows what a collective call will do, without doing it.

    It lists which nodes are called, in which order; how they fall into kinds, each of
    which is traced once, and into waves, which run one after another; which nodes are
    skipped, and why; what each call writes, with shapes before and after and the bytes
    it takes; and which inexact arrays stay the same in all lanes.
    Methods are traced, as in the call itself, but nothing is computed, so models may be
    of any size. The idea is that of `EXPLAIN` in SQL.

    **Arguments:** those of `vmap_call_all_fns`; without any option about lanes it
    explains `call_all_fns` instead. `init_all_states` and its relatives are calls of
    `"init_state"` or `"reset_state"` with `fn_if_not_exist="pass"`.

    **Returns:**

    An `Explanation`. It prints as a table, and as an HTML table in a notebook; its
    fields `calls` and `skipped` hold the same information as values.

    **Raises:** what the call would raise, except for nodes without the method: they are
    listed as skipped.

    ```python
    >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     weight: jax.Array
    ...     v: jax.Array | None = None
    ...     def init_state(self):
    ...         return chorax.replace(self, v=jnp.zeros_like(self.weight))
    >>> net = [Neuron(jnp.ones(3, "float32")) for _ in range(8)]
    >>> chorax.explain(net, "init_state", axis_size=32)
    `init_state` in 32 lanes: 8 calls of 1 kind in 1 wave, 8 written leaves, 3.0 KiB
    node        class   kind  wave  writes  before  after                    bytes
    {0..7} (8)  Neuron  1     1     v       None    float32 (32 lanes, 3)  3.0 KiB
    <BLANKLINE>
    8 arrays shared by all lanes: no call writes them
    path               type     shape  bytes
    {0..7}.weight (8)  float32  (3,)    96 B

    ```
    """
    given = dict(locals())
    target = given.pop("target")
    names = (*LANE_OPTIONS, "where", "in_axes", "args_in_axes", "kwargs_in_axes")
    has_lanes = any(given[name] is not None for name in names)
    return run_explanation(target, check_request(target, given, has_lanes))
