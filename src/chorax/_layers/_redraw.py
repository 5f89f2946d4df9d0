"""Replacing parameters by newly drawn ones of the same shapes and dtypes.

Each of the three functions for rules builds a new layer and takes fields from it.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu

from .._tree._nodes import is_tied
from .._tree._replace import replace


T = TypeVar("T")
# From a layer, its dtype and a key to a newly built layer.
Builder = Callable[[Any, Any, jax.Array], Any]
_CURE = (
    "Register a rule for a class of your own with `@chorax.reset_parameters.register`, "
    "or exclude the layer by `node_to_exclude`."
)


def redraw(node: Any, key: Any, build: Builder, names: Sequence[str]) -> Any:
    """The node with its parameters, the fields of these names, from a new layer."""
    old = {name: _parameter(node, name) for name in names}
    old = {name: value for name, value in old.items() if value is not None}
    if not old:
        return node
    draw = _in_own_dtypes(node, build, old)
    made = cast(Any, eqx).filter_eval_shape(draw, key)
    return _with(node, _per_slice(draw, _leading_axes(node, old, made), key=key))


def redraw_inside(node: Any, key: Any, build: Builder, names: Sequence[str]) -> Any:
    """The node with its layers, the fields of these names, from a new layer.

    Layers that its constructor does not make have been put there by somebody else. They
    stay: their own rules have drawn them.
    """

    def draw(key: jax.Array) -> dict[str, Any]:
        return _contents(build(node, None, key), names)

    old, made = _contents(node, names), cast(Any, eqx).filter_eval_shape(draw, key)
    leaves, structure = jtu.tree_flatten(old)
    if structure != jtu.tree_structure(made) or not all(map(eqx.is_array, leaves)):
        return node
    try:
        leading = _leading_axes(node, old, made)
    except ValueError:
        return node
    for name in names:
        for x in jtu.tree_leaves(old[name]):
            _check_parameter(node, name, x)
    return _with(node, _per_slice(_in_own_dtypes(node, build, old), leading, key=key))


def redraw_norm(node: Any, key: Any, build: Builder, names: Sequence[str]) -> Any:
    """The node with one field from a new norm around the layer that it has."""
    (name,) = names
    # What `eqx.nn.Shared` has moved elsewhere is unknown here.
    is_moved = is_tied(node.layer)
    weight = None if is_moved else _parameter(node.layer, node.weight_name)
    old = _parameter(node, name)
    if weight is None or old is None:
        return node

    def in_own_dtype(x: Any, was: Any) -> Any:
        return x.astype(was.dtype)

    def draw(layer: Any, key: jax.Array) -> Any:
        built = build(replace(node, layer=layer), None, key)
        return jtu.tree_map(in_own_dtype, _parameter(built, name), old)

    shapes = [x.shape for x in jtu.tree_leaves(old)]
    for depth in range(weight.ndim):
        # If the layer is a stack, its norms have the same leading axes.
        every = functools.partial(_per_slice, draw, weight.shape[:depth], node.layer)
        made = cast(Any, eqx).filter_eval_shape(every, key=key)
        if [x.shape for x in jtu.tree_leaves(made)] == shapes:
            return _with(node, {name: every(key=key)})
    raise _other_shape(node, name, shapes[0], "one that fits its layer's weight")


def _in_own_dtypes(
    node: Any, build: Builder, old: dict[str, Any]
) -> Callable[[jax.Array], dict[str, Any]]:
    """Draws each leaf as the constructor draws it in that leaf's dtype."""
    numbers = filter(eqx.is_inexact_array, jtu.tree_leaves(old))
    dtypes = list(dict.fromkeys(x.dtype for x in numbers)) or [None]

    def own(x: Any, *made: Any) -> Any:
        # A counter is the same whatever the dtype of the layer.
        index = dtypes.index(x.dtype) if x.dtype in dtypes else 0
        return made[index].astype(x.dtype)

    def draw(key: jax.Array) -> dict[str, Any]:
        made = [_contents(build(node, dtype, key), list(old)) for dtype in dtypes]
        return jtu.tree_map(own, old, *made)

    return draw


def _leading_axes(
    node: Any, old: dict[str, Any], made: dict[str, Any]
) -> tuple[int, ...]:
    """The axes of a stack of layers, in front of those that the constructor makes."""
    leading: tuple[int, ...] | None = None
    for name in old:
        pairs = zip(*map(jtu.tree_leaves, (old[name], made[name])), strict=True)
        for x, y in pairs:
            own = x.shape[: x.ndim - len(y.shape)]
            if x.shape != (*own, *y.shape):
                raise _other_shape(node, name, x.shape, f"{y.shape}")
            if own != (own if leading is None else leading):
                expected = f"{y.shape}, with {leading} leading as elsewhere"
                raise _other_shape(node, name, x.shape, expected)
            leading = own
    return leading or ()


def _per_slice(
    draw: Callable[..., T], leading: tuple[int, ...], *layers: Any, key: jax.Array
) -> T:
    """Draws once for each slice along leading axes, each with a key of its own."""
    keys = jax.random.split(key, leading) if leading else key
    for _ in leading:
        # Its axes are jaxtyping's `PyTree`, which means nothing to a type checker.
        draw = eqx.filter_vmap(draw)  # pyright: ignore[reportUnknownMemberType]
    return draw(*layers, keys)


def _contents(node: Any, names: Sequence[str]) -> dict[str, Any]:
    """The values of fields; for a running statistic, its initial value."""
    values = {name: getattr(node, name) for name in names}
    return {name: x.init if _is_index(x) else x for name, x in values.items()}


def _parameter(node: Any, name: str) -> Any:
    """A parameter, or the initial value of a running statistic; `None` without one."""
    value = getattr(node, name)
    if _is_index(value):
        # `eqx.nn.make_with_state` leaves nothing here.
        return value.init if jtu.tree_leaves(value.init) else None
    if value is None or is_tied(value):
        return None
    _check_parameter(node, name, value)
    return value


def _with(node: Any, new: dict[str, Any]) -> Any:
    """The node with new parameters, or new initial values of running statistics."""
    old = {name: getattr(node, name) for name in new}
    fields = {
        k: replace(x, init=new[k]) if _is_index(x) else new[k] for k, x in old.items()
    }
    return replace(node, **fields)


def _is_index(value: Any) -> bool:
    return type(value) is eqx.nn.StateIndex


def _check_parameter(node: Any, name: str, value: Any) -> None:
    if eqx.is_inexact_array(value):
        return
    got = f"not an array but a {type(value).__name__}"
    if eqx.is_array(value):
        got = f"of {value.dtype} and not floating-point"
    raise TypeError(
        f"`{name}` of {type(node).__name__} is {got}, so it can't be drawn as the "
        f"constructor would. {_CURE}"
    )


def _other_shape(node: Any, name: str, got: Any, expected: str) -> ValueError:
    return ValueError(
        f"`{name}` of {type(node).__name__} has the shape {got}, but the constructor "
        f"makes {expected}, so it can't be drawn as the constructor would. {_CURE}"
    )
