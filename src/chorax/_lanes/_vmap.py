"""`eqx.filter_vmap` for batched models: deltas and ensembles say where lanes are."""

import inspect
from collections.abc import Callable, Hashable, Mapping
from typing import Any, cast, overload

import equinox as eqx
import jax.tree_util as jtu

from .._text._typed import typed
from .._tree._holder import AxesHolder, LaneHolder, Wrapper
from .._tree._paths import open_level, same_structure
from ._axes import check_leaf_lengths, resolve_axes
from ._lane_axes import agreed_count, ensemble_lanes
from ._members import array_axes
from ._unbatched import shard_unbatched


_Fn = Callable[..., Any]
_NOT_GIVEN: Any = object()
_ARRAYS = eqx.if_array(0)


@overload
def vmap(
    fn: _Fn,
    in_axes: Any = ...,
    out_axes: Any = ...,
    *,
    axis_name: Hashable = ...,
    axis_size: int | None = ...,
    **options: Any,
) -> _Fn: ...


@overload
def vmap(
    *,
    in_axes: Any = ...,
    out_axes: Any = ...,
    axis_name: Hashable = ...,
    axis_size: int | None = ...,
    **options: Any,
) -> Callable[[_Fn], _Fn]: ...


@typed("fn", Callable, "a function of one lane")
def vmap(
    fn: Any = _NOT_GIVEN,
    in_axes: Any = _ARRAYS,
    out_axes: Any = _ARRAYS,
    *,
    axis_name: Hashable = None,
    axis_size: int | None = None,
    **options: Any,
) -> Any:
    """Maps a function over lanes: `eqx.filter_vmap` that knows deltas and ensembles.

    It compiles to the same program as `eqx.filter_vmap` with the axes written by hand.
    To map over time as well see `chorax.lanes.scan`; to go through the lanes one after
    the other see `chorax.lanes.fold`.

    **Arguments:**

    - `fn`: a function of positional arguments, for one lane. Without it, a decorator
        is returned.
    - `in_axes`: the lane axes of the arguments, in any form that `eqx.filter_vmap`
        takes, with these additions. A `StateDelta` stands for its `in_axes`; alone, it
        is that of a single argument. An integer speaks of arrays only, so that `0` also
        fits models with functions and strings in them. An `Ensemble`, as an argument or
        in a list, tuple or dictionary, brings its own axes, whatever the integer or
        function there says, and `fn` gets a member; where `in_axes` is `None`, each
        lane gets the whole `Ensemble`. Inside another module it stays what it is.
    - `out_axes`: the same for what `fn` returns. A non-array leaf is returned as it is.
    - `axis_name`, `axis_size` and other options: as in `eqx.filter_vmap` and
        `jax.vmap`.

    **Returns:** a function of the batched arguments. A member that `fn` returns becomes
    a batched model, not an `Ensemble`. On several devices, results that are equal in
    all lanes are sharded like the arguments: the state that `optim.init` makes of
    sharded parameters, for example.

    **Raises:** `ValueError` for the first path at which axes do not fit the arguments
    or what `fn` returns, and for arrays that differ in their number of lanes;
    `TypeError` if `fn` is not callable, `RuntimeError` for keyword arguments.

    ```python
    >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
    >>> mlp = eqx.nn.MLP(2, 3, 8, 1, key=jax.random.key(0))
    >>> batched, delta = chorax.vmap_call_all_fns(
    ...     mlp, chorax.reset_parameters, axis_size=5, key=jax.random.key(1))
    >>> def apply(model, x):
    ...     return model(x)
    >>> chorax.lanes.vmap(apply, in_axes=(delta, None))(batched, jnp.ones(2)).shape
    (5, 3)
    >>> ensemble = chorax.lanes.Ensemble(batched, delta)
    >>> chorax.lanes.vmap(apply)(ensemble, jnp.ones((5, 2))).shape
    (5, 3)

    ```
    """
    if isinstance(in_axes, AxesHolder):
        in_axes = (in_axes,)
    axes = array_axes(in_axes), array_axes(out_axes)
    options = {"axis_name": axis_name, "axis_size": axis_size, **options}

    def over_lanes(fn: _Fn) -> _Fn:
        return eqx.module_update_wrapper(_OverLanes(fn, *axes, options))

    return over_lanes if fn is _NOT_GIVEN else over_lanes(fn)


class _OverLanes(Wrapper):
    """A function mapped over lanes: a PyTree, as that of `eqx.filter_vmap` is."""

    fn: _Fn
    in_axes: Any
    out_axes: Any
    options: dict[str, Any]

    @property
    def __wrapped__(self) -> _Fn:
        return self.fn

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if kwargs:
            raise RuntimeError(
                "`lanes.vmap` takes no keyword arguments, as `eqx.filter_vmap`, but "
                f"got {list(kwargs)}. Pass them by position."
            )
        in_axes = self.in_axes
        if isinstance(in_axes, Mapping):
            in_axes = _by_name(self.fn, cast("Mapping[str, Any]", in_axes), args)
        units = jtu.tree_leaves(args, is_leaf=_is_module)
        if any(isinstance(unit, LaneHolder) for unit in units):
            in_axes, args = _unwrapped(in_axes, args)
        leaves, structure = jtu.tree_flatten(args)
        axes = resolve_axes(args, in_axes, "in_axes")
        size = self.options["axis_size"]
        if size is None:
            agreed_count(leaves, structure, axes, "in_axes")
        else:
            check_leaf_lengths(leaves, structure, axes, size, "in_axes")

        def call(*args: Any) -> Any:
            result = self.fn(*args)
            # Its errors name a path.
            out_axes = resolve_axes(result, self.out_axes, "out_axes")
            return shard_unbatched(result, out_axes, jtu.tree_leaves(args), axes)

        return cast(Any, eqx).filter_vmap(
            call,
            in_axes=jtu.tree_unflatten(structure, axes),
            out_axes=self.out_axes,
            **self.options,
        )(*args)

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self if instance is None else eqx.Partial(self, instance)


def _by_name(fn: _Fn, named: Mapping[str, Any], args: tuple[Any, ...]) -> Any:
    parameters = list(inspect.signature(fn).parameters)[: len(args)]
    unknown = [name for name in named if name not in parameters]
    if unknown:
        raise ValueError(
            f"`in_axes` names {unknown}, but the positional arguments given are "
            f"{parameters}."
        )
    return tuple(named.get(name, _ARRAYS) for name in parameters)


def _unwrapped(axes: Any, part: Any) -> tuple[Any, Any]:
    """Axes and arguments with batched models for the ensembles that are mapped."""
    if axes is None or (_is_module(part) and not isinstance(part, LaneHolder)):
        return axes, part
    if isinstance(part, LaneHolder):
        if isinstance(axes, LaneHolder):
            return axes, part  # Lanes around those of the ensemble.
        is_tree = open_level(axes) is not None
        lanes = ensemble_lanes(part)
        return axes if is_tree else lanes.rebuild(lanes.axes), part.model
    below, above = open_level(part), open_level(axes)
    if below is None or not below.keys:
        return axes, part
    if above is not None and not same_structure(above.shell, below.shell):
        return axes, part  # `resolve_axes` names the place.
    entries = [axes] * len(below.keys) if above is None else above.children
    pairs = list(map(_unwrapped, entries, below.children))
    new_axes, new_part = zip(*pairs, strict=True)
    shell = below.shell
    return jtu.tree_unflatten(shell, new_axes), jtu.tree_unflatten(shell, new_part)


def _is_module(x: Any) -> bool:
    return isinstance(x, eqx.Module)
