"""Calls that may not do what was meant warn, or raise an error."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
from chorax import (
    apply_delta,
    assign_state_values,
    explain,
    lanes,
    replace,
    reset_parameters,
    vmap_call_all_fns,
    vmap_init_all_states,
    vmap_reset_all_states,
)
from chorax.filters import OfType, WithTag


class Cell(eqx.Module):
    w: jax.Array
    v: Any = None
    tag: Any = eqx.field(default=None, static=True)

    def init_state(self):
        return replace(self, v=jnp.ones_like(self.w))

    def reset_state(self):
        return replace(self, v=self.v * 0)


def net(**options):
    return [Cell(jnp.ones(3), **options), Cell(jnp.ones(2), **options)]


# The number of lanes, when `in_axes` determines it.


def made(size=4, **options):
    return vmap_init_all_states(net(), axis_size=size, **options)


@pytest.mark.parametrize("jit", [False, True])
def test_mapped_leaves_determine_the_number_of_lanes(jit):
    batched, delta = made()
    done = jnp.array([True, False, False, True])

    def reset(batched, done, **options):
        return vmap_reset_all_states(batched, in_axes=delta, where=done, **options)[0]

    run = eqx.filter_jit(reset) if jit else reset
    new = run(batched, done)
    assert eqx.tree_equal(new, run(batched, done, axis_size=4))
    assert new[0].v.sum(1).tolist() == [0, 3, 3, 0]


@pytest.mark.parametrize("axes", ["delta", "tree", "last"])
def test_every_form_of_in_axes_determines_it(axes):
    batched, delta = made()
    in_axes: Any = {"delta": delta, "tree": delta.in_axes, "last": None}[axes]
    if axes == "last":
        in_axes = jax.tree_util.tree_map(lambda _: -1, delta.in_axes)
        batched = [replace(cell, v=cell.v.T) for cell in batched]
    new, after = vmap_call_all_fns(batched, "reset_state", in_axes=in_axes)
    assert after.axis_size == 4
    assert new[0].v.shape == (4, 3)
    told = explain(batched, "reset_state", in_axes=in_axes)
    assert told.axis_size == 4


def test_leaves_decide_before_a_delta_does():
    batched, delta = made()
    two = lanes.take(batched, delta, [0, 2])
    _, after = vmap_reset_all_states(two, in_axes=delta)
    assert after.axis_size == 2


def test_a_delta_decides_where_it_maps_no_leaf():
    shared, delta = made(state_to_exclude=True)
    assert shared[0].v.shape == (3,)
    new, after = vmap_reset_all_states(shared, in_axes=delta)
    assert after.axis_size == 4
    assert new[0].v.shape == (4, 3)
    text = (
        "`axis_size` is 5, but the `StateDelta` that was given as `in_axes` has 4 "
        "lanes. Leave `axis_size` out, or give the delta of the call that made these "
        "lanes."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        vmap_reset_all_states(shared, in_axes=delta, axis_size=5)


def test_an_axis_size_that_differs():
    batched, delta = made()
    text = (
        "`in_axes` maps `0.v` along axis 0, which must be `axis_size` = 5 long, but it "
        "has 4 there"
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        vmap_reset_all_states(batched, in_axes=delta, axis_size=5)
    same, _ = vmap_reset_all_states(batched, in_axes=delta, axis_size=np.int64(4))
    assert same[0].v.shape == (4, 3)


@pytest.mark.parametrize("size", [0, "4", 4.0, True, jnp.array([4, 4])])
def test_an_axis_size_that_is_not_a_positive_integer(size):
    batched, delta = made()
    with pytest.raises(ValueError, match="`axis_size` must be a positive integer"):
        vmap_reset_all_states(batched, in_axes=delta, axis_size=size)


def test_nothing_else_determines_it(key):
    batched, _ = made()
    _, plain = vmap_call_all_fns(net(), "init_state", axis_size=1)
    assert plain.axis_size == 1
    unbatched = jax.tree_util.tree_map(lambda _: None, batched)
    keys = jax.random.split(key, 4)
    every: list[dict[str, Any]] = [{}, {"in_axes": unbatched}, {"key": keys}]
    for options in every:
        with pytest.raises(ValueError, match="the number of lanes, but it is missing"):
            vmap_reset_all_states(batched, **options)


# Tags and classes that match nothing.


def silent(**options):
    return vmap_call_all_fns(
        net(tag=("in", "out")), "init_state", axis_size=2, **options
    )


@pytest.mark.parametrize(
    ("filter", "text"),
    [
        (eqx.nn.Dropout, "no node is a Dropout; there are Cell."),
        ("inn", "no node is tagged 'inn'; tags are 'in', 'out'."),
        (
            ["inn", eqx.nn.Dropout],
            "no node is tagged 'inn' or is a Dropout; tags are 'in', 'out'; there are "
            "Cell.",
        ),
        ((eqx.nn.MLP,), "no node is an MLP; there are Cell."),
    ],
)
def test_a_filter_of_nodes_that_matches_nothing(filter, text):
    for _ in range(2):
        with pytest.warns(
            UserWarning, match=re.escape(f"`node_to_exclude` matches nothing: {text}")
        ):
            silent(node_to_exclude=filter)


def test_nodes_without_a_tag():
    text = "`node_to_exclude` matches nothing: no node is tagged 'a'; none has a tag."
    with pytest.warns(UserWarning, match=re.escape(text)):
        vmap_call_all_fns(net(), "init_state", axis_size=2, node_to_exclude="a")


@pytest.mark.parametrize(
    ("filter", "options", "text"),
    [
        ("hyperr", {"state_tag": "hyper"}, "is tagged 'hyperr'; tags are 'hyper'."),
        ("hyperr", {}, "is tagged 'hyperr'; none has a tag."),
        (np.ndarray, {}, "is a ndarray; there are arrays."),
    ],
)
def test_a_filter_of_leaves_that_matches_nothing(filter, options, text):
    for _ in range(2):
        with pytest.warns(
            UserWarning,
            match=re.escape(
                f"`state_to_exclude` matches nothing: no written leaf {text}"
            ),
        ):
            silent(state_to_exclude=filter, **options)


def test_tags_of_the_delta_are_listed():
    batched, delta = made(state_tag="old")
    text = "no written leaf is tagged 'odl'; tags are 'new', 'old'."
    with pytest.warns(UserWarning, match=re.escape(text)):
        vmap_reset_all_states(
            batched, in_axes=delta, state_tag="new", state_to_exclude="odl"
        )


@pytest.mark.parametrize(
    "filter",
    [
        None,
        False,
        [],
        lambda x: False,
        OfType(eqx.nn.Dropout),
        WithTag("a"),
        ~WithTag("a") & False,
        [eqx.nn.Dropout, lambda x: False],
    ],
)
def test_filters_that_may_match_nothing(filter):
    silent(node_to_exclude=filter)
    silent(state_to_exclude=filter)


def test_one_of_several_that_matches():
    with pytest.warns(UserWarning, match="wrote nothing at all"):
        silent(node_to_exclude=[eqx.nn.Dropout, Cell])
    silent(state_to_exclude=["a", "b"], state_tag="b")


# Parameters that stay the same in all lanes, because no rule draws them.


def draw(model, key, **options):
    return vmap_call_all_fns(model, reset_parameters, axis_size=2, key=key, **options)


def kept_text(found, paths, classes, first):
    was = "it was" if found.startswith("1 array ") else "they were"
    return (
        f"`reset_parameters` left {found} as {was}: {paths}. There is no rule for "
        f"{classes}. Register one with `@chorax.reset_parameters.register({first})`; "
        "one that returns the node unchanged says that its arrays are to stay. Or "
        "leave the nodes out with `node_to_exclude`, or build the members with their "
        "constructor under `eqx.filter_vmap`."
    )


@pytest.mark.slow
@pytest.mark.usefixtures("in_32_bits")
def test_a_transformer_that_others_wrote(key):
    models: Any = pytest.importorskip("equimo.models")
    options: Any = {"img_size": 8, "in_channels": 1, "dim": 8, "patch_size": 4}
    options |= {"num_heads": [1], "depths": [1], "num_classes": 2, "init_values": 1e-4}
    model = models.VisionTransformer(**options, key=key)
    text = kept_text(
        "5 arrays (384 B)",
        "`global_pos_embed.weight`, `blocks.0.blocks.0.ls1.gamma`, "
        "`blocks.0.blocks.0.ls2.gamma` and 2 more",
        "LearnedPosEmbed, LayerScale, VisionTransformer",
        "LearnedPosEmbed",
    )
    for _ in range(2):
        with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
            draw(model, key)
    found = repr(explain(model, reset_parameters, axis_size=2, key=key))
    assert "no rule for VisionTransformer, holds 2 arrays of its own" in found
    assert "5 arrays shared by all lanes: no call writes them" in found
    without = [type(model), type(model.global_pos_embed)]
    without.append(type(model.blocks[0].blocks[0].ls1))
    draw(model, key, node_to_exclude=without)


@pytest.mark.slow
@pytest.mark.usefixtures("in_32_bits")
def test_data_that_others_hold(key):
    diffrax: Any = pytest.importorskip("diffrax")
    data = diffrax.LinearInterpolation(jnp.arange(3.0), jnp.ones((3, 2)))
    model = {"data": data, "layer": eqx.nn.Linear(2, 2, key=key)}
    text = kept_text(
        "2 arrays (36 B)",
        "`data.ts`, `data.ys`",
        "LinearInterpolation",
        "LinearInterpolation",
    )
    with pytest.warns(UserWarning, match=re.escape(text)):
        draw(model, key)


@pytest.mark.usefixtures("in_32_bits")
def test_arrays_without_a_rule(key):
    class Scale(eqx.Module):
        gain: jax.Array
        layer: eqx.nn.Linear

    model = Scale(jnp.ones(3), eqx.nn.Linear(2, 3, key=key))
    text = kept_text("1 array (12 B)", "`gain`", "Scale", "Scale")
    with pytest.warns(UserWarning, match=re.escape(text)):
        new, _ = draw(model, key)
    assert new.gain is model.gain
    with pytest.warns(UserWarning, match=re.escape(text)):
        chorax.call_all_fns(model, reset_parameters, key=key)
    # Arrays of excluded nodes, and arrays with lanes, are meant to stay.
    draw(model, key, node_to_exclude=Scale)
    many = replace(model, gain=jnp.ones((2, 3)))
    draw(many, key, in_axes=lambda x: 0 if x.shape == (2, 3) else None)

    def keep(node, *, key):
        return node

    reset_parameters.register(Scale, keep)
    draw(model, key)


def test_a_model_without_any_rule_is_told_once(key):
    class Alone(eqx.Module):
        gain: jax.Array

    with pytest.warns(UserWarning, match="There is no rule for Alone") as told:
        draw(Alone(jnp.ones(3)), key)
    assert len(told) == 1


def test_arrays_that_are_not_parameters(key):
    class Holder(eqx.Module):
        count: jax.Array
        layer: Any
        norm: Any

    norm, _ = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "lanes", mode="batch")
    draw(Holder(jnp.arange(3), eqx.nn.Linear(2, 2, key=key), norm), key)
    vmap_call_all_fns(net(), lambda node: replace(node, v=jnp.ones(1)), axis_size=2)


# Lanes that were forgotten.


@pytest.mark.parametrize("jit", [False, True])
def test_a_reset_that_forgets_its_lanes(jit):
    batched, _ = made(4)
    text = (
        "`reset_state` was called without `in_axes` on arrays that seem to have 4 "
        "lanes already: `0.v` had shape (4, 3) and now has shape (4, 4, 3), and "
        "likewise all that was written. Pass `in_axes`, such as the `StateDelta` of "
        "the call that added the lanes, so that each lane gets its own slice; or "
        "`in_axes=lambda leaf: None` if that axis is not the lanes."
    )

    def reset(batched):
        return vmap_reset_all_states(batched, axis_size=4)[0]

    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        new = (eqx.filter_jit(reset) if jit else reset)(batched)
    assert new[0].v.shape == (4, 4, 3)


def test_calls_that_forget_nothing():
    batched, delta = made(4)
    vmap_reset_all_states(batched, in_axes=delta)
    vmap_reset_all_states(batched, in_axes=lambda leaf: None, axis_size=4)
    vmap_reset_all_states(batched, axis_size=5)
    # A function was written for the shapes that it gets; with a mask, every written
    # leaf has something to keep.
    vmap_call_all_fns(batched, lambda cell: cell.reset_state(), axis_size=4)
    vmap_reset_all_states(batched, axis_size=4, where=[True] * 4)
    # One array of another size is enough for silence; so is a call that makes arrays.
    one = [replace(batched[0], v=jnp.ones((3, 4))), batched[1]]
    vmap_reset_all_states(one, axis_size=4)
    vmap_init_all_states([Cell(jnp.ones(4))], axis_size=4)


# Values that do not fit the model that they are loaded into.


def fit_text(path, got, has, cure):
    return (
        f"The value for `{path}` does not fit: it is {got}, but the model has {has} "
        f"there. Pass {cure}; or pass `check=False` to take all values as they are."
    )


SAME = "a value of that dtype and shape, or with one more axis in front"
KEYS = "keys, as `jax.random.wrap_key_data` makes them"


@pytest.mark.usefixtures("in_32_bits")
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (jnp.ones(2, "float32"), "float32 of shape (2,)"),
        (jnp.ones((3, 1), "float32"), "float32 of shape (3, 1)"),
        (np.ones((2, 4, 3)), "float32 of shape (2, 4, 3)"),
        (jnp.ones(3, "bfloat16"), "bfloat16 of shape (3,)"),
        (np.ones(3, "int32"), "int32 of shape (3,)"),
        (1.0, "float32 of shape ()"),
        ([1j, 2j, 3j], "complex64 of shape (3,)"),
    ],
)
@pytest.mark.parametrize("abstract", [False, True])
def test_a_value_of_another_shape_or_dtype(value, got, abstract):
    target: Any = net()
    if abstract:
        target = eqx.filter_eval_shape(net)
    text = fit_text("0.w", got, "float32 of shape (3,)", SAME)
    values = {"0.w": value, "1.w": jnp.zeros(2)}
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(target, values)
    # The order does not matter, and neither does a value that another one replaces.
    with pytest.raises(ValueError, match=re.escape(text)):
        assign_state_values(target, dict(reversed(values.items())))
    new, _, missing = assign_state_values(target, values, {"0.w": jnp.zeros(3)})
    assert new[0].w.shape == (3,)
    assert missing == []
    taken, _, _ = assign_state_values(target, values, check=False)
    assert taken[0].w.shape == np.shape(value)


@pytest.mark.parametrize("value", [None, "text"])
def test_what_is_no_array_is_taken_without_a_check(value):
    new, _, _ = assign_state_values({"w": jnp.ones(2)}, {"w": value}, check=False)
    assert new["w"] is value


@pytest.mark.usefixtures("in_32_bits")
@pytest.mark.parametrize(
    ("value", "shape"),
    [
        (np.ones(3), (3,)),
        (jnp.ones((5, 3)), (5, 3)),
        ([1, 2, 3], (3,)),
        ([[True, False, True]], (1, 3)),
    ],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "complex64"])
def test_a_value_that_fits(value, shape, dtype):
    if eqx.is_array(value):
        value = value.astype(dtype)
    for target in (jnp.zeros(3, dtype), jax.ShapeDtypeStruct((3,), dtype)):
        [new], unexpected, missing = assign_state_values([target], {"0": value})
        assert (unexpected, missing) == ([], [])
        assert isinstance(new, jax.Array)
        assert (new.shape, new.dtype, new.weak_type) == (shape, dtype, False)


@pytest.mark.parametrize("value", [jnp.ones(7), np.ones((2, 2)), 1.0, "text", None])
@pytest.mark.parametrize("old", [None, 0.5, "text", jnp.tanh])
def test_any_value_fits_in_place_of_a_non_array(value, old):
    model = Cell(jnp.ones(3), old)
    new, _, missing = assign_state_values(model, {"v": value})
    if eqx.is_array(value):
        assert new.v.tolist() == value.tolist()
    else:
        assert new.v is value
    assert missing == ["w"]


@pytest.mark.usefixtures("in_32_bits")
def test_keys_are_not_their_data(key):
    data = jax.random.key_data(key)
    model = {"k": key, "data": data}
    form = f"{data.dtype} of shape {data.shape}"
    text = fit_text("k", form, f"{key.dtype} of shape ()", KEYS)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(model, {"k": data})
    others = [jax.random.key(0, impl=impl) for impl in ("rbg", "threefry2x32")]
    other = next(x for x in others if x.dtype != key.dtype)
    text = fit_text("k", f"{other.dtype} of shape ()", f"{key.dtype} of shape ()", SAME)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(model, {"k": other})
    text = fit_text("data", f"{key.dtype} of shape ()", form, SAME)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(model, {"data": key})
    keys = jax.random.split(key, 4)
    new, _, _ = assign_state_values(model, {"k": keys})
    assert new["k"] is keys


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.usefixtures("in_32_bits")
def test_what_a_call_wrote_is_loaded_into_a_fresh_model(jit):
    batched, delta = made()

    def load(state):
        return assign_state_values(net(), state)[0]

    loaded = (eqx.filter_jit(load) if jit else load)(delta.to_dict())
    assert eqx.tree_equal(loaded, batched)
    assert eqx.tree_equal(loaded, apply_delta(net(), delta))
    like, like_delta = eqx.filter_eval_shape(made)
    loaded, unexpected, missing = assign_state_values(like, delta.to_dict())
    assert (unexpected, missing) == ([], ["0.w", "1.w"])
    assert loaded[0].v is batched[0].v
    # A value without lanes does not fit a state with lanes.
    text = fit_text("0.v", "float32 of shape (3,)", "float32 of shape (4, 3)", SAME)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(batched, {"0.v": jnp.ones(3, "float32")})
    # Abstract values fit an abstract model.
    shapes, _, _ = assign_state_values(like, like_delta.to_dict())
    assert shapes[0].v == like[0].v


# Values for an `Ensemble`: its axes say which leaves its lanes share.


def members():
    ensemble = {"part": lanes.Ensemble(*lanes.stack([Cell(jnp.ones(3))] * 5))}
    return chorax.init_all_states(ensemble)[0]


def shares_text(path, got):
    return (
        f"The value for `{path}` does not fit: it is {got}, but the axes of the "
        "`Ensemble` at `part` do not map that leaf, so its lanes would share the "
        "value. First make the calls that gave the leaf its lanes in the saved model, "
        "under `eqx.filter_eval_shape` if their values do not matter; or pass "
        "`check=False` to take all values as they are."
    )


def state_of(model):
    """The state dict of all arrays."""
    arrays, _ = eqx.partition(model, eqx.is_array)
    nothing = jax.tree_util.tree_map(lambda _: 0, arrays)
    return chorax.diff(nothing, arrays).to_dict()


@pytest.mark.usefixtures("in_32_bits")
def test_values_for_what_the_lanes_of_an_ensemble_share():
    batched = Cell(jnp.ones((5, 3)), jnp.ones(3))
    model = {"part": lanes.Ensemble(batched, replace(batched, w=0, v=None))}
    text = shares_text("part.model.v", "float32 of shape (5, 3)")
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(model, {"part.model.v": jnp.ones((5, 3))})
    taken, _, _ = assign_state_values(
        model, {"part.model.v": jnp.ones((5, 3))}, check=False
    )
    assert taken["part"].model.v.shape == (5, 3)
    # These fit: a shared value, a value per lane, and lanes around the ensemble.
    state = {"part.model.v": jnp.zeros(3), "part.model.w": jnp.zeros((5, 3))}
    new, _, missing = assign_state_values(model, state)
    assert missing == []
    assert eqx.tree_equal(new["part"][4], Cell(jnp.zeros(3), jnp.zeros(3)))
    state = {"part.model.w": jnp.ones((2, 5, 3))}
    assert assign_state_values(model, state)[0]["part"].model.w.shape == (2, 5, 3)


@pytest.mark.usefixtures("in_32_bits")
def test_states_that_an_ensemble_does_not_have():
    saved = members()
    fresh = {"part": lanes.Ensemble(*lanes.stack([Cell(jnp.zeros(3))] * 5))}
    text = shares_text("part.model.v", "float32 of shape (5, 3)")
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(fresh, state_of(saved))
    # The cure in the message works.
    loaded, unexpected, missing = assign_state_values(
        eqx.filter_eval_shape(members), state_of(saved)
    )
    assert (unexpected, missing) == ([], [])
    assert eqx.tree_equal(loaded, saved)
    assert loaded["part"][2].v.tolist() == [1.0] * 3
    # A value without axes is shared in any case.
    for value in (0.5, np.float32(0.5), jnp.array(0.5)):
        new, _, _ = assign_state_values(fresh, {"part.model.v": value})
        assert new["part"][2].v == 0.5


@pytest.mark.usefixtures("in_32_bits")
def test_an_ensemble_in_another_one():
    inner = lanes.Ensemble(Cell(jnp.ones((5, 3)), jnp.ones((5, 3))), 0)
    many = replace(inner, model=Cell(jnp.ones((2, 5, 3)), inner.model.v))
    axes = replace(inner, model=replace(inner.model, w=0, v=None))
    outer = lanes.Ensemble(many, axes)
    # `v` has lanes in the inner ensemble, but not in the outer one.
    with pytest.raises(
        ValueError, match="the `Ensemble` at the root `\\(\\)` do not map"
    ):
        assign_state_values(outer, {"model.model.v": jnp.ones((2, 5, 3))})
    state = {"model.model.w": np.ones((4, 2, 5, 3)), "model.model.v": np.ones((5, 3))}
    assert assign_state_values(outer, state)[2] == []


@pytest.mark.slow
def test_a_state_dict_of_a_model_that_others_wrote(key):
    flowjax: Any = pytest.importorskip("flowjax.bijections")
    flow = flowjax.Affine(jnp.zeros(2), jnp.ones(2))
    state = state_of(flow)
    path = next(iter(state))
    assert eqx.tree_equal(assign_state_values(flow, state)[0], flow)
    wide = {name: jnp.ones((4, *x.shape), x.dtype) for name, x in state.items()}
    loaded, _, _ = assign_state_values(flow, wide)
    assert loaded.loc.shape == (4, 2)
    x = state[path]
    has = f"{x.dtype} of shape {x.shape}"
    text = fit_text(path, f"{x.dtype} of shape (7,)", has, SAME)
    with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
        assign_state_values(flow, {path: jnp.ones(7, x.dtype)})


# Swept values that must not be trained.


class Scaled(eqx.Module):
    tau: jax.Array
    layers: list[Any]

    def set(self, tau):
        return replace(self, tau=tau)

    def __call__(self, x, key):
        for layer in self.layers:
            x = layer(x, key=key)
        return x / self.tau


def set_p(node, p):
    return replace(node, p=p) if isinstance(node, eqx.nn.Dropout) else node


def test_swept_values_are_not_trained(key):
    layers = [eqx.nn.MLP(2, 1, 4, 1, key=key), eqx.nn.Dropout(0.5)]
    model = Scaled(jnp.ones(()), layers)
    taus, ps = jnp.array([1.0, 2.0, 4.0]), jnp.array([0.0, 0.1, 0.5])
    options: dict[str, Any] = {"args_in_axes": 0, "state_tag": "hyper"}
    many, one = vmap_call_all_fns(
        model, "set", taus, axis_size=3, fn_if_not_exist="pass", **options
    )
    many, two = vmap_call_all_fns(many, set_p, ps, in_axes=one, **options)
    many, three = vmap_call_all_fns(
        many, reset_parameters, key=key, in_axes=one | two, state_tag="drawn"
    )
    delta = one | two | three
    trained = delta.select(~WithTag("hyper")).filter_spec
    x = jnp.arange(8.0).reshape(4, 2)

    def step(model, key):
        params, rest = eqx.partition(model, trained)

        def loss(params):
            model = eqx.combine(params, rest)
            return (jax.vmap(model, in_axes=(0, None))(x, key) ** 2).mean()

        grads = jax.grad(loss)(params)
        return eqx.apply_updates(
            model, jax.tree.map(lambda p, g: -0.1 * (g + 0.1 * p), params, grads)
        )

    new = eqx.filter_vmap(step, in_axes=(delta.in_axes, None))(many, key)
    np.testing.assert_array_equal(new.tau, taus)
    np.testing.assert_array_equal(new.layers[1].p, ps)
    olds = lanes.unstack(many, delta)
    for old, one_new in zip(olds, lanes.unstack(new, delta), strict=True):
        # By hand: the step for the weights of one lane.
        weights = [old.layers[0].layers[i].weight for i in (0, 1)]

        def by_hand(weights, old=old):
            layers = [
                replace(layer, weight=weight)
                for layer, weight in zip(old.layers[0].layers, weights, strict=True)
            ]
            mlp = replace(old.layers[0], layers=tuple(layers))
            new = replace(old, layers=[mlp, old.layers[1]])
            return (jax.vmap(new, in_axes=(0, None))(x, key) ** 2).mean()

        grads = jax.grad(by_hand)(weights)
        for i in (0, 1):
            expected = weights[i] - 0.1 * (grads[i] + 0.1 * weights[i])
            got = one_new.layers[0].layers[i].weight
            np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


# Arguments that went to the methods, and errors with a known cure.


def notes_of(info):
    return getattr(info.value, "__notes__", [])


def test_the_number_of_lanes_given_by_position(key):
    text = (
        "`axis_size` must be a positive integer, the number of lanes, but it is "
        "missing. 4 went to the methods as `args`. Did you mean `axis_size=4`?"
    )
    calls: list[Any] = [
        lambda: vmap_call_all_fns(eqx.nn.Linear(2, 2, key=key), reset_parameters, 4),
        lambda: vmap_call_all_fns(net(), "init_state", (4,)),
        lambda: vmap_init_all_states(net(), 4),
        lambda: vmap_reset_all_states(net(), 4, key=key),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=f"^{re.escape(text)}$"):
            call()
    batched, delta = made(4)
    with pytest.raises(TypeError, match="positional argument") as info:
        vmap_reset_all_states(batched, 4, in_axes=delta)
    question = "4 went to the methods as `args`. Did you mean `axis_size=4`?"
    assert question in notes_of(info)


def test_a_keyword_close_to_an_option():
    batched, delta = made(4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'wher'") as info:
        vmap_reset_all_states(batched, in_axes=delta, wher=[True] * 4)
    assert (
        "`wher` went to the methods as a keyword argument. Did you mean the option "
        "`where`?"
    ) in notes_of(info)
    with pytest.raises(TypeError, match="unexpected keyword argument 'colour'") as info:
        vmap_reset_all_states(batched, in_axes=delta, colour=1)
    assert not any("Did you mean the option" in note for note in notes_of(info))


class Changes(eqx.Module):
    v: jax.Array

    def init_state(self):
        self.v = self.v + 1
        return self

    reset_state = init_state


class ChangesBelow(eqx.Module):
    below: Cell

    def init_state(self):
        self.below.v = self.below.w
        return self

    reset_state = init_state


# Calls of `f` on the model `m`, and calls of its methods for states.
COLLECTIVE: dict[str, Any] = {
    "call_all_fns": lambda m, f, key: chorax.call_all_fns(m, f, key=key),
    "vmap_call_all_fns": lambda m, f, key: vmap_call_all_fns(
        m, f, axis_size=2, key=key
    ),
    "explain": lambda m, f, key: explain(m, f, axis_size=2, key=key),
}
STATES: dict[str, Any] = {
    "init_all_states": lambda m, key: chorax.init_all_states(m, key=key),
    "vmap_init_all_states": lambda m, key: vmap_init_all_states(
        m, axis_size=2, key=key
    ),
    "reset_all_states": lambda m, key: chorax.reset_all_states(m, key=key),
    "vmap_reset_all_states": lambda m, key: vmap_reset_all_states(
        m, axis_size=2, key=key
    ),
}


def error_of(kind, text, call, model, key, jit):
    """The notes of an error, which may be raised inside `jit`."""

    def run(model, key):
        call(model, key)
        return model

    with pytest.raises(kind, match=text) as info:
        (eqx.filter_jit(run) if jit else run)(model, key)
    return notes_of(info)


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", [*COLLECTIVE, *STATES])
@pytest.mark.parametrize(
    "model", [Changes(jnp.ones(3)), [ChangesBelow(Cell(jnp.ones(3), jnp.ones(3)))]]
)
def test_a_method_that_changes_its_node_in_place(model, name, jit, key):
    def call(model, key):
        if name in STATES:
            return STATES[name](model, key)
        return COLLECTIVE[name](model, "init_state", key)

    notes = error_of(Exception, "cannot assign", call, model, key, jit)
    text = (
        "Modules are not changed in place: return `chorax.replace(self, field=value)`."
    )
    assert notes.count(text) == 1


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("name", COLLECTIVE)
def test_a_rule_without_a_key(name, jit, key):
    class Scale(eqx.Module):
        gain: jax.Array

    reset_parameters.register(Scale, lambda node: node)

    def call(model, key):
        return COLLECTIVE[name](model, reset_parameters, key)

    notes = error_of(TypeError, "'key'", call, [Scale(jnp.ones(3))], key, jit)
    text = (
        "A rule of `reset_parameters` is called as `rule(node, key=key)`: give it the "
        "parameter `*, key`."
    )
    assert notes.count(text) == 1


def test_stacking_models_of_different_activations(key):
    models = [
        eqx.nn.MLP(2, 2, 3, 1, activation=activation, key=key)
        for activation in (jax.nn.relu, jnp.tanh)
    ]
    text = (
        "`activation` of model 0 and model 1 differ: relu against tanh. A leaf "
        "that is not an array is shared by all lanes; give all models the same "
        "function, or use `chorax.lanes.groups`."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        lanes.stack(models)
