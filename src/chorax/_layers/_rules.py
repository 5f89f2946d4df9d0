"""How each layer of `eqx.nn` draws its parameters: as its constructor does.

Each rule builds a layer by the constructor, from what the layer knows of itself, and
takes the new parameters out of it. So the draws can't come apart from Equinox's.
"""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from .._tree._keys import check_key
from .._tree._nodes import is_tied
from .._tree._replace import replace
from ._redraw import (
    Builder,
    content_of,
    of_another_shape,
    per_slice,
    redraw,
    redraw_inside,
    with_content,
)
from ._reset import reset_parameters


def _rule(
    kind: type, *names: str, of_layers: bool = False
) -> Callable[[Builder], Builder]:
    """Registers a builder for a layer whose fields of these names are parameters, or
    hold layers."""

    def decorate(build: Builder) -> Builder:
        def rule(node: Any, *, key: Any) -> Any:
            check_key(key)
            draw = redraw_inside if of_layers else redraw
            return draw(node, key, build, names)

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
    old = content_of(node, "uv_index")
    if old is None or _weight_of(node) is None:
        return node

    def draw(layer: Any, key: jax.Array) -> Any:
        built: Any = eqx.nn.SpectralNorm(
            layer, node.weight_name, node.num_power_iterations, node.eps, key=key
        )
        pairs = zip(built.uv_index.init, old, strict=True)
        return tuple(x.astype(was.dtype) for x, was in pairs)

    # Its two vectors have one axis each.
    new = per_slice(draw, old[0].shape[:-1], node.layer, key=key)
    return replace(node, uv_index=with_content(node, "uv_index", new))


@reset_parameters.register(eqx.nn.WeightNorm)
def _weight_norm(
    node: eqx.nn.WeightNorm[Any], *, key: jax.Array
) -> eqx.nn.WeightNorm[Any]:
    weight, old = _weight_of(node), content_of(node, "g")
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
            return replace(node, g=per_slice(draw, leading, node.layer, key=key))
    raise of_another_shape(node, "g", old.shape, "those of its layer's weight")


def _weight_of(norm: Any) -> Any:
    """The weight that a norm goes by; `None` if `eqx.nn.Shared` has taken it away: what
    stands elsewhere tells nothing here, and the norm stays as it is."""
    return None if is_tied(norm.layer) else content_of(norm.layer, norm.weight_name)
