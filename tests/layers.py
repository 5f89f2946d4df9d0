"""How to build every layer of `eqx.nn` from a key, by name."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp


nn = eqx.nn


def _linear(key: jax.Array) -> nn.Linear:
    return nn.Linear(3, 4, key=key)


LAYERS: dict[str, Callable[[jax.Array], Any]] = {
    "Linear": _linear,
    "Linear without bias": lambda key: nn.Linear(3, 4, use_bias=False, key=key),
    "Linear of scalars": lambda key: nn.Linear("scalar", "scalar", key=key),
    "Linear to a scalar": lambda key: nn.Linear(3, "scalar", key=key),
    "Linear from a scalar": lambda key: nn.Linear("scalar", 3, key=key),
    "Linear in half": lambda key: nn.Linear(3, 4, dtype=jnp.float16, key=key),
    "Linear in bfloat16": lambda key: nn.Linear(3, 4, dtype=jnp.bfloat16, key=key),
    "Linear in complex": lambda key: nn.Linear(3, 4, dtype=jnp.complex64, key=key),
    "Conv": lambda key: nn.Conv(2, 2, 4, 3, key=key),
    "Conv1d": lambda key: nn.Conv1d(2, 4, 3, groups=2, key=key),
    "Conv2d": lambda key: nn.Conv2d(2, 4, (3, 2), key=key),
    "Conv2d without bias": lambda key: nn.Conv2d(2, 4, 3, use_bias=False, key=key),
    "Conv2d in half": lambda key: nn.Conv2d(2, 4, 3, dtype=jnp.float16, key=key),
    "Conv3d": lambda key: nn.Conv3d(2, 4, 3, key=key),
    "ConvTranspose": lambda key: nn.ConvTranspose(2, 2, 4, 3, key=key),
    "ConvTranspose1d": lambda key: nn.ConvTranspose1d(2, 4, 3, groups=2, key=key),
    "ConvTranspose2d": lambda key: nn.ConvTranspose2d(2, 4, (3, 2), key=key),
    "ConvTranspose2d in complex": lambda key: nn.ConvTranspose2d(
        2, 4, 3, use_bias=False, dtype=jnp.complex64, key=key
    ),
    "ConvTranspose3d": lambda key: nn.ConvTranspose3d(2, 4, 3, key=key),
    "GRUCell": lambda key: nn.GRUCell(3, 4, key=key),
    "GRUCell without bias": lambda key: nn.GRUCell(3, 4, use_bias=False, key=key),
    "GRUCell in half": lambda key: nn.GRUCell(3, 4, dtype=jnp.float16, key=key),
    "LSTMCell": lambda key: nn.LSTMCell(3, 4, key=key),
    "LSTMCell without bias": lambda key: nn.LSTMCell(3, 4, use_bias=False, key=key),
    "LSTMCell in complex": lambda key: nn.LSTMCell(3, 4, dtype=jnp.complex64, key=key),
    "Embedding": lambda key: nn.Embedding(5, 3, key=key),
    "Embedding in half": lambda key: nn.Embedding(5, 3, dtype=jnp.float16, key=key),
    "LayerNorm": lambda key: nn.LayerNorm((3, 4)),
    "LayerNorm of a scalar": lambda key: nn.LayerNorm(()),
    "LayerNorm without bias": lambda key: nn.LayerNorm(3, use_bias=False),
    "LayerNorm without weight": lambda key: nn.LayerNorm(3, use_weight=False),
    "LayerNorm in half": lambda key: nn.LayerNorm(3, dtype=jnp.float16),
    "RMSNorm": lambda key: nn.RMSNorm((3, 4)),
    "RMSNorm without weight": lambda key: nn.RMSNorm(3, use_weight=False),
    "GroupNorm": lambda key: nn.GroupNorm(2, 4),
    "GroupNorm without parameters": lambda key: nn.GroupNorm(
        2, 4, channelwise_affine=False
    ),
    "BatchNorm": lambda key: nn.BatchNorm(3, "batch", mode="batch"),
    "BatchNorm by averages": lambda key: nn.BatchNorm(3, "batch", mode="ema"),
    "BatchNorm without parameters": lambda key: nn.BatchNorm(
        3, "batch", channelwise_affine=False, mode="batch"
    ),
    "PReLU": lambda key: nn.PReLU(),
    "PReLU of its own": lambda key: nn.PReLU(0.5),
    "SpectralNorm": lambda key: nn.SpectralNorm(
        nn.Linear(3, 4, key=key), "weight", key=key
    ),
    "SpectralNorm of Conv2d": lambda key: nn.SpectralNorm(
        nn.Conv2d(2, 4, 3, key=key), "weight", key=key
    ),
    "WeightNorm": lambda key: nn.WeightNorm(nn.Linear(3, 4, key=key)),
    "WeightNorm along another axis": lambda key: nn.WeightNorm(
        nn.Linear(3, 4, key=key), axis=-1
    ),
    "WeightNorm over all": lambda key: nn.WeightNorm(_linear(key), axis=None),
    "WeightNorm of Conv2d": lambda key: nn.WeightNorm(nn.Conv2d(2, 4, 3, key=key)),
    "MultiheadAttention": lambda key: nn.MultiheadAttention(2, 4, key=key),
    "MultiheadAttention with biases": lambda key: nn.MultiheadAttention(
        2,
        4,
        3,
        5,
        use_query_bias=True,
        use_key_bias=True,
        use_value_bias=True,
        use_output_bias=True,
        dropout_p=0.1,
        key=key,
    ),
    "MultiheadAttention in half": lambda key: nn.MultiheadAttention(
        2, 4, dtype=jnp.float16, key=key
    ),
    "RotaryPositionalEmbedding": lambda key: nn.RotaryPositionalEmbedding(4),
    "MLP": lambda key: nn.MLP(3, 2, 4, 2, key=key),
    "MLP without a hidden layer": lambda key: nn.MLP(3, 2, 4, 0, key=key),
    "MLP of scalars": lambda key: nn.MLP("scalar", "scalar", 4, 1, key=key),
    "MLP with its own activation": lambda key: nn.MLP(
        3, 2, 4, 2, activation=nn.PReLU(), key=key
    ),
    "MLP in half": lambda key: nn.MLP(3, 2, 4, 2, dtype=jnp.float16, key=key),
    "Sequential": lambda key: nn.Sequential([_linear(key), nn.Lambda(jax.nn.relu)]),
    "Shared": lambda key: nn.Shared(
        (_linear(key), _linear(key)), lambda p: p[1].weight, lambda p: p[0].weight
    ),
    "Lambda": lambda key: nn.Lambda(jax.nn.relu),
    "Identity": lambda key: nn.Identity(),
    "Dropout": lambda key: nn.Dropout(0.5),
    "Pool": lambda key: nn.Pool(0.0, jax.lax.max, 1, 2, 1),
    "AvgPool1d": lambda key: nn.AvgPool1d(2),
    "AvgPool2d": lambda key: nn.AvgPool2d(2),
    "AvgPool3d": lambda key: nn.AvgPool3d(2),
    "MaxPool1d": lambda key: nn.MaxPool1d(2),
    "MaxPool2d": lambda key: nn.MaxPool2d(2),
    "MaxPool3d": lambda key: nn.MaxPool3d(2),
    "AdaptivePool": lambda key: nn.AdaptivePool(2, 1, jnp.max),
    "AdaptiveAvgPool1d": lambda key: nn.AdaptiveAvgPool1d(2),
    "AdaptiveAvgPool2d": lambda key: nn.AdaptiveAvgPool2d(2),
    "AdaptiveAvgPool3d": lambda key: nn.AdaptiveAvgPool3d(2),
    "AdaptiveMaxPool1d": lambda key: nn.AdaptiveMaxPool1d(2),
    "AdaptiveMaxPool2d": lambda key: nn.AdaptiveMaxPool2d(2),
    "AdaptiveMaxPool3d": lambda key: nn.AdaptiveMaxPool3d(2),
}


def layer_classes() -> set[str]:
    """The names of the layers that `eqx.nn` exports and that can be built."""
    public = {name: getattr(nn, name) for name in dir(nn)}
    layers = {
        name
        for name, x in public.items()
        if isinstance(x, type) and issubclass(x, eqx.Module)
    }
    return layers - {"StateIndex", "StatefulLayer"}
