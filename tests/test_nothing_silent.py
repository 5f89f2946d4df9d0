"""Where a call may well do something else than was meant, it says so."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
from chorax import (
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


# How many lanes there are, where `in_axes` says it.


def made(size=4, **options):
    return vmap_init_all_states(net(), axis_size=size, **options)


@pytest.mark.parametrize("jit", [False, True])
def test_mapped_leaves_tell_how_many_lanes_there_are(jit):
    batched, delta = made()
    done = jnp.array([True, False, False, True])

    def reset(batched, done, **options):
        return vmap_reset_all_states(batched, in_axes=delta, where=done, **options)[0]

    run = eqx.filter_jit(reset) if jit else reset
    new = run(batched, done)
    assert eqx.tree_equal(new, run(batched, done, axis_size=4))
    assert new[0].v.sum(1).tolist() == [0, 3, 3, 0]


@pytest.mark.parametrize("axes", ["delta", "tree", "last"])
def test_every_form_of_in_axes_tells_it(axes):
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


def test_given_and_different():
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
def test_what_is_no_number_of_lanes(size):
    batched, delta = made()
    with pytest.raises(ValueError, match="`axis_size` must be a positive integer"):
        vmap_reset_all_states(batched, in_axes=delta, axis_size=size)


def test_nothing_else_tells_it(key):
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
        ((eqx.nn.MLP,), "no node is a MLP; there are Cell."),
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


def test_tags_of_the_delta_are_told():
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
def test_what_may_match_nothing(filter):
    silent(node_to_exclude=filter)
    silent(state_to_exclude=filter)


def test_one_of_several_that_matches():
    with pytest.warns(UserWarning, match="wrote nothing at all"):
        silent(node_to_exclude=[eqx.nn.Dropout, Cell])
    silent(state_to_exclude=["a", "b"], state_tag="b")


# Parameters that stay the same in all lanes, for want of a rule.


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
    assert "no rule for VisionTransformer, holds 2 arrays" in found
    assert "5 arrays shared by all lanes: no call writes them" in found
    without = [type(model), type(model.global_pos_embed)]
    without.append(type(model.blocks[0].blocks[0].ls1))
    draw(model, key, node_to_exclude=without)


@pytest.mark.slow
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
    # What is left out, or has a value in each lane, is meant to be as it is.
    draw(model, key, node_to_exclude=Scale)
    many = replace(model, gain=jnp.ones((2, 3)))
    draw(many, key, in_axes=lambda x: 0 if x.shape == (2, 3) else None)

    def keep(node, *, key):
        return node

    reset_parameters.register(Scale, keep)
    draw(model, key)


def test_what_is_no_parameter(key):
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
        "`reset_state` was called without `in_axes`, and gave 4 lanes to what seems to "
        "have them already: `0.v` was of shape (4, 3) and is of shape (4, 4, 3), and "
        "so with all that is written. Pass `in_axes`, the `StateDelta` of the call "
        "that made these lanes, so that each lane gets its own; or `in_axes` that maps "
        "nothing, `lambda leaf: None`, if the axis is another."
    )

    def reset(batched):
        return vmap_reset_all_states(batched, axis_size=4)[0]

    with pytest.warns(UserWarning, match=f"^{re.escape(text)}$"):
        new = (eqx.filter_jit(reset) if jit else reset)(batched)
    assert new[0].v.shape == (4, 4, 3)


def test_what_forgets_nothing():
    batched, delta = made(4)
    vmap_reset_all_states(batched, in_axes=delta)
    vmap_reset_all_states(batched, in_axes=lambda leaf: None, axis_size=4)
    vmap_reset_all_states(batched, axis_size=5)
    # By a function, whoever wrote it knows what it is given; with a mask, all that is
    # written has something to keep.
    vmap_call_all_fns(batched, lambda cell: cell.reset_state(), axis_size=4)
    vmap_reset_all_states(batched, axis_size=4, where=[True] * 4)
    # One array of another size is enough, and so are none that were there.
    one = [replace(batched[0], v=jnp.ones((3, 4))), batched[1]]
    vmap_reset_all_states(one, axis_size=4)
    vmap_init_all_states([Cell(jnp.ones(4))], axis_size=4)


# Arguments that were meant for the call, and errors with a known cure.


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


def test_a_method_that_changes_its_node_in_place(key):
    class Changes(eqx.Module):
        v: jax.Array

        def step(self):
            self.v = self.v + 1
            return self

    with pytest.raises(Exception, match="cannot assign") as info:
        vmap_call_all_fns(Changes(jnp.ones(3)), "step", axis_size=2)
    assert (
        "Modules are not changed in place: return `chorax.replace(self, field=value)`."
    ) in notes_of(info)


def test_a_rule_without_a_key(key):
    class Scale(eqx.Module):
        gain: jax.Array

    reset_parameters.register(Scale, lambda node: node)
    with pytest.raises(TypeError, match="'key'") as info:
        draw(Scale(jnp.ones(3)), key)
    assert (
        "A rule of `reset_parameters` is called as `rule(node, key=key)`: give it the "
        "parameter `*, key`."
    ) in notes_of(info)


def test_stacking_models_of_different_activations(key):
    models = [
        eqx.nn.MLP(2, 2, 3, 1, activation=activation, key=key)
        for activation in (jnp.tanh, jnp.sin)
    ]
    text = (
        "A leaf that is not an array is shared by all lanes; give all models the same "
        "function, or keep them in a list."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        lanes.stack(models)
