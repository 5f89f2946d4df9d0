"""Annotations of layers and models of other packages, which are imported inside of
functions because each import takes a while."""

import contextlib
import importlib
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import chorax
from layers import LAYERS


def part_of_equimo(*names: str) -> Any:
    """The first of these modules that exists: they have moved between versions."""
    for name in names:
        with contextlib.suppress(ModuleNotFoundError):
            return importlib.import_module(name)
    raise ImportError(f"None of {names} is there.")


SIZE = 5


def batch(model: Any) -> Any:
    """The model with a lane axis in front of every array."""

    def stack(x: Any) -> Any:
        return jnp.stack([x] * SIZE) if eqx.is_array(x) else x

    return jtu.tree_map(stack, model)


def vision_transformer(key: jax.Array) -> Any:
    models = part_of_equimo("equimo.vision.models", "equimo.models")
    return models.VisionTransformer(
        img_size=8,
        in_channels=1,
        dim=8,
        patch_size=4,
        num_heads=[2],
        depths=[2],
        num_classes=3,
        init_values=1e-5,
        key=key,
    )


def flow(key: jax.Array) -> Any:
    import flowjax.distributions
    import flowjax.flows

    base = flowjax.distributions.Normal(jnp.zeros(3))
    build = flowjax.flows.masked_autoregressive_flow
    with jax.numpy_rank_promotion("allow"):  # Its code is less strict.
        return build(key, base_dist=base, flow_layers=2)


def cubic(key: jax.Array) -> Any:
    import diffrax

    times = jnp.linspace(0.0, 1.0, 6)
    points = {"a": jax.random.normal(key, (6, 2)), "b": jax.random.normal(key, (6,))}
    coefficients = diffrax.backward_hermite_coefficients(times, points)
    return diffrax.CubicInterpolation(times, coefficients)


def solution(key: jax.Array) -> Any:
    import diffrax

    return diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, y, args: -y),
        diffrax.Tsit5(),
        0.0,
        1.0,
        0.1,
        jax.random.normal(key, (3,)),
        saveat=diffrax.SaveAt(ts=jnp.linspace(0.0, 1.0, 4)),
    )


def operators(key: jax.Array) -> Any:
    import lineax

    diagonal, off = jax.random.normal(key, (4,)), jnp.ones(3)
    matrix = lineax.MatrixLinearOperator(jnp.eye(4))
    return matrix + lineax.TridiagonalLinearOperator(diagonal, off, off)


def norms(key: jax.Array) -> Any:
    norm = part_of_equimo("equimo.core.layers.norm", "equimo.layers.norm")
    return [norm.RMSNormGated(4), norm.LayerScale(4, axis=1, init_values=0.1)]


def misplaced(tree: Any, where: Callable[[Any], Any], change: Any) -> Any:
    return eqx.tree_at(where, tree, replace_fn=change)


# How to build the model, which leaf to spoil and how, and the text of the error.
MODELS: dict[str, tuple[Any, Any, Any, str]] = {
    "equimo vision transformer": (
        vision_transformer,
        lambda m: m.blocks[0].blocks[1].ls1.gamma,
        lambda x: x[..., None],
        r"`gamma` of the LayerScale at `blocks\.0\.blocks\.1\.ls1`",
    ),
    "equimo norms": (
        norms,
        lambda m: m[0].w,
        lambda x: x.astype(jnp.int32),
        r"`w` of the RMSNormGated at `0`",
    ),
    "diffrax interpolation": (
        cubic,
        lambda m: m.coeffs[2]["a"],
        lambda x: x[..., 1:, :],
        r"`coeffs` of the CubicInterpolation at the root `\(\)`",
    ),
    "diffrax solution": (
        solution,
        lambda m: m.ts,
        lambda x: x[..., None],
        r"`ts` of the Solution",
    ),
    "lineax operators": (
        operators,
        lambda m: m.operator2.lower_diagonal,
        lambda x: x[..., 1:],
        r"`lower_diagonal` of the TridiagonalLinearOperator at `operator2`",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("build", LAYERS.values(), ids=LAYERS)
def test_every_layer_passes(build, key):
    layer = build(key)
    chorax.check_annotations(layer)
    chorax.check_annotations(batch(layer), in_axes=eqx.if_array(0))


# The fields that Equinox annotates with jaxtyping; the others are plain `Array`s.
ANNOTATED = {
    "LayerNorm": ["weight", "bias"],
    "RMSNorm": ["weight"],
    "BatchNorm": ["weight", "bias", "batch_state_index"],
    "BatchNorm by averages": ["ema_state_index", "ema_first_time_index"],
    "SpectralNorm": ["uv_index"],
}


@pytest.mark.parametrize(
    ("name", "field"), [(name, x) for name, xs in ANNOTATED.items() for x in xs]
)
def test_a_fault_in_a_layer_is_found(name, field, key):
    layer = LAYERS[name](key)

    def spoil(x):
        return x.astype(jnp.complex64) if eqx.is_array(x) else x

    wrong = eqx.tree_at(
        lambda tree: jtu.tree_leaves(getattr(tree, field))[0], layer, replace_fn=spoil
    )
    for model, axes in ((wrong, None), (batch(wrong), eqx.if_array(0))):
        with pytest.raises(chorax.AnnotationError, match=f"The field `{field}` of the"):
            chorax.check_annotations(model, in_axes=axes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "build", [*(row[0] for row in MODELS.values()), flow], ids=[*MODELS, "flowjax"]
)
def test_every_model_passes(build, key):
    model = build(key)
    chorax.check_annotations(model)
    chorax.check_annotations(batch(model), in_axes=eqx.if_array(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "where", "change", "text"), MODELS.values(), ids=MODELS
)
def test_a_fault_in_a_model_is_found(build, where, change, text, key):
    model = misplaced(build(key), where, change)
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.check_annotations(model)
    batched = misplaced(batch(build(key)), where, change)
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.check_annotations(batched, in_axes=eqx.if_array(0))


@pytest.mark.slow
def test_a_fault_is_found_by_a_call(key):
    build, where, _, text = MODELS["equimo vision transformer"]
    model = build(key)
    with pytest.warns(UserWarning, match="There is no rule for LearnedPosEmbed"):
        ensemble, delta = chorax.vmap_call_all_fns(
            model, chorax.reset_parameters, axis_size=2, key=key
        )
    chorax.check_annotations(ensemble, in_axes=delta)
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.vmap_call_all_fns(
            misplaced(model, where, lambda x: x.astype(jnp.int32)),
            chorax.reset_parameters,
            axis_size=2,
            key=key,
        )
