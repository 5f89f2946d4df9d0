"""How each layer of `eqx.nn` draws its parameters: as its constructor does.

Each rule calls the constructor with what the layer knows of itself, and takes the new
parameters from the result. So the draws always agree with Equinox's.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from equinox import nn

from .._tree._keys import check_key
from ._redraw import Builder, redraw, redraw_inside, redraw_norm
from ._reset import reset_parameters


_STATISTICS = "ema_first_time_index ema_state_index batch_counter batch_state_index"
_CONV = "num_spatial_dims in_channels out_channels kernel_size groups use_bias"

# For each way to redraw and each layer: the fields that are redrawn, and the arguments
# of the constructor that decide how, which are fields of the same names.
_RULES: Mapping[Any, Mapping[Any, tuple[str, str]]] = {
    redraw: {
        nn.Linear: ("weight bias", "in_features out_features use_bias"),
        nn.Conv: ("weight bias", _CONV),
        nn.ConvTranspose: ("weight bias", _CONV),
        nn.GRUCell: (
            "weight_ih weight_hh bias bias_n",
            "input_size hidden_size use_bias",
        ),
        nn.LSTMCell: ("weight_ih weight_hh bias", "input_size hidden_size use_bias"),
        nn.Embedding: ("weight", "num_embeddings embedding_size"),
        nn.LayerNorm: ("weight bias", "shape"),
        nn.RMSNorm: ("weight bias", "shape"),
        nn.GroupNorm: ("weight bias", "groups channels"),
        nn.BatchNorm: (f"weight bias {_STATISTICS}", "input_size axis_name mode"),
    },
    redraw_inside: {
        nn.MLP: (
            "layers",
            "in_size out_size width_size depth use_bias use_final_bias scan",
        ),
        nn.MultiheadAttention: (
            "query_proj key_proj value_proj output_proj",
            "num_heads query_size key_size value_size output_size qk_size vo_size "
            "use_query_bias use_key_bias use_value_bias use_output_bias",
        ),
    },
    redraw_norm: {
        nn.SpectralNorm: ("uv_index", "layer weight_name num_power_iterations eps"),
        nn.WeightNorm: ("g", "layer weight_name axis"),
    },
}


def _builder(kind: Any, arguments: Sequence[str]) -> Builder:
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


def _register(kind: type, redraw: Any, names: Sequence[str], build: Builder) -> None:
    def rule(node: Any, *, key: Any) -> Any:
        check_key(key)
        return redraw(node, key, build, names)

    rule.__qualname__ = "reset_parameters"  # For errors about its arguments.
    reset_parameters.register(kind, rule)


for _redraw, _table in _RULES.items():
    for _kind, (_names, _arguments) in _table.items():
        _build = _builder(_kind, _arguments.split())
        _register(_kind, _redraw, _names.split(), _build)
_register(nn.PReLU, redraw, ["negative_slope"], _build_prelu)


@reset_parameters.register(nn.RotaryPositionalEmbedding)
def _rotary(node: Any, *, key: jax.Array) -> Any:
    del key
    return node  # It has no parameters.
