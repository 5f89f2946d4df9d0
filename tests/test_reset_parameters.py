"""`reset_parameters` draws exactly what the constructor draws."""

import itertools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
import oracle
from chorax import lanes
from layers import layer_classes, LAYERS
from rows import quick


LINEAR = {
    "no input": (0, 2),
}
MLP = {
    "one": {"depth": 1},
    "scan": {"depth": 3, "scan": True},
    "no bias": {"depth": 2, "use_bias": False},
    "no final bias": {"depth": 2, "use_final_bias": False},
}


def keys():
    return jax.random.key(0), jax.random.key(1)


@pytest.mark.parametrize("name", sorted(LINEAR))
def test_linear(name):
    old, new = keys()
    layer = eqx.nn.Linear(*LINEAR[name], key=old)
    built = eqx.nn.Linear(*LINEAR[name], key=new)
    oracle.assert_same(chorax.reset_parameters(layer, key=new), built)


@pytest.mark.parametrize("name", sorted(MLP))
def test_mlp(name):
    old, new = keys()
    layer = eqx.nn.MLP(2, 3, 4, **MLP[name], key=old)
    built = eqx.nn.MLP(2, 3, 4, **MLP[name], key=new)
    oracle.assert_same(chorax.reset_parameters(layer, key=new), built)


@pytest.mark.slow
def test_an_ensemble_is_what_the_constructor_makes_in_every_lane():
    old, new = keys()
    mlp = eqx.nn.MLP(2, 3, 4, 2, key=old)
    ensemble, delta = chorax.vmap_call_all_fns(
        mlp, chorax.reset_parameters, axis_size=3, key=new
    )
    assert len(delta.paths) == 6
    lanes = [oracle.node_key(k, ()) for k in jax.random.split(new, 3)]
    built = eqx.filter_vmap(lambda k: eqx.nn.MLP(2, 3, 4, 2, key=k))(jnp.stack(lanes))
    oracle.assert_same(ensemble, built)
    x = jnp.ones(2)
    out = eqx.filter_vmap(lambda m, x: m(x), in_axes=(delta.in_axes, None))(ensemble, x)
    assert out.shape == (3, 3)


@pytest.mark.slow
def test_leading_axes_are_kept_with_draws_of_their_own():
    old, new = keys()
    stack = eqx.filter_vmap(lambda k: eqx.nn.Linear(2, 2, key=k))(
        jax.random.split(old, 5)
    )
    fresh = chorax.reset_parameters(stack, key=new)
    built = eqx.filter_vmap(lambda k: eqx.nn.Linear(2, 2, key=k))(
        jax.random.split(new, 5)
    )
    oracle.assert_same(fresh, built)
    grid = eqx.filter_vmap(eqx.filter_vmap(lambda k: eqx.nn.MLP(2, 2, 2, 1, key=k)))(
        jax.random.split(old, (2, 3))
    )
    fresh = chorax.reset_parameters(grid, key=new)
    assert fresh.layers[0].weight.shape == (2, 3, 2, 2)
    assert len({float(x) for x in fresh.layers[0].weight.reshape(-1)}) == 24


def test_activations_are_left_alone():
    old, new = keys()
    mlp = eqx.nn.MLP(2, 2, 4, 2, activation=eqx.nn.PReLU(0.3), key=old)
    fresh = chorax.reset_parameters(mlp, key=new)
    assert fresh.activation.negative_slope is mlp.activation.negative_slope


def test_an_mlp_with_other_layers_is_left_to_them():
    class Scaled(eqx.nn.Linear):
        pass

    make: Any = Scaled
    old, new = keys()
    mlp = eqx.nn.MLP(2, 2, 4, 1, key=old)
    other = chorax.replace(mlp, layers=(make(2, 4, key=old), mlp.layers[1]))
    assert chorax.reset_parameters(other, key=new) is other


@pytest.mark.slow
def test_an_mlp_with_changed_layers_is_left_to_them():
    old, new = keys()
    mlp = eqx.nn.MLP(2, 1, 4, 2, key=old)
    head = eqx.tree_at(lambda m: m.layers[-1], mlp, eqx.nn.Linear(4, 5, key=old))
    longer = eqx.tree_at(lambda m: m.layers, mlp, (*mlp.layers, mlp.layers[1]))
    for model in (head, longer):
        assert chorax.reset_parameters(model, key=new) is model
    fresh, _ = chorax.call_all_fns(head, chorax.reset_parameters, key=new)
    built = eqx.nn.Linear(4, 5, key=oracle.node_key(new, ("layers", 2)))
    oracle.assert_same(fresh.layers[-1], built)


def test_other_modules_come_back_unchanged():
    class Mine(eqx.Module):
        w: jax.Array

    mine = Mine(jnp.ones(2))
    assert chorax.reset_parameters(mine, key=jax.random.key(0)) is mine
    model = {"mine": mine, "linear": eqx.nn.Linear(1, 1, key=jax.random.key(0))}
    with pytest.warns(UserWarning, match="left 1 array .* `mine.w`"):
        fresh, delta = chorax.vmap_call_all_fns(
            model, chorax.reset_parameters, axis_size=2, key=jax.random.key(1)
        )
    assert delta.paths == ("linear.weight", "linear.bias")
    assert fresh["mine"].w is mine.w


def test_a_parameter_that_is_not_an_array_is_named():
    linear = eqx.nn.Linear(1, 1, key=jax.random.key(0))
    wrapped = eqx.tree_at(lambda x: x.weight, linear, eqx.nn.Lambda(jnp.tanh))
    with pytest.raises(
        TypeError, match="`weight` of Linear is not an array but a Lambda"
    ):
        chorax.reset_parameters(wrapped, key=jax.random.key(0))
    with pytest.raises(TypeError, match="Register a rule") as info:
        chorax.vmap_call_all_fns(
            [wrapped], chorax.reset_parameters, axis_size=2, key=jax.random.key(0)
        )
    assert "of Linear at `0`" in info.value.__notes__[0]


def test_tied_layers_stay_tied(lane_key):
    old, new = jax.random.split(lane_key)
    pair = (eqx.nn.Linear(2, 2, key=old), eqx.nn.Linear(2, 2, key=old))
    shared = eqx.nn.Shared(pair, lambda p: p[1].weight, lambda p: p[0].weight)
    fresh, _ = chorax.vmap_call_all_fns(
        shared,
        chorax.reset_parameters,
        axis_size=2,
        key=new,
    )
    one, two = fresh()
    assert one.weight is two.weight
    assert one.weight.shape == (2, 2, 2)
    # Values that are not tied are drawn as usual.
    for index, k in enumerate(jax.random.split(new, 2)):
        own = oracle.node_key(k, ("pytree", 1))
        oracle.assert_same(two.bias[index], eqx.nn.Linear(2, 2, key=own).bias)
    assert jtu.tree_structure(fresh) == jtu.tree_structure(shared)


# Layers that wrap a layer follow it, and do not draw its parameters.
AROUND = {"SpectralNorm", "WeightNorm", "Sequential", "Shared"}


def arrays(tree: Any) -> Any:
    return eqx.filter(tree, eqx.is_array)


@pytest.mark.parametrize(
    "name",
    quick(
        [n for n in LAYERS if n.split()[0] not in AROUND],
        # Each rule once; other dtypes and numbers of axes repeat it.
        [n for n in LAYERS if n.isalpha() and n not in AROUND],
    ),
)
def test_every_layer_is_drawn_as_its_constructor_would(name):
    old, new = keys()
    layer, built = LAYERS[name](old), LAYERS[name](new)
    if name == "PReLU of its own":
        built = eqx.nn.PReLU()  # It does not record its initial value.
    # As if it had been trained.
    layer = jtu.tree_map(
        lambda x: x + jnp.ones((), x.dtype) if eqx.is_inexact_array(x) else x, layer
    )
    if "MLP with its own" in name:
        built = chorax.replace(built, activation=layer.activation)
    fresh = chorax.reset_parameters(layer, key=new)
    assert jtu.tree_structure(fresh) == jtu.tree_structure(layer)
    oracle.assert_same(arrays(fresh), arrays(with_structure_of(layer, built)))


def with_structure_of(layer: Any, built: Any) -> Any:
    """The leaves of one in the structure of the other: each `StateIndex` has another
    identity."""
    return jtu.tree_unflatten(jtu.tree_structure(layer), jtu.tree_leaves(built))


@pytest.mark.parametrize(
    "name",
    quick(
        [n for n in LAYERS if n.split()[0] not in AROUND],
        ["Linear", "BatchNorm"],
    ),
)
def test_every_lane_is_what_the_constructor_makes(name, lane_key):
    old, new = jax.random.split(lane_key)
    layer = LAYERS[name](old)
    if not jtu.tree_leaves(arrays(layer)):
        return  # It has nothing to draw.
    fn = chorax.reset_parameters

    def with_key(node, key):
        return fn(node, key=key), jax.random.key_data(key)

    ensemble, delta, aux = chorax.vmap_call_all_fns(
        layer, with_key, axis_size=3, key=new, has_aux=True
    )
    for member, data in zip(lanes.unstack(ensemble, delta), aux[""], strict=True):
        own = jax.random.wrap_key_data(data, impl=jax.random.key_impl(new))
        built = LAYERS[name](own)
        if "its own" in name:
            continue
        oracle.assert_same(arrays(member), arrays(with_structure_of(layer, built)))


def test_every_layer_with_parameters_has_a_rule(key):
    default = chorax.reset_parameters.dispatch(object)
    classes: set[str] = set()
    for name, build in LAYERS.items():
        layer: Any = eqx.filter_eval_shape(build, key)
        dtypes = [x.dtype for x in jtu.tree_leaves(layer) if hasattr(x, "dtype")]
        has_parameters = any(jnp.issubdtype(dtype, jnp.inexact) for dtype in dtypes)
        is_container = isinstance(layer, eqx.nn.Sequential | eqx.nn.Shared)
        is_rotary = isinstance(layer, eqx.nn.RotaryPositionalEmbedding)
        if (has_parameters and not is_container) or is_rotary:
            assert chorax.reset_parameters.dispatch(type(layer)) is not default, name
        classes.add(type(layer).__name__)
    assert classes == layer_classes()


def test_weight_norm_follows_the_new_weights(lane_key):
    old, new = jax.random.split(lane_key)
    for name in [name for name in LAYERS if name.startswith("WeightNorm")]:
        layer = LAYERS[name](old)
        layer = chorax.replace(layer, g=layer.g * 2)
        ensemble, delta = chorax.vmap_call_all_fns(
            layer, chorax.reset_parameters, axis_size=3, key=new
        )
        for member, k in zip(
            lanes.unstack(ensemble, delta), jax.random.split(new, 3), strict=True
        ):
            own = oracle.node_key(k, ("layer",))
            oracle.assert_same(
                member.layer, chorax.reset_parameters(layer.layer, key=own)
            )
            built = eqx.nn.WeightNorm(member.layer, layer.weight_name, layer.axis)
            np.testing.assert_allclose(member.g, built.g, rtol=1e-6)
            assert member.g.shape == layer.g.shape


@pytest.mark.slow
def test_spectral_norm_starts_from_the_new_weights(lane_key):
    old, new = jax.random.split(lane_key)
    for name in ("SpectralNorm", "SpectralNorm of Conv2d"):
        layer = LAYERS[name](old)
        ensemble, delta = chorax.vmap_call_all_fns(
            layer, chorax.reset_parameters, axis_size=3, key=new
        )
        for member, k in zip(
            lanes.unstack(ensemble, delta), jax.random.split(new, 3), strict=True
        ):
            built = eqx.nn.SpectralNorm(
                member.layer, "weight", key=oracle.node_key(k, ())
            )
            inits = jtu.tree_leaves((member.uv_index, built.uv_index))
            pairs = zip(inits[:2], inits[2:], strict=True)
            for one, other in pairs:
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


STACKS = ["Conv2d", "ConvTranspose1d", "GRUCell", "LSTMCell", "Embedding", "LayerNorm"]
STACKS += ["RMSNorm", "GroupNorm", "BatchNorm", "PReLU", "MultiheadAttention"]
STACKS += ["SpectralNorm", "WeightNorm", "WeightNorm over all", "Linear of scalars"]
STACKS += ["WeightNorm along another axis"]


@pytest.mark.parametrize(
    "name", quick(STACKS, ["LayerNorm", "BatchNorm", "WeightNorm"])
)
def test_stacks_of_layers_keep_their_leading_axes(name):
    old, new = keys()
    stack = eqx.filter_vmap(LAYERS[name])(jax.random.split(old, 4))
    fresh = chorax.reset_parameters(stack, key=new)
    one = eqx.filter_vmap(
        lambda layer, key: chorax.reset_parameters(layer, key=key),
        in_axes=(eqx.if_array(0), 0),
    )(stack, jax.random.split(new, 4))
    assert jtu.tree_structure(fresh) == jtu.tree_structure(stack)
    for a, b in zip(*map(jtu.tree_leaves, map(arrays, (fresh, one))), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
    ensemble, delta = chorax.vmap_call_all_fns(
        stack, chorax.reset_parameters, axis_size=2, key=new
    )
    for leaf in jtu.tree_leaves(arrays(delta.values)):
        assert leaf.shape[:2] == (2, 4)


def test_a_parameter_of_another_shape_is_named():
    linear = eqx.nn.Linear(2, 3, key=jax.random.key(0))
    wrong = chorax.replace(linear, weight=jnp.ones((3, 5)))
    text = r"`weight` of Linear has the shape \(3, 5\), but .* makes \(3, 2\)"
    with pytest.raises(ValueError, match=text):
        chorax.reset_parameters(wrong, key=jax.random.key(0))
    wrong = chorax.replace(linear, bias=jnp.ones((4, 3)))
    with pytest.raises(
        ValueError,
        match=r"`bias` of Linear has the shape \(4, 3\), but .* with \(\) leading",
    ):
        chorax.reset_parameters(wrong, key=jax.random.key(0))
    norm = LAYERS["WeightNorm"](jax.random.key(0))
    wrong = chorax.replace(norm, g=jnp.ones(7))
    with pytest.raises(ValueError, match=r"`g` of WeightNorm has the shape \(7,\)"):
        chorax.reset_parameters(wrong, key=jax.random.key(0))


def test_attention_with_other_projections_is_left_to_them():
    old, new = keys()
    attention = eqx.nn.MultiheadAttention(2, 4, key=old)
    other = chorax.replace(attention, query_proj=eqx.nn.Linear(4, 6, key=old))
    assert chorax.reset_parameters(other, key=new) is other


def cast(layer: Any, dtype: Any, step: int = 1) -> Any:
    """The layer with every `step`-th of its real arrays in another dtype."""
    count = itertools.count()

    def change(x):
        is_real = eqx.is_array(x) and jnp.issubdtype(x.dtype, jnp.floating)
        return x.astype(dtype) if is_real and next(count) % step == 0 else x

    return jtu.tree_map(change, layer)


IN_DTYPES: dict[str, Any] = {
    "Linear": lambda d, key: eqx.nn.Linear(3, 4, dtype=d, key=key),
    "GRUCell": lambda d, key: eqx.nn.GRUCell(3, 4, dtype=d, key=key),
    "LayerNorm": lambda d, key: eqx.nn.LayerNorm(3, dtype=d),
    "BatchNorm": lambda d, key: eqx.nn.BatchNorm(3, "batch", mode="batch", dtype=d),
    "BatchNorm by averages": lambda d, key: eqx.nn.BatchNorm(
        3, "batch", mode="ema", dtype=d
    ),
    "MLP": lambda d, key: eqx.nn.MLP(3, 2, 4, 2, dtype=d, key=key),
    "MLP by scan": lambda d, key: eqx.nn.MLP(3, 2, 4, 3, dtype=d, scan=True, key=key),
    "MultiheadAttention": lambda d, key: eqx.nn.MultiheadAttention(
        2, 4, use_output_bias=True, dtype=d, key=key
    ),
}


@pytest.mark.parametrize("other", quick(["bfloat16", "complex64"], ["bfloat16"]))
@pytest.mark.parametrize("name", IN_DTYPES)
def test_each_leaf_is_drawn_in_its_own_dtype(name, other):
    old, new = keys()
    build = IN_DTYPES[name]
    layer = cast(build("float32", old), other, 2)
    fresh = chorax.reset_parameters(layer, key=new)
    assert jtu.tree_structure(fresh) == jtu.tree_structure(layer)
    built = {jnp.dtype(d): arrays(build(d, new)) for d in ("float32", other)}
    made = [jtu.tree_leaves(x) for x in built.values()]
    before, after = (jtu.tree_leaves(arrays(x)) for x in (layer, fresh))
    for was, x, *each in zip(before, after, *made, strict=True):
        assert x.dtype == was.dtype
        found = [y for y in each if y.dtype == x.dtype]
        oracle.assert_same(x, found[0])


def with_layer_in_half(norm: Any) -> Any:
    return chorax.replace(norm, layer=cast(norm.layer, "bfloat16"))


def short_counter(key):
    norm = LAYERS["BatchNorm"](key)
    counter = chorax.replace(norm.batch_counter, init=jnp.array(5, jnp.int16))
    return chorax.replace(norm, batch_counter=counter)


MIXED: dict[str, Any] = {
    **{n: lambda k, n=n: cast(LAYERS[n](k), "bfloat16", 2) for n in LAYERS},
    "BatchNorm in bfloat16": lambda k: cast(LAYERS["BatchNorm"](k), "bfloat16"),
    "SpectralNorm of half": lambda k: with_layer_in_half(LAYERS["SpectralNorm"](k)),
    "WeightNorm of half": lambda k: with_layer_in_half(LAYERS["WeightNorm"](k)),
    "BatchNorm with a short counter": short_counter,
}
QUICK = ["Linear", "MLP", "BatchNorm in bfloat16", "SpectralNorm of half"]
QUICK += ["WeightNorm of half", "BatchNorm with a short counter"]


@pytest.mark.parametrize("name", quick(MIXED, QUICK))
def test_lanes_of_several_dtypes_are_drawn_anew(name, lane_key):
    old, new, newer = jax.random.split(lane_key, 3)
    layer = MIXED[name](old)
    if not jtu.tree_leaves(arrays(layer)):
        return
    ensemble, delta = chorax.vmap_call_all_fns(
        layer, chorax.reset_parameters, axis_size=3, key=new
    )
    mask = jnp.array([True, False, True])
    again, _ = chorax.vmap_call_all_fns(
        ensemble,
        chorax.reset_parameters,
        axis_size=3,
        key=newer,
        in_axes=delta,
        where=mask,
    )
    leaves = [jtu.tree_leaves(arrays(x)) for x in (layer, ensemble, again)]
    for one, some, later in zip(*leaves, strict=True):
        assert one.dtype == some.dtype == later.dtype
    kept = [lanes.take(x, delta, 1) for x in (ensemble, again)]
    oracle.assert_same(*map(arrays, kept))


def of_integers(layer: Any, where: Any) -> Any:
    return eqx.tree_at(where, layer, replace_fn=lambda x: jnp.ones(x.shape, jnp.int8))


INTEGERS: dict[str, Any] = {
    "`weight` of Linear is of int8": lambda key: of_integers(
        LAYERS["Linear"](key), lambda x: x.weight
    ),
    "`bias` of LayerNorm is of bool": lambda key: eqx.tree_at(
        lambda x: x.bias, eqx.nn.LayerNorm(3), jnp.zeros(3, bool)
    ),
    "`negative_slope` of PReLU is of int32": lambda key: eqx.nn.PReLU(
        jnp.array(1, jnp.int32)
    ),
    "`g` of WeightNorm is of int8": lambda key: of_integers(
        LAYERS["WeightNorm"](key), lambda x: x.g
    ),
    "`weight` of Conv2d is of int8": lambda key: of_integers(
        LAYERS["SpectralNorm of Conv2d"](key), lambda x: x.layer.weight
    ),
    "`layers` of MLP is of int8": lambda key: of_integers(
        LAYERS["MLP"](key), lambda x: x.layers[1].bias
    ),
    "`key_proj` of MultiheadAttention is of int8": lambda key: of_integers(
        LAYERS["MultiheadAttention"](key), lambda x: x.key_proj.weight
    ),
}


@pytest.mark.parametrize("text", INTEGERS)
def test_parameters_of_integers_are_named(text):
    layer = INTEGERS[text](jax.random.key(0))
    with pytest.raises(TypeError, match=f"{text} and not floating-point.*Register"):
        chorax.reset_parameters(layer, key=jax.random.key(1))
    with pytest.raises(TypeError, match="and not floating-point"):
        chorax.vmap_call_all_fns(
            layer, chorax.reset_parameters, axis_size=2, key=jax.random.key(1)
        )


def test_an_mlp_with_layers_of_integers_of_another_class_is_left_to_them():
    class Coarse(eqx.Module):
        weight: Any

    old, new = keys()
    mlp = eqx.nn.MLP(2, 2, 4, 1, key=old)
    layers = (Coarse(jnp.ones((4, 2), jnp.int8)), mlp.layers[1])
    other = chorax.replace(mlp, layers=layers)
    assert chorax.reset_parameters(other, key=new) is other


# Which part of two equal layers is tied, by layer.
TIED: dict[str, Any] = {
    "PReLU": lambda x: x.negative_slope,
    "WeightNorm": lambda x: x.layer.weight,
    "WeightNorm of Conv2d": lambda x: x.layer,
    "WeightNorm over all": lambda x: x.g,
    "SpectralNorm": lambda x: x.layer.weight,
    "SpectralNorm of Conv2d": lambda x: x.uv_index,
    "BatchNorm": lambda x: x.batch_state_index,
    "MLP": lambda x: x.layers[0].weight,
    "MultiheadAttention": lambda x: x.query_proj,
}


def copied(tree: Any) -> Any:
    return jtu.tree_map(lambda x: x.copy() if eqx.is_array(x) else x, tree)


@pytest.mark.parametrize(
    "name", quick(TIED, ["PReLU", "WeightNorm", "SpectralNorm", "WeightNorm over all"])
)
def test_what_is_tied_in_a_layer_stays_tied(name, lane_key):
    old, new = jax.random.split(lane_key)
    layer, place = LAYERS[name](old), TIED[name]
    model = eqx.nn.Shared(
        (layer, copied(layer)), lambda p: place(p[1]), lambda p: place(p[0])
    )
    fresh, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=2, key=new
    )
    assert jtu.tree_structure(fresh) == jtu.tree_structure(model)
    one, other = fresh()
    oracle.assert_same(arrays(place(one)), arrays(place(other)))
    for index, k in enumerate(jax.random.split(new, 2)):
        if name.split()[0] not in AROUND:
            own = chorax.reset_parameters(layer, key=oracle.node_key(k, ("pytree", 0)))
            first = lanes.take(fresh, delta, index).pytree[0]
            oracle.assert_same(arrays(first), arrays(own))


@pytest.mark.parametrize("name", ["WeightNorm", "SpectralNorm"])
def test_norms_of_what_is_tied_stay_as_they_are(name, lane_key):
    pair = [LAYERS[name](k) for k in jax.random.split(lane_key)]
    model = eqx.nn.Shared(
        pair, lambda p: p[1].layer.weight, lambda p: p[0].layer.weight
    )
    fresh, delta = chorax.vmap_call_all_fns(
        model, chorax.reset_parameters, axis_size=2, key=lane_key
    )
    own = "g" if name == "WeightNorm" else "uv_index"
    for x, y in zip(
        *(jtu.tree_leaves(getattr(m.pytree[1], own)) for m in (model, fresh)),
        strict=True,
    ):
        assert x is y
    assert fresh.pytree[1].layer.bias.shape == (2, 4)


WRAPPERS: dict[str, Any] = {
    "jit": (eqx.filter_jit, False),
    "Partial": (jtu.Partial, False),
    "vmap": (eqx.filter_vmap, True),
    "checkpoint": (eqx.filter_checkpoint, True),
    "grad": (eqx.filter_grad, True),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_layers_in_wrappers(name, lane_key):
    """As the page of sharp edges says."""
    wrap, is_seen = WRAPPERS[name]
    model = {"f": wrap(LAYERS["Linear"](lane_key)), "bare": LAYERS["Linear"](lane_key)}
    _, delta = chorax.call_all_fns(model, chorax.reset_parameters, key=lane_key)
    assert len(delta.paths) == (4 if is_seen else 2)
