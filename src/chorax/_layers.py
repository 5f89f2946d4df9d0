"""How each layer of `eqx.nn` draws its parameters: as its constructor does.

Each rule builds a layer by the constructor, from what the layer knows of itself, and
takes the new parameters out of it. So the draws can't come apart from Equinox's.
"""

from collections.abc import Callable, Sequence
from typing import Any, cast, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu

from ._keys import check_key
from ._nodes import is_tied
from ._replace import replace
from ._reset import reset_parameters


T = TypeVar("T")
# A layer, its dtype and a key to a newly built layer.
Builder = Callable[[Any, Any, jax.Array], Any]


def _rule(
    kind: type, *names: str, of_layers: bool = False
) -> Callable[[Builder], Builder]:
    """Registers a builder for a layer whose fields of these names are parameters, or
    hold layers."""

    def decorate(build: Builder) -> Builder:
        def rule(node: Any, *, key: Any) -> Any:
            check_key(key)
            redraw = _redraw_inside if of_layers else _redraw
            return redraw(node, key, build, names)

        rule.__qualname__ = "reset_parameters"  # As errors of its arguments name it.
        reset_parameters.register(kind, rule)
        return build

    return decorate


@_rule(eqx.nn.Linear, "weight", "bias")
def _linear(node: eqx.nn.Linear, dtype: Any, key: jax.Array) -> eqx.nn.Linear:
    has_bias = node.bias is not None
    return eqx.nn.Linear(node.in_features, node.out_features, has_bias, dtype, key=key)


@_rule(eqx.nn.Conv, "weight", "bias")
@_rule(eqx.nn.ConvTranspose, "weight", "bias")
def _conv(node: Any, dtype: Any, key: jax.Array) -> Any:
    is_transpose = isinstance(node, eqx.nn.ConvTranspose)
    make: Any = eqx.nn.ConvTranspose if is_transpose else eqx.nn.Conv
    return make(
        node.num_spatial_dims,
        node.in_channels,
        node.out_channels,
        node.kernel_size,
        groups=node.groups,
        use_bias=node.bias is not None,
        dtype=dtype,
        key=key,
    )


@_rule(eqx.nn.GRUCell, "weight_ih", "weight_hh", "bias", "bias_n")
@_rule(eqx.nn.LSTMCell, "weight_ih", "weight_hh", "bias")
def _cell(node: Any, dtype: Any, key: jax.Array) -> Any:
    make: Any = eqx.nn.GRUCell if isinstance(node, eqx.nn.GRUCell) else eqx.nn.LSTMCell
    has_bias = node.bias is not None
    return make(node.input_size, node.hidden_size, has_bias, dtype, key=key)


@_rule(eqx.nn.Embedding, "weight")
def _embedding(node: eqx.nn.Embedding, dtype: Any, key: jax.Array) -> eqx.nn.Embedding:
    size = node.num_embeddings, node.embedding_size
    return eqx.nn.Embedding(*size, dtype=dtype, key=key)


@_rule(eqx.nn.LayerNorm, "weight", "bias")
def _layer_norm(node: eqx.nn.LayerNorm, dtype: Any, key: jax.Array) -> eqx.nn.LayerNorm:
    del key
    return eqx.nn.LayerNorm(node.shape, dtype=dtype)


@_rule(eqx.nn.RMSNorm, "weight", "bias")
def _rms_norm(node: eqx.nn.RMSNorm, dtype: Any, key: jax.Array) -> eqx.nn.RMSNorm:
    del key
    return eqx.nn.RMSNorm(node.shape, dtype=dtype)


@_rule(eqx.nn.GroupNorm, "weight", "bias")
def _group_norm(node: eqx.nn.GroupNorm, dtype: Any, key: jax.Array) -> eqx.nn.GroupNorm:
    del key
    return eqx.nn.GroupNorm(node.groups, node.channels, dtype=dtype)


_STATISTICS = (
    "ema_first_time_index",
    "ema_state_index",
    "batch_counter",
    "batch_state_index",
)


@_rule(eqx.nn.BatchNorm, "weight", "bias", *_STATISTICS)
def _batch_norm(node: eqx.nn.BatchNorm, dtype: Any, key: jax.Array) -> eqx.nn.BatchNorm:
    del key
    return eqx.nn.BatchNorm(
        node.input_size, node.axis_name, dtype=dtype, mode=node.mode
    )


@_rule(eqx.nn.PReLU, "negative_slope")
def _prelu(node: eqx.nn.PReLU, dtype: Any, key: jax.Array) -> eqx.nn.PReLU:
    del key
    default: Any = eqx.nn.PReLU().negative_slope
    return eqx.nn.PReLU(jnp.full(node.negative_slope.shape, default, dtype))


@reset_parameters.register(eqx.nn.RotaryPositionalEmbedding)
def _rotary(
    node: eqx.nn.RotaryPositionalEmbedding, *, key: jax.Array
) -> eqx.nn.RotaryPositionalEmbedding:
    del key
    return node  # It has nothing to draw.


@_rule(eqx.nn.MLP, "layers", of_layers=True)
def _mlp(node: eqx.nn.MLP, dtype: Any, key: jax.Array) -> eqx.nn.MLP:
    return eqx.nn.MLP(
        node.in_size,
        node.out_size,
        node.width_size,
        node.depth,
        use_bias=node.use_bias,
        use_final_bias=node.use_final_bias,
        dtype=dtype,
        scan=node.scan,
        key=key,
    )


_PROJECTIONS = "query_proj", "key_proj", "value_proj", "output_proj"


@_rule(eqx.nn.MultiheadAttention, *_PROJECTIONS, of_layers=True)
def _attention(
    node: eqx.nn.MultiheadAttention, dtype: Any, key: jax.Array
) -> eqx.nn.MultiheadAttention:
    return eqx.nn.MultiheadAttention(
        node.num_heads,
        node.query_size,
        node.key_size,
        node.value_size,
        node.output_size,
        node.qk_size,
        node.vo_size,
        node.use_query_bias,
        node.use_key_bias,
        node.use_value_bias,
        node.use_output_bias,
        dtype=dtype,
        key=key,
    )


@reset_parameters.register(eqx.nn.SpectralNorm)
def _spectral_norm(
    node: eqx.nn.SpectralNorm[Any], *, key: jax.Array
) -> eqx.nn.SpectralNorm[Any]:
    old = _content(node, "uv_index")
    if old is None or _weight_of(node) is None:
        return node

    def draw(layer: Any, key: jax.Array) -> Any:
        built: Any = eqx.nn.SpectralNorm(
            layer, node.weight_name, node.num_power_iterations, node.eps, key=key
        )
        pairs = zip(built.uv_index.init, old, strict=True)
        return tuple(x.astype(was.dtype) for x, was in pairs)

    # Its two vectors have one axis each.
    new = _per_slice(draw, old[0].shape[:-1], node.layer, key=key)
    return replace(node, uv_index=_with_content(node, "uv_index", new))


@reset_parameters.register(eqx.nn.WeightNorm)
def _weight_norm(
    node: eqx.nn.WeightNorm[Any], *, key: jax.Array
) -> eqx.nn.WeightNorm[Any]:
    weight, old = _weight_of(node), _content(node, "g")
    if weight is None or old is None:
        return node

    def draw(layer: Any, key: jax.Array) -> jax.Array:
        del key
        g: Any = eqx.nn.WeightNorm(layer, node.weight_name, node.axis).g
        return g.astype(old.dtype)

    for depth in range(weight.ndim):
        inner = weight.shape[depth:]
        kept = None if node.axis is None else node.axis % len(inner)
        norms = tuple(n if i == kept else 1 for i, n in enumerate(inner))
        if old.shape == (*weight.shape[:depth], *norms):
            leading = weight.shape[:depth]
            return replace(node, g=_per_slice(draw, leading, node.layer, key=key))
    raise _of_another_shape(node, "g", old.shape, "those of its layer's weight")


def _weight_of(norm: Any) -> Any:
    """The weight that a norm goes by; `None` if `eqx.nn.Shared` has taken it away: what
    stands elsewhere tells nothing here, and the norm stays as it is."""
    return None if is_tied(norm.layer) else _content(norm.layer, norm.weight_name)


def _redraw(node: Any, key: Any, build: Builder, names: Sequence[str]) -> Any:
    """The node with those of its fields that are parameters from a layer built anew."""
    old = {name: _content(node, name) for name in names}
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
                raise _of_another_shape(node, name, x.shape, f"{made.shape}")
            leading = x.shape[:depth] if leading is None else leading
            if x.shape[:depth] != leading:
                expected = f"{made.shape}, with {leading} leading as elsewhere"
                raise _of_another_shape(node, name, x.shape, expected)
    new = _per_slice(draw, leading or (), key=key)
    return replace(
        node, **{name: _with_content(node, name, x) for name, x in new.items()}
    )


def _redraw_inside(node: Any, key: Any, build: Builder, names: Sequence[str]) -> Any:
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
    new = _per_slice(_in_own_dtypes(node, build, old), leading, key=key)
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


def _per_slice(
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


def _content(node: Any, name: str) -> Any:
    """A parameter, or what a statistic starts from; `None` where there is none."""
    value, held = getattr(node, name), _held(node, name)
    if held is not value:
        return held if jtu.tree_leaves(held) else None  # It is in an `eqx.nn.State`.
    if value is None or is_tied(value):
        return None
    _check_parameter(node, name, value)
    return value


def _with_content(node: Any, name: str, new: Any) -> Any:
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


def _of_another_shape(node: Any, name: str, got: Any, expected: str) -> ValueError:
    kind = type(node).__name__
    return ValueError(
        f"`{name}` of {kind} has the shape {got}, but its constructor makes "
        f"{expected}, so it can't be drawn as its constructor would. Register a rule, "
        "`@chorax.reset_parameters.register`, for a class of your own, or exclude the "
        "layer by `node_to_exclude`."
    )
