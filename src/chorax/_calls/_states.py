"""Collective calls of `init_state` and `reset_state`."""

import functools
import inspect
from collections.abc import Callable, Hashable, Sequence
from typing import Any, cast, Literal, overload, SupportsIndex, TypeVar

from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from .._deltas._delta import StateDelta
from .._plan._request import IfNotExist
from ..filters import Filter
from ._call import call_all_fns, vmap_call_all_fns


T = TypeVar("T")


F = TypeVar("F", bound=Callable[..., Any])
# Defaults of the wrappers that differ from those of the functions they call.
_DEFAULTS = {"fn_if_not_exist": "pass"}


def _calls(function: Callable[..., Any], method: str) -> Callable[[F], F]:
    """Makes a wrapper call a collective function with the name of a method.

    Keywords that are not options of that function go to the method. `help` lists the
    options, which the wrapper does not repeat.
    """
    # All but `target`, `fn_name`, `args` and `kwargs`.
    _, _, _, _, *rest = inspect.signature(function).parameters.values()
    options = {
        each.name: each.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            default=_DEFAULTS.get(each.name, each.default),
        )
        for each in rest
    }

    def decorate(wrapper: F) -> F:
        @functools.wraps(wrapper)
        def call(target: Any, *args: Any, **kwargs: Any) -> Any:
            given = {name: kwargs.pop(name) for name in options if name in kwargs}
            return function(target, method, args, kwargs, **{**_DEFAULTS, **given})

        target, args, kwargs = inspect.signature(wrapper).parameters.values()
        signature = inspect.Signature([target, args, *options.values(), kwargs])
        cast(Any, call).__signature__ = signature
        return cast(F, call)

    return decorate


@overload
def init_all_states(
    target: T,
    *args: Any,
    key: ArrayLike | None = ...,
    node_to_exclude: Filter = ...,
    fn_if_not_exist: IfNotExist = ...,
    state_tag: str | None = ...,
    state_to_exclude: Filter = ...,
    has_aux: Literal[False] = ...,
    **kwargs: Any,
) -> tuple[T, StateDelta[T]]: ...


@overload
def init_all_states(
    target: T, *args: Any, has_aux: Literal[True], **options: Any
) -> tuple[T, StateDelta[T], dict[str, Any]]: ...


@_calls(call_all_fns, "init_state")
def init_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `init_state(*args, **kwargs)` on every module that has it.

    As `call_all_fns(target, "init_state", args, kwargs, ...)`, with the same keyword
    options, but `fn_if_not_exist` is `"pass"` by default.

    **Returns:** the new model and the `StateDelta` of what was written; `aux` as well,
    with `has_aux`.

    **Raises:** as `vmap_call_all_fns`.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     v: jnp.ndarray | None = None
    ...     def init_state(self, size):
    ...         return chorax.replace(self, v=jnp.zeros(size))
    >>> net, delta = chorax.init_all_states([Neuron(), Neuron()], 3)
    >>> net[1].v.shape
    (3,)

    ```
    """


@overload
def vmap_init_all_states(
    target: T,
    *args: Any,
    axis_size: SupportsIndex | None = ...,
    key: ArrayLike | None = ...,
    node_to_exclude: Filter = ...,
    fn_if_not_exist: IfNotExist = ...,
    state_tag: str | None = ...,
    state_to_exclude: Filter = ...,
    where: ArrayLike | Sequence[bool] | None = ...,
    in_axes: Any = ...,
    args_in_axes: Any = ...,
    kwargs_in_axes: Any = ...,
    axis_name: Hashable = ...,
    spmd_axis_name: Hashable = ...,
    chunk_size: SupportsIndex | None = ...,
    sharding: NamedSharding | None = ...,
    has_aux: Literal[False] = ...,
    **kwargs: Any,
) -> tuple[T, StateDelta[T]]: ...


@overload
def vmap_init_all_states(
    target: T, *args: Any, has_aux: Literal[True], **options: Any
) -> tuple[T, StateDelta[T], dict[str, Any]]: ...


@_calls(vmap_call_all_fns, "init_state")
def vmap_init_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `init_state(*args, **kwargs)` on every module that has it, in many lanes.

    As `vmap_call_all_fns(target, "init_state", args, kwargs, axis_size, ...)`, with the
    same keyword options, but `fn_if_not_exist` is `"pass"` by default.

    **Returns:** the new model, whose states have a leading lane axis of size
    `axis_size`, and the `StateDelta` of what was written; `aux` as well, with
    `has_aux`.

    **Raises:** as `vmap_call_all_fns`.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     v: jnp.ndarray | None = None
    ...     def init_state(self, size):
    ...         return chorax.replace(self, v=jnp.zeros(size))
    >>> net, delta = chorax.vmap_init_all_states([Neuron(), Neuron()], 3, axis_size=8)
    >>> net[1].v.shape
    (8, 3)

    ```
    """


@overload
def reset_all_states(
    target: T,
    *args: Any,
    key: ArrayLike | None = ...,
    node_to_exclude: Filter = ...,
    fn_if_not_exist: IfNotExist = ...,
    state_tag: str | None = ...,
    state_to_exclude: Filter = ...,
    has_aux: Literal[False] = ...,
    **kwargs: Any,
) -> tuple[T, StateDelta[T]]: ...


@overload
def reset_all_states(
    target: T, *args: Any, has_aux: Literal[True], **options: Any
) -> tuple[T, StateDelta[T], dict[str, Any]]: ...


@_calls(call_all_fns, "reset_state")
def reset_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `reset_state(*args, **kwargs)` on every module that has it.

    As `init_all_states`, for `reset_state`.

    **Returns:** as `init_all_states`.

    **Raises:** as `vmap_call_all_fns`.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     v: jnp.ndarray
    ...     def reset_state(self):
    ...         return chorax.replace(self, v=jnp.zeros_like(self.v))
    >>> net, delta = chorax.reset_all_states(Neuron(jnp.ones(2)))
    >>> net.v.tolist()
    [0.0, 0.0]

    ```
    """


@overload
def vmap_reset_all_states(
    target: T,
    *args: Any,
    axis_size: SupportsIndex | None = ...,
    key: ArrayLike | None = ...,
    node_to_exclude: Filter = ...,
    fn_if_not_exist: IfNotExist = ...,
    state_tag: str | None = ...,
    state_to_exclude: Filter = ...,
    where: ArrayLike | Sequence[bool] | None = ...,
    in_axes: Any = ...,
    args_in_axes: Any = ...,
    kwargs_in_axes: Any = ...,
    axis_name: Hashable = ...,
    spmd_axis_name: Hashable = ...,
    chunk_size: SupportsIndex | None = ...,
    sharding: NamedSharding | None = ...,
    has_aux: Literal[False] = ...,
    **kwargs: Any,
) -> tuple[T, StateDelta[T]]: ...


@overload
def vmap_reset_all_states(
    target: T, *args: Any, has_aux: Literal[True], **options: Any
) -> tuple[T, StateDelta[T], dict[str, Any]]: ...


@_calls(vmap_call_all_fns, "reset_state")
def vmap_reset_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `reset_state(*args, **kwargs)` on every module that has it, in many lanes.

    As `vmap_init_all_states`, for `reset_state`. For a model that already has lanes
    pass `in_axes`, such as the delta of the call that made them, so that each lane
    resets its own slice. With `where`, only lanes where it is true are reset.

    **Returns:** as `vmap_init_all_states`.

    **Raises:** as `vmap_call_all_fns`.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> class Neuron(eqx.Module):
    ...     v: jnp.ndarray | None = None
    ...     def init_state(self):
    ...         return chorax.replace(self, v=jnp.ones(()))
    ...     def reset_state(self):
    ...         return chorax.replace(self, v=self.v * 0)
    >>> net, delta = chorax.vmap_init_all_states(Neuron(), axis_size=3)
    >>> done = jnp.array([False, True, False])
    >>> net, _ = chorax.vmap_reset_all_states(net, in_axes=delta, where=done)
    >>> net.v.tolist()
    [1.0, 0.0, 1.0]

    ```
    """
