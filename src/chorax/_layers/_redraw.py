"""Putting newly drawn parameters into a layer, each as the layer holds it."""

from collections.abc import Callable, Sequence
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.tree_util as jtu

from .._tree._nodes import is_tied
from .._tree._replace import replace


T = TypeVar("T")
# A layer, its dtype and a key to a newly built layer.
Builder = Callable[[Any, Any, jax.Array], Any]


def redraw(node: Any, key: Any, build: Builder, names: Sequence[str]) -> Any:
    """The node with those of its fields that are parameters from a layer built anew."""
    old = {name: content_of(node, name) for name in names}
    old = {name: value for name, value in old.items() if value is not None}
    if not old:
        return node
    draw = _in_own_dtypes(node, build, old)
    struct = cast(Any, eqx).filter_eval_shape(draw, key)
    leading: tuple[int, ...] | None = None
    for name in old:
        pairs = zip(*map(jtu.tree_leaves, (old[name], struct[name])), strict=True)
        for x, made in pairs:
            depth = x.ndim - len(made.shape)
            if depth < 0 or x.shape[depth:] != made.shape:
                raise of_another_shape(node, name, x.shape, f"{made.shape}")
            leading = x.shape[:depth] if leading is None else leading
            if x.shape[:depth] != leading:
                expected = f"{made.shape}, with {leading} leading as elsewhere"
                raise of_another_shape(node, name, x.shape, expected)
    new = per_slice(draw, leading or (), key=key)
    return replace(
        node, **{name: with_content(node, name, x) for name, x in new.items()}
    )


def redraw_inside(node: Any, key: Any, build: Builder, names: Sequence[str]) -> Any:
    """The node with its layers from one built anew, by one key for all of them.

    Where somebody has put in others, no constructor makes such layers: each of them
    stands alone, and has been drawn by its own rule.
    """
    old = {name: _held(node, name) for name in names}

    def draw(key: jax.Array) -> dict[str, Any]:
        built = build(node, None, key)
        return {name: _held(built, name) for name in names}

    leaves, structure = jtu.tree_flatten(old)
    made, expected = jtu.tree_flatten(cast(Any, eqx).filter_eval_shape(draw, key))
    if structure != expected or not all(map(eqx.is_array, leaves)):
        return node
    leading = leaves[0].shape[: leaves[0].ndim - len(made[0].shape)]
    pairs = zip(leaves, made, strict=True)
    if any(x.shape != (*leading, *y.shape) for x, y in pairs):
        return node
    for name in names:
        for x in jtu.tree_leaves(old[name]):
            _check_parameter(node, name, x)
    new = per_slice(_in_own_dtypes(node, build, old), leading, key=key)
    return replace(node, **new)


def _in_own_dtypes(
    node: Any, build: Builder, old: dict[str, Any]
) -> Callable[[jax.Array], dict[str, Any]]:
    """What draws anew: each leaf as the constructor draws it in that leaf's dtype."""
    numbers = filter(eqx.is_inexact_array, jtu.tree_leaves(old))
    dtypes = list(dict.fromkeys(x.dtype for x in numbers)) or [None]

    def own(x: Any, *made: Any) -> Any:
        # A counter has no say in the dtype, and is the same in all of them.
        index = dtypes.index(x.dtype) if x.dtype in dtypes else 0
        return made[index].astype(x.dtype)

    def draw(key: jax.Array) -> dict[str, Any]:
        built = [build(node, dtype, key) for dtype in dtypes]
        held = [{name: _held(layer, name) for name in old} for layer in built]
        return jtu.tree_map(own, old, *held)

    return draw


def per_slice(
    draw: Callable[..., T], leading: tuple[int, ...], *layers: Any, key: jax.Array
) -> T:
    """Draws once for each slice along leading axes, with a key of its own."""
    keys = jax.random.split(key, leading) if leading else key
    for _ in leading:
        # Its axes are jaxtyping's `PyTree`, which means nothing to a type checker.
        draw = eqx.filter_vmap(draw)  # pyright: ignore[reportUnknownMemberType]
    return draw(*layers, keys)


def _held(node: Any, name: str) -> Any:
    """What is in a field; of a statistic, what it starts from."""
    value = getattr(node, name)
    is_index = type(value) is eqx.nn.StateIndex
    return cast(Any, value).init if is_index else value


def content_of(node: Any, name: str) -> Any:
    """A parameter, or what a statistic starts from; `None` where there is none."""
    value, held = getattr(node, name), _held(node, name)
    if held is not value:
        return held if jtu.tree_leaves(held) else None  # It is in an `eqx.nn.State`.
    if value is None or is_tied(value):
        return None
    _check_parameter(node, name, value)
    return value


def with_content(node: Any, name: str, new: Any) -> Any:
    value = getattr(node, name)
    is_index = type(value) is eqx.nn.StateIndex
    return replace(cast(Any, value), init=new) if is_index else new


def _check_parameter(node: Any, name: str, value: Any) -> None:
    if eqx.is_inexact_array(value):
        return
    got = f"no array, but a {type(value).__name__}"
    if eqx.is_array(value):
        got = f"of {value.dtype} and not floating-point"
    raise TypeError(
        f"`{name}` of {type(node).__name__} is {got}, so its parameters can't be drawn "
        "as its constructor would. Register a rule, "
        "`@chorax.reset_parameters.register`, for a class of your own, or exclude the "
        "layer by `node_to_exclude`."
    )


def of_another_shape(node: Any, name: str, got: Any, expected: str) -> ValueError:
    kind = type(node).__name__
    return ValueError(
        f"`{name}` of {kind} has the shape {got}, but its constructor makes "
        f"{expected}, so it can't be drawn as its constructor would. Register a rule, "
        "`@chorax.reset_parameters.register`, for a class of your own, or exclude the "
        "layer by `node_to_exclude`."
    )
