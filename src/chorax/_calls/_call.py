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
    - `args`: a tuple of positional arguments; anything else is a single argument.
    - `kwargs`: the keyword arguments; `None` for none.
    - `axis_size`: the number of lanes, a positive integer. It may be `None` if
        `in_axes` is given: the mapped leaves then determine it, or the `axis_size` of
        a `StateDelta` that maps no leaf.
    - `node_to_exclude`: a filter over nodes (see `chorax.filters`). Nodes that it keeps
        are not called; the nodes inside them are. A tag or class that matches no node
        gives a warning.
    - `state_tag`: a tag for the written leaves, by which `delta.select` and filters
        find them. Swept values need one if the model is trained: an optimiser over all
        inexact arrays would train them too. `chorax.lanes.partition` leaves out those
        with the tag `"hyper"`.
    - `fn_if_not_exist`: what to do about a node without that method: `"raise"`, skip
        it (`"pass"` or `"none"`), or skip it and `"warn"`.
    - `key`: one PRNG key, which is split over the lanes, or an array of `axis_size`
        keys, one per lane. In each lane every node gets a key of its own, derived from
        the lane's key and the node's path. A method receives it as its parameter `key`,
        if it has one.
    - `state_to_exclude`: a filter over leaves. Leaves that it keeps are written once
        for all lanes, without a lane axis. A tag or class that matches no written leaf
        gives a warning.
    - `where`: a boolean array of shape `(axis_size,)`. Lanes where it is false keep
        what they had: their own value of a leaf that `in_axes` maps, and the shared
        value of any other. It is an error if a written leaf has nothing to keep (it was
        `None`, or had another shape or dtype), or if `state_to_exclude` keeps it.
        `None`: all lanes.
    - `has_aux`: whether methods return `(node, aux)`.
    - `in_axes`: which leaves of `target` already have a lane axis: a tree of axes, as
        `eqx.filter_vmap` takes it, or a `StateDelta` (of which `eqx.filter_vmap` takes
        `delta.in_axes`). `None`: no leaf has one, and a method sees every leaf whole.
    - `args_in_axes`, `kwargs_in_axes`: the same for the arguments. `None`: every lane
        gets them whole.
    - `axis_name`, `spmd_axis_name`: as in `jax.vmap`.
    - `chunk_size`: how many lanes to run at a time (on each device), to bound memory;
        chunks run one after another. `None`: all lanes at once.
    - `sharding`: the devices that hold the lanes, as in `chorax.lanes.shard`. Each
        device of the mesh axis computes and holds its own lanes, `axis_size` divided by
        the number of devices, without communication; what lanes share is on all
        devices. Two cases do communicate, in one program that the compiler partitions:
        calls with `axis_name` or `spmd_axis_name`, and methods that close over an array
        on several devices. `None`: lanes are on the devices of the arguments.

    **Returns:**

    A pair of the new model, in which every written array has a leading lane axis of
    size `axis_size`, and the `StateDelta` of what was written. Leaves that were not
    written are those of `target`, the same objects. With `has_aux` there is a third
    result: a dictionary from the dotted path of each called node to its `aux`, with a
    lane axis.

    **Raises:**

    `ValueError`, `TypeError` or `AttributeError` for bad arguments, before any method
    is called. An exception from inside a method gets a note with the path of the node.

    `chorax.explain` takes the same arguments and shows what the call will do;
    `call_all_fns` makes the call without lanes.

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

    This is what one lane of `vmap_call_all_fns` does. The arguments are as there, but
    `key` is a single PRNG key, that of the lane.

    **Returns:**

    A pair of the new model and the `StateDelta` of what was written. With `has_aux`
    there is a third result: a dictionary from the dotted path of each called node to
    its `aux`.

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
