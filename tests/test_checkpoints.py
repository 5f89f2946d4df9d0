"""Batched models and deltas in the files of other libraries, and back; and deltas that
are made for models of other origin."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import optax
import orbax.checkpoint as ocp
import pytest
import safetensors
import safetensors.flax
import tensorstore
from jax.sharding import NamedSharding, PartitionSpec as P

import chorax
import oracle
from chorax import lanes


LANES = 8


class Unit(eqx.Module):
    """Parameters, a state of few bits, a key, a function, and a leaf that is shared."""

    linear: eqx.nn.Linear
    table: jax.Array
    v: Any = None
    key: Any = None
    activation: Any = jnp.tanh

    def init_state(self, *, key):
        one, two = jax.random.split(key)
        v = jax.random.normal(one, (3,)).astype(jnp.bfloat16)
        return chorax.replace(self, v=v, key=two)


def unit(key):
    return Unit(eqx.nn.Linear(2, 3, key=key), jnp.arange(4))


def make(seed):
    """From a number: whichever kind of keys is the default, a file has the default."""
    one, two, three = jax.random.split(jax.random.key(seed, impl="threefry2x32"), 3)
    members, drawn = chorax.vmap_call_all_fns(
        unit(one), chorax.reset_parameters, axis_size=LANES, key=two
    )
    members, begun = chorax.vmap_init_all_states(
        members, axis_size=LANES, in_axes=drawn, key=three, state_tag="state"
    )
    return members, drawn | begun


def likeness():
    """The structure of it, for which nothing is drawn."""
    like, delta = eqx.filter_eval_shape(make, 0)
    arrays = [x for x in jtu.tree_leaves(like) if hasattr(x, "shape")]
    drawn = [x for x in arrays if x.shape[0] == LANES]
    assert len(drawn) == 4
    assert all(isinstance(x, jax.ShapeDtypeStruct) for x in drawn)
    return like, delta


def is_key(x):
    return hasattr(x, "dtype") and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def to_words(tree):
    return jtu.tree_map(lambda x: jax.random.key_data(x) if is_key(x) else x, tree)


def to_keys(tree, like):
    def wrap(x, like):
        if not is_key(like):
            return x
        return jax.random.wrap_key_data(jnp.asarray(x), impl="threefry2x32")

    return jtu.tree_map(wrap, tree, like)


def assert_loaded(found, delta, expected, old_delta):
    """The same model, and the delta of the likeness made one of it."""
    oracle.assert_same(found, expected)
    fresh = delta.of(found)
    assert (fresh.paths, fresh.tags) == (old_delta.paths, old_delta.tags)
    oracle.assert_same(fresh.in_axes, old_delta.in_axes)
    assert fresh.axis_size == LANES
    oracle.assert_same(fresh, old_delta)


# Equinox


def test_equinox(tmp_path):
    members, delta = make(1)
    with pytest.raises(RuntimeError, match=r"Error at leaf with path .*'key'"):
        eqx.tree_serialise_leaves(tmp_path / "keys.eqx", members)
    eqx.tree_serialise_leaves(tmp_path / "members.eqx", to_words(members))
    like, like_delta = likeness()
    words = eqx.filter_eval_shape(to_words, like)
    found = eqx.tree_deserialise_leaves(tmp_path / "members.eqx", words)
    found = to_keys(found, like)
    assert_loaded(found, like_delta, members, delta)
    member = lanes.take(found, like_delta, 3)
    oracle.assert_same(member, lanes.take(members, delta, 3))


# Orbax


def spread(count):
    mesh = jax.make_mesh((count,), ("lanes",), devices=jax.devices()[:count])
    return NamedSharding(mesh, P("lanes"))


def abstract(like, delta, sharding):
    """The arrays of a likeness, each with where it is to be; by hand."""
    everywhere = NamedSharding(sharding.mesh, P())
    axes = oracle.leaves_by_path(delta.in_axes)
    leaves = [
        jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=sharding if path in axes else everywhere
        )
        if hasattr(x, "dtype")
        else None
        for path, x in oracle.leaves_by_path(like).items()
    ]
    return jtu.tree_unflatten(jtu.tree_structure(like), leaves)


@pytest.mark.skipif(jax.device_count() < 8, reason="there are fewer than 8 devices")
def test_orbax_onto_another_mesh(tmp_path):
    members, delta = make(1)
    members = lanes.shard(members, delta, spread(8))
    arrays, _ = eqx.partition(members, eqx.is_array)
    like, like_delta = likeness()
    with ocp.StandardCheckpointer() as checkpointer:
        with pytest.raises(ValueError, match="Unsupported type"):
            checkpointer.save(tmp_path / "functions", members)
        checkpointer.save(tmp_path / "members", arrays)
        checkpointer.wait_until_finished()
        target = abstract(like, like_delta, spread(4))
        found = checkpointer.restore(tmp_path / "members", target)
    weight = found.linear.weight
    assert {x.data.shape for x in weight.addressable_shards} == {(2, 3, 2)}
    assert len(weight.sharding.device_set) == 4
    rest = eqx.filter(like, lambda x: hasattr(x, "dtype"), inverse=True)
    assert_loaded(eqx.combine(found, rest), like_delta, members, delta)


def test_one_member_of_what_orbax_wrote(tmp_path):
    members, delta = make(1)
    with ocp.StandardCheckpointer() as checkpointer:
        arrays = eqx.filter(to_words(members), eqx.is_array)
        checkpointer.save(tmp_path / "members", arrays)
    store = {"driver": "ocdbt", "base": f"file://{tmp_path / 'members'}"}

    def read(path, lane):
        spec = {"driver": "zarr", "kvstore": {**store, "path": f"{path}/"}}
        return tensorstore.open(spec, read=True).result()[lane].read().result()

    values = {path: jnp.asarray(read(path, 3)) for path in delta.paths}
    values["key"] = jax.random.wrap_key_data(values["key"], impl="threefry2x32")
    found, unexpected, missing = chorax.assign_state_values(
        unit(jax.random.key(0)), values
    )
    assert not unexpected
    assert missing == ["table"]
    oracle.assert_same(found, lanes.take(members, delta, 3))


def test_orbax_keeps_what_training_goes_on_with(tmp_path):
    members, delta = make(1)
    params, rest = lanes.partition(members, delta, ~chorax.filters.WithTag("state"))
    optimiser = optax.adam(1e-2)
    state = eqx.filter_vmap(optimiser.init)(params)

    def step(params, state):
        updates, state = optimiser.update(jtu.tree_map(jnp.ones_like, params), state)
        return eqx.apply_updates(params, updates), state

    steps = eqx.filter_jit(eqx.filter_vmap(step))
    with jax.numpy_dtype_promotion("standard"):
        params, state = steps(params, state)
        saved = {"params": params, "state": state}
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(tmp_path / "step", saved)
            checkpointer.wait_until_finished()
            like = eqx.filter_eval_shape(lambda: saved)
            found = checkpointer.restore(tmp_path / "step", like)
        oracle.assert_same(found, saved)
        oracle.assert_same(steps(*found.values()), steps(params, state))
    oracle.assert_same(delta.of(eqx.combine(found["params"], rest)).paths, delta.paths)


# Safetensors


def test_safetensors(tmp_path):
    members, delta = make(1)
    file = tmp_path / "members.safetensors"
    safetensors.flax.save_file(to_words(delta.to_dict()), file)
    like, like_delta = likeness()
    values = to_keys(safetensors.flax.load_file(file), like_delta.to_dict())
    # What lanes share is not in the delta.
    shared = {"table": members.table}
    found, unexpected, missing = chorax.assign_state_values(like, values, shared)
    assert not unexpected
    assert not missing
    assert_loaded(found, like_delta, members, delta)


def test_one_member_of_what_safetensors_wrote(tmp_path):
    members, delta = make(1)
    file = tmp_path / "members.safetensors"
    safetensors.flax.save_file(to_words(delta.to_dict()), file)
    with safetensors.safe_open(file, "flax") as tensors:
        values = {path: tensors.get_slice(path)[3] for path in tensors.keys()}  # noqa: SIM118
    like = lanes.take(members, delta, 0)
    values = {**values, "key": to_keys(values["key"], like.key)}
    found, _, _ = chorax.assign_state_values(unit(jax.random.key(0)), values)
    oracle.assert_same(found, lanes.take(members, delta, 3))


# Deltas of models that no call made


def test_of_has_the_present_values():
    members, delta = make(1)
    later = jtu.tree_map(lambda x: x + 1 if eqx.is_inexact_array(x) else x, members)
    fresh = delta.of(later)
    assert (fresh.paths, fresh.tags) == (delta.paths, delta.tags)
    assert (fresh.axis_size, fresh.in_axes) == (delta.axis_size, delta.in_axes)
    for path, x in oracle.leaves_by_path(fresh.values).items():
        assert x is oracle.leaves_by_path(later)[path]
    # The law: the written leaves are those of the one, all others of the other.
    other, _ = make(2)
    applied = chorax.apply_delta(other, fresh)
    written = oracle.leaves_by_path(delta.values)
    for path, x in oracle.leaves_by_path(applied).items():
        source = later if path in written else other
        assert x is oracle.leaves_by_path(source)[path]
    oracle.assert_same(chorax.apply_delta(unit(jax.random.key(0)), fresh).v, later.v)


def test_of_other_lanes():
    members, delta = make(1)
    for count, index in ((3, [0, 2, 4]), (1, [7])):
        some = lanes.take(members, delta, index)
        assert delta.of(some).axis_size == count
    twice = lanes.concatenate([members, members], delta)
    assert delta.of(twice).axis_size == 2 * LANES
    # As large as the leaves say, also for what takes the size from the delta.
    assert len(lanes.unstack(twice, delta.of(twice))) == 2 * LANES


def test_of_a_delta_without_lanes_and_inside_jit():
    model = {"a": jnp.ones(2), "b": jnp.zeros(3)}
    delta = chorax.diff(model, {**model, "a": jnp.zeros(2)})

    @eqx.filter_jit
    def refreshed(model):
        return delta.of(model)

    found = refreshed({"a": jnp.full(2, 7.0), "b": jnp.ones(3)})
    assert found.axis_size is None
    assert list(found.to_dict()) == ["a"]
    assert (found.values["a"] == 7.0).all()


def test_of_shapes():
    like, like_delta = likeness()
    _, delta = make(1)
    fresh = delta.of(like)
    assert fresh.axis_size == LANES
    assert fresh.to_dict() == like_delta.to_dict()
    again = chorax.StateDelta.from_axes(like, delta)
    assert (again.paths, again.axis_size) == (delta.paths, LANES)


def test_of_a_model_of_another_structure():
    members, delta = make(1)
    text = (
        "This model has another structure than the delta describes: at `linear.bias`, "
        "the model: None; the delta: a leaf."
    )
    with pytest.raises(ValueError, match=text):
        delta.of(eqx.tree_at(lambda m: m.linear.bias, members, None))
    short = eqx.tree_at(lambda m: m.v, members, members.v[:3])
    with pytest.raises(ValueError, match=r"`v` along axis 0, .* must be 8 long"):
        delta.of(short)


def test_from_axes():
    keys = jax.random.split(jax.random.key(0), 4)
    members = eqx.filter_vmap(unit, out_axes=eqx.if_array(0))(keys)
    members = eqx.tree_at(lambda m: m.table, members, members.table[0])
    axes = jtu.tree_map(lambda x: 0 if eqx.is_array(x) else None, members)
    axes = eqx.tree_at(lambda m: m.table, axes, None)
    delta = chorax.StateDelta.from_axes(members, axes)
    assert delta.paths == ("linear.weight", "linear.bias")
    assert (delta.axis_size, delta.in_axes) == (4, axes)
    assert set(delta.tags.values()) == {frozenset()}
    assert delta.to_dict()["linear.bias"] is members.linear.bias
    # It serves as one that a call has made.
    oracle.assert_same(lanes.unstack(members, delta), lanes.unstack(members, axes))
    applied = chorax.apply_delta(unit(jax.random.key(1)), delta)
    oracle.assert_same(applied, members)
    members, begun = chorax.vmap_init_all_states(
        members, axis_size=4, in_axes=delta, key=keys, state_tag="state"
    )
    both = delta | begun
    assert both.paths == ("linear.weight", "linear.bias", "v", "key")
    assert both.select("state").paths == ("v", "key")
    assert len(lanes.Ensemble(members, both)) == 4


def test_from_axes_behind():
    tree = {"a": jnp.ones((2, 3)), "b": jnp.ones(2)}
    delta = chorax.StateDelta.from_axes(tree, {"a": -1, "b": None})
    assert (delta.paths, delta.axis_size) == (("a",), 3)
    assert delta.in_axes == {"a": 1, "b": None}
    with pytest.raises(ValueError, match="No leaf has a lane axis"):
        chorax.StateDelta.from_axes(tree, None)
    with pytest.raises(ValueError, match="`b` along axis 0, which must be"):
        chorax.StateDelta.from_axes(tree, {"a": 1, "b": 0})
