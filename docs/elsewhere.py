"""Where other projects document the names that these pages use.

Written down rather than read from their inventories, so that the pages are built
without a network.
"""

_EQUINOX = {
    "api/errors/": "error_if",
    "api/manipulation/": (
        "filter partition combine is_array is_array_like is_inexact_array "
        "is_inexact_array_like apply_updates tree_at tree_equal"
    ),
    "api/module/advanced_fields/": "field",
    "api/module/module/": "Module",
    "api/serialisation/": "tree_serialise_leaves tree_deserialise_leaves",
    "api/transformations/": (
        "filter_jit filter_eval_shape filter_shard filter_grad filter_value_and_grad "
        "filter_checkpoint filter_vmap"
    ),
    "api/nn/activations/": "nn.PReLU",
    "api/nn/attention/": "nn.MultiheadAttention",
    "api/nn/conv/": "nn.Conv nn.ConvTranspose",
    "api/nn/dropout/": "nn.Dropout",
    "api/nn/embedding/": "nn.Embedding nn.RotaryPositionalEmbedding",
    "api/nn/inference/": "nn.inference_mode",
    "api/nn/linear/": "nn.Linear",
    "api/nn/mlp/": "nn.MLP",
    "api/nn/normalisation/": (
        "nn.LayerNorm nn.RMSNorm nn.GroupNorm nn.BatchNorm nn.SpectralNorm "
        "nn.WeightNorm"
    ),
    "api/nn/rnn/": "nn.GRUCell nn.LSTMCell",
    "api/nn/sequential/": "nn.Sequential",
    "api/nn/shared/": "nn.Shared",
    "api/nn/stateful/": "nn.State nn.make_with_state",
}
_JAX = (
    "Array ShapeDtypeStruct checkpoint clear_caches custom_jvp device_put disable_jit "
    "grad jit lax.cond lax.pmean lax.scan lax.stop_gradient lax.while_loop "
    "make_array_from_process_local_data make_mesh nn.relu numpy.all numpy.stack "
    "numpy.sum numpy.where numpy.zeros_like random.key random.normal random.split "
    "set_mesh shard_map tree.map tree_util.Partial vmap"
)
_JAX_MODULES = {
    "jax.distributed": "jax.distributed.html#module-jax.distributed",
    "jax.distributed.initialize": "_autosummary/jax.distributed.initialize.html",
    "jax.sharding.Mesh": "jax.sharding.html#jax.sharding.Mesh",
    "jax.sharding.NamedSharding": "jax.sharding.html#jax.sharding.NamedSharding",
    "jax.sharding.PartitionSpec": "jax.sharding.html#jax.sharding.PartitionSpec",
    "jax.typing.ArrayLike": "jax.typing.html",
}
_JAXTYPING = {
    "api/array/": "Array Bool Float Int Key PRNGKeyArray",
    "api/pytree/": "PyTree",
}
_PYTHON = {
    "library/collections.abc.html": (
        "collections.abc.Callable collections.abc.Hashable collections.abc.Iterable "
        "collections.abc.Iterator collections.abc.Mapping collections.abc.Sequence"
    ),
    "library/constants.html": "False None True",
    "library/dataclasses.html": "dataclasses.replace",
    "library/exceptions.html": (
        "AttributeError IndexError KeyError TypeError UserWarning ValueError"
    ),
    "library/functions.html": "bool float int repr",
    "library/functools.html": "functools.singledispatch functools.wraps",
    "library/stdtypes.html": "dict frozenset list str tuple",
    "library/types.html": "types.EllipsisType",
    "library/typing.html": "typing.Any typing.Literal typing.SupportsIndex",
}


def urls() -> dict[str, str]:
    """The URL of each name."""
    found: dict[str, str] = {}
    for page, names in _EQUINOX.items():
        for name in names.split():
            url = f"https://docs.kidger.site/equinox/{page}#equinox.{name}"
            found[f"equinox.{name}"] = url
    base = "https://docs.jax.dev/en/latest"
    for name in _JAX.split():
        found[f"jax.{name}"] = f"{base}/_autosummary/jax.{name}.html"
    for name, page in _JAX_MODULES.items():
        found[name] = f"{base}/{page}"
    for page, names in _JAXTYPING.items():
        for name in names.split():
            found[f"jaxtyping.{name}"] = f"https://docs.kidger.site/jaxtyping/{page}"
    for page, names in _PYTHON.items():
        for name in names.split():
            found[name] = f"https://docs.python.org/3/{page}#{name}"
    return found
