"""Collective calls under their usual names: making and resetting states."""

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
# Where they differ from those of the function under a wrapper.
_DEFAULTS = {"fn_if_not_exist": "pass"}


@functools.cache
def _options_of(function: Callable[..., Any]) -> tuple[inspect.Parameter, ...]:
    """The parameters of a collective call that its wrappers take as keywords."""
    _, _, _, _, *rest = inspect.signature(function).parameters.values()
    return tuple(
        each.replace(
            kind=inspect.Parameter.KEYWORD_ONLY,
            default=_DEFAULTS.get(each.name, each.default),
        )
        for each in rest
    )


def _shows_options_of(function: Callable[..., Any]) -> Callable[[F], F]:
    """Has `help` list the options that a wrapper takes."""

    def decorate(wrapper: F) -> F:
        target, args, kwargs = inspect.signature(wrapper).parameters.values()
        parameters = [target, args, *_options_of(function), kwargs]
        cast(Any, wrapper).__signature__ = inspect.Signature(parameters)
        return wrapper

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


@_shows_options_of(call_all_fns)
def init_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `init_state(*args, **kwargs)` on every module that has it.

    As `call_all_fns(target, "init_state", args, kwargs, ...)`, whose keyword options it
    takes; modules without the method are skipped, unless `fn_if_not_exist` says
    otherwise.

    **Returns:** the new model and the `StateDelta` of what was written.

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
    return _call(call_all_fns, "init_state", target, args, kwargs)


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


@_shows_options_of(vmap_call_all_fns)
def vmap_init_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `init_state(*args, **kwargs)` in every module that has it, in many lanes.

    As `vmap_call_all_fns(target, "init_state", args, kwargs, axis_size, ...)`, whose
    keyword options it takes; modules without the method are skipped, unless
    `fn_if_not_exist` says otherwise.

    **Returns:** the new model, whose states have a lane axis of size `axis_size` in
    front, and the `StateDelta` of what was written.

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
    return _call(vmap_call_all_fns, "init_state", target, args, kwargs)


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


@_shows_options_of(call_all_fns)
def reset_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `reset_state(*args, **kwargs)` on every module that has it.

    As `init_all_states`, for `reset_state`.

    **Returns:** the new model and the `StateDelta` of what was written.

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
    return _call(call_all_fns, "reset_state", target, args, kwargs)


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


@_shows_options_of(vmap_call_all_fns)
def vmap_reset_all_states(target: Any, *args: Any, **kwargs: Any) -> Any:
    """Calls `reset_state(*args, **kwargs)` on every module that has it, in many lanes.

    As `vmap_init_all_states`, for `reset_state`. For a model that has lanes already
    pass `in_axes`, such as the delta of the call that made them: each lane then resets
    its own slice. With `where` only the lanes where it is true are reset.

    **Returns:** the new model and the `StateDelta` of what was written.

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
    return _call(vmap_call_all_fns, "reset_state", target, args, kwargs)


def _call(
    function: Any, name: str, target: Any, args: tuple[Any, ...], options: Any
) -> Any:
    """Calls the method `name`, which gets what is not an option of the function."""
    known = {each.name for each in _options_of(function)}
    own = {key: value for key, value in options.items() if key in known}
    kwargs = {key: value for key, value in options.items() if key not in known}
    return function(target, name, args, kwargs, **{**_DEFAULTS, **own})
