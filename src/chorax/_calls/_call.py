"""The public collective calls."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal, overload, SupportsIndex, TypeVar

from jax.sharding import NamedSharding
from jax.typing import ArrayLike

from .._deltas._delta import StateDelta
from .._plan._request import IfNotExist
from ..filters import Filter
from ._checks import check_request
from ._road import run_collective


T = TypeVar("T")


@overload
def vmap_call_all_fns(
    target: T,
    fn_name: str | Callable[..., Any],
    args: Any = ...,
    kwargs: Mapping[str, Any] | None = ...,
    axis_size: SupportsIndex | None = ...,
    node_to_exclude: Filter = ...,
    state_tag: str | None = ...,
    fn_if_not_exist: IfNotExist = ...,
    *,
    key: ArrayLike | None = ...,
    state_to_exclude: Filter = ...,
    where: ArrayLike | Sequence[bool] | None = ...,
    has_aux: Literal[False] = ...,
    in_axes: Any = ...,
    args_in_axes: Any = ...,
    kwargs_in_axes: Any = ...,
    axis_name: Hashable = ...,
    spmd_axis_name: Hashable = ...,
    chunk_size: SupportsIndex | None = ...,
    sharding: NamedSharding | None = ...,
) -> tuple[T, StateDelta[T]]: ...


@overload
def vmap_call_all_fns(
    target: T,
    fn_name: str | Callable[..., Any],
    args: Any = ...,
    kwargs: Mapping[str, Any] | None = ...,
    axis_size: SupportsIndex | None = ...,
    node_to_exclude: Filter = ...,
    state_tag: str | None = ...,
    fn_if_not_exist: IfNotExist = ...,
    *,
    key: ArrayLike | None = ...,
    state_to_exclude: Filter = ...,
    where: ArrayLike | Sequence[bool] | None = ...,
    has_aux: Literal[True],
    in_axes: Any = ...,
    args_in_axes: Any = ...,
    kwargs_in_axes: Any = ...,
    axis_name: Hashable = ...,
    spmd_axis_name: Hashable = ...,
    chunk_size: SupportsIndex | None = ...,
    sharding: NamedSharding | None = ...,
) -> tuple[T, StateDelta[T], dict[str, Any]]: ...


def vmap_call_all_fns(
    target: Any,
    fn_name: Any,
    args: Any = (),
    kwargs: Any = None,
    axis_size: Any = None,
    node_to_exclude: Any = None,
    state_tag: Any = None,
    fn_if_not_exist: Any = "raise",
    *,
    key: Any = None,
    state_to_exclude: Any = None,
    where: Any = None,
    has_aux: Any = False,
    in_axes: Any = None,
    args_in_axes: Any = None,
    kwargs_in_axes: Any = None,
    axis_name: Any = None,
    spmd_axis_name: Any = None,
    chunk_size: Any = None,
    sharding: Any = None,
) -> Any:
    """Calls one method on every module of a model, in many lanes at once.

    A node is any `eqx.Module` found in `target`, through every container. Children are
    called before parents and siblings in field order; methods marked by `call_order`
    come after all others. Nothing is mutated: a method returns the updated node, as
    `chorax.replace(self, ...)` makes it. It works inside `jit`, `grad`, `vmap` and
    `scan`. The idea is that of `brainstate.nn.vmap_call_all_fns`.

    **Arguments:**

    - `target`: a module, or any PyTree of modules.
    - `fn_name`: the name of a method, or a function `(node, *args, **kwargs) -> node`
        that is applied to every node.
    - `args`: the positional arguments, a tuple; anything else is one argument.
    - `kwargs`: the keyword arguments; `None` for none.
    - `axis_size`: the number of lanes, a positive integer. `None`: as many as the
        leaves have that `in_axes` maps, or as a `StateDelta` says that maps none;
        without `in_axes` it is required.
    - `node_to_exclude`: a filter over nodes (see `chorax.filters`); those it keeps are
        not called. The nodes inside them are. A tag or a class that matches none is
        warned of.
    - `state_tag`: a tag for the written leaves, by which `delta.select` and filters
        find them. Swept values need one if the model is trained: an optimiser over all
        inexact arrays would train them too. With the tag `"hyper"`, train the leaves of
        `delta.select(~WithTag("hyper")).filter_spec` (`chorax.filters.WithTag`).
    - `fn_if_not_exist`: what to do about a node without that method: `"raise"`, skip
        it (`"pass"` or `"none"`), or skip it and `"warn"`.
    - `key`: one PRNG key, which is split over the lanes, or `axis_size` keys, one a
        lane. In each lane every node gets a key of its own, made from the lane's key
        and the node's path, as the parameter `key` of its method, if it has one.
    - `state_to_exclude`: a filter over leaves; those it keeps are written once for all
        lanes, without a lane axis. A tag or a class that matches none is warned of.
    - `where`: a boolean array of shape `(axis_size,)`. Lanes where it is false keep
        what they had, each its own value of a leaf that `in_axes` maps, and all the
        same of one that they shared. A written leaf for which they had nothing (it was
        `None`, or of another shape or dtype), or which `state_to_exclude` makes the
        same for all, is an error. `None`: all lanes.
    - `has_aux`: methods return `(node, aux)`; there is a third result.
    - `in_axes`: which leaves of `target` already have a lane axis: a tree of axes, as
        `eqx.filter_vmap` takes it, or a `StateDelta` (of which `eqx.filter_vmap` takes
        `delta.in_axes`). `None`: no leaf has one, and a method sees every leaf whole.
    - `args_in_axes`, `kwargs_in_axes`: the same for the arguments. `None`: every lane
        gets them whole.
    - `axis_name`, `spmd_axis_name`: as in `jax.vmap`.
    - `chunk_size`: at most so many lanes at a time (on each device), one chunk after
        the other, to bound memory. `None`: all at once.
    - `sharding`: where lanes are to live, as `chorax.lanes.shard` takes it. Each device
        of the mesh axis computes and holds its own lanes, `axis_size` divided by the
        number of devices, and nothing is sent between them; what lanes share is on all.
        With `axis_name` or `spmd_axis_name` lanes may meet, and where a method closes
        over an array on many devices all need it: there the compiler spreads one
        program, and sends what it has to. `None`: wherever the arguments are.

    **Returns:**

    A pair of the new model, in which every written array has a lane axis of size
    `axis_size` in front, and the `StateDelta` of what was written. Leaves that were not
    written are those of `target`, the same objects. With `has_aux`, a dictionary from
    the dotted path of each called node to its `aux`, with a lane axis, is the third.

    **Raises:**

    `ValueError`, `TypeError` or `AttributeError` for bad arguments, before any method
    is called. What a method raises gets a note with the path of the node.

    `chorax.explain` takes the same arguments and tells what they come to.

    ```python
    >>> import chorax
    >>> import equinox as eqx
    >>> import jax
    >>> model = eqx.nn.MLP(2, 1, 8, 2, key=jax.random.key(0))
    >>> ensemble, delta = chorax.vmap_call_all_fns(
    ...     model, chorax.reset_parameters, axis_size=5, key=jax.random.key(1))
    >>> ensemble.layers[0].weight.shape
    (5, 8, 2)
    >>> eqx.filter_vmap(lambda m, x: m(x), in_axes=(delta.in_axes, None))(
    ...     ensemble, jax.numpy.ones(2)).shape
    (5, 1)

    ```
    """
    given = dict(locals())
    return _run(given, has_lanes=True)


@overload
def call_all_fns(
    target: T,
    fn_name: str | Callable[..., Any],
    args: Any = ...,
    kwargs: Mapping[str, Any] | None = ...,
    node_to_exclude: Filter = ...,
    fn_if_not_exist: IfNotExist = ...,
    *,
    key: ArrayLike | None = ...,
    state_tag: str | None = ...,
    state_to_exclude: Filter = ...,
    has_aux: Literal[False] = ...,
) -> tuple[T, StateDelta[T]]: ...


@overload
def call_all_fns(
    target: T,
    fn_name: str | Callable[..., Any],
    args: Any = ...,
    kwargs: Mapping[str, Any] | None = ...,
    node_to_exclude: Filter = ...,
    fn_if_not_exist: IfNotExist = ...,
    *,
    key: ArrayLike | None = ...,
    state_tag: str | None = ...,
    state_to_exclude: Filter = ...,
    has_aux: Literal[True],
) -> tuple[T, StateDelta[T], dict[str, Any]]: ...


def call_all_fns(
    target: Any,
    fn_name: Any,
    args: Any = (),
    kwargs: Any = None,
    node_to_exclude: Any = None,
    fn_if_not_exist: Any = "raise",
    *,
    key: Any = None,
    state_tag: Any = None,
    state_to_exclude: Any = None,
    has_aux: Any = False,
) -> Any:
    """Calls one method on every module of a model, without lanes.

    What one lane of `vmap_call_all_fns` does, with the same arguments; `key` is one
    PRNG key, that of the lane.

    **Returns:**

    A pair of the new model and the `StateDelta` of what was written; with `has_aux`, a
    dictionary from the dotted path of each called node to its `aux` is the third.

    **Raises:** as `vmap_call_all_fns`.

    ```python
    >>> import chorax
    >>> import equinox as eqx
    >>> class Counter(eqx.Module):
    ...     n: int
    ...     def advance(self, by):
    ...         return chorax.replace(self, n=self.n + by)
    >>> model, delta = chorax.call_all_fns({"a": Counter(1), "b": Counter(5)},
    ...                                    "advance", 2)
    >>> delta.to_dict()
    {'a.n': 3, 'b.n': 7}

    ```
    """
    given = dict(locals())
    return _run(given, has_lanes=False)


def _run(given: dict[str, Any], has_lanes: bool) -> Any:
    target = given.pop("target")
    request = check_request(target, given, has_lanes)
    model, delta, aux = run_collective(target, request)
    return (model, delta, aux) if request.has_aux else (model, delta)
