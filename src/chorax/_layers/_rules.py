"""How each layer of `eqx.nn` draws its parameters: as its constructor does.

Each rule calls the constructor with what the layer knows of itself, and takes the new
parameters from the result. So the draws always agree with Equinox's.
"""

import inspect
from typing import Any

import jax
import jax.numpy as jnp
from equinox import nn

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


_STATISTICS = "ema_first_time_index ema_state_index batch_counter batch_state_index"
_CONV = "num_spatial_dims in_channels out_channels kernel_size groups use_bias"

# The fields that are parameters, and the constructor's arguments that decide how they
# are drawn, which are fields too.
_LAYERS: dict[Any, tuple[str, str]] = {
    nn.Linear: ("weight bias", "in_features out_features use_bias"),
    nn.Conv: ("weight bias", _CONV),
    nn.ConvTranspose: ("weight bias", _CONV),
    nn.GRUCell: ("weight_ih weight_hh bias bias_n", "input_size hidden_size use_bias"),
    nn.LSTMCell: ("weight_ih weight_hh bias", "input_size hidden_size use_bias"),
    nn.Embedding: ("weight", "num_embeddings embedding_size"),
    nn.LayerNorm: ("weight bias", "shape"),
    nn.RMSNorm: ("weight bias", "shape"),
    nn.GroupNorm: ("weight bias", "groups channels"),
    nn.BatchNorm: (f"weight bias {_STATISTICS}", "input_size axis_name mode"),
}
# The same for layers that are made of layers.
_LAYERS_OF_LAYERS: dict[Any, tuple[str, str]] = {
    nn.MLP: (
        "layers",
        "in_size out_size width_size depth use_bias use_final_bias scan",
    ),
    nn.MultiheadAttention: (
        "query_proj key_proj value_proj output_proj",
        "num_heads query_size key_size value_size output_size qk_size vo_size "
        "use_query_bias use_key_bias use_value_bias use_output_bias",
    ),
}


def _builder(kind: Any, arguments: list[str]) -> Builder:
    """Calls a constructor with these fields of a layer, and a dtype and a key where it
    takes them."""
    takes = inspect.signature(kind.__init__).parameters

    def build(node: Any, dtype: Any, key: jax.Array) -> Any:
        given = {name: getattr(node, name) for name in arguments}
        if "use_bias" in given and hasattr(node, "bias"):
            # The bias may have been removed or added since.
            given["use_bias"] = node.bias is not None
        drawn = {"dtype": dtype, "key": key}
        return kind(**given, **{k: x for k, x in drawn.items() if k in takes})

    return build


def _build_prelu(node: Any, dtype: Any, key: jax.Array) -> Any:
    del key
    default: Any = nn.PReLU().negative_slope
    return nn.PReLU(jnp.full(node.negative_slope.shape, default, dtype))


def _register(kind: type, names: str, build: Builder, draw: Any = redraw) -> None:
    def rule(node: Any, *, key: Any) -> Any:
        check_key(key)
        return draw(node, key, build, names.split())

    rule.__qualname__ = "reset_parameters"  # For errors about its arguments.
    reset_parameters.register(kind, rule)


for _kind, (_names, _arguments) in _LAYERS.items():
    _register(_kind, _names, _builder(_kind, _arguments.split()))
for _kind, (_names, _arguments) in _LAYERS_OF_LAYERS.items():
    _register(_kind, _names, _builder(_kind, _arguments.split()), redraw_inside)
_register(nn.PReLU, "negative_slope", _build_prelu)


@reset_parameters.register(nn.RotaryPositionalEmbedding)
def _rotary(node: Any, *, key: jax.Array) -> Any:
    del key
    return node  # It has no parameters.


@reset_parameters.register(nn.SpectralNorm)
def _spectral_norm(node: Any, *, key: jax.Array) -> Any:
    old = content_of(node, "uv_index")
    if old is None or _weight_of(node) is None:
        return node

    def draw(layer: Any, key: jax.Array) -> Any:
        built: Any = nn.SpectralNorm(
            layer, node.weight_name, node.num_power_iterations, node.eps, key=key
        )
        pairs = zip(built.uv_index.init, old, strict=True)
        return tuple(x.astype(was.dtype) for x, was in pairs)

    # Its two vectors have one axis each.
    new = per_slice(draw, old[0].shape[:-1], node.layer, key=key)
    return replace(node, uv_index=with_content(node, "uv_index", new))


@reset_parameters.register(nn.WeightNorm)
def _weight_norm(node: Any, *, key: jax.Array) -> Any:
    weight, old = _weight_of(node), content_of(node, "g")
    if weight is None or old is None:
        return node

    def draw(layer: Any, key: jax.Array) -> jax.Array:
        del key
        g: Any = nn.WeightNorm(layer, node.weight_name, node.axis).g
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
    """The weight that a norm depends on; `None` if `eqx.nn.Shared` has moved it
    elsewhere, so that the norm can't be drawn and stays as it is."""
    return None if is_tied(norm.layer) else content_of(norm.layer, norm.weight_name)
