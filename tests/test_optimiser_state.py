"""The optimiser's state of a sharded ensemble lies where the members are, and so does
all else that `lanes.vmap` returns the same for all lanes."""

import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import chorax
import oracle
from chorax import lanes
from programs import COLLECTIVES, compiled


pytestmark = [
    pytest.mark.skipif(
        jax.device_count() < 8, reason="XLA_FLAGS ask for fewer than 8 devices"
    ),
    pytest.mark.usefixtures("needs_jit"),
]
LANES = 16
MESHES: dict[str, Any] = {
    "one axis": ((8,), ("lanes",), "lanes"),
    "lanes and model": ((4, 2), ("lanes", "model"), "lanes"),
    "lanes come second": ((2, 4), ("model", "lanes"), "lanes"),
    "two axes of lanes": ((4, 2), ("hosts", "lanes"), ("hosts", "lanes")),
}
OPTIMISERS: dict[str, Any] = {
    "adam": optax.adam(1e-2),
    "clipped": optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2)),
    "injected": optax.inject_hyperparams(optax.adam)(1e-2),
    "history": optax.lbfgs(),
}


def sharding(name="one axis", types=AxisType.Auto):
    shape, names, entry = MESHES[name]
    mesh = jax.make_mesh(shape, names, axis_types=(types,) * len(names))
    return NamedSharding(mesh, P(entry))


def members(where, width=16):
    model = eqx.nn.MLP(4, 2, width, 2, key=jax.random.key(0))
    made, delta = chorax.vmap_call_all_fns(
        model,
        chorax.reset_parameters,
        axis_size=LANES,
        key=jax.random.key(1),
        sharding=where,
    )
    return *lanes.partition(made, delta), delta


def assert_spread(tree, where):
    """Each device holds its own lanes, of every array."""
    entry = where.spec[0]
    names = entry if isinstance(entry, tuple) else (entry,)
    parts = int(np.prod([where.mesh.shape[name] for name in names]))
    arrays = [x for x in jtu.tree_leaves(tree) if eqx.is_array(x)]
    assert arrays
    for x in arrays:
        assert len(x.sharding.device_set) == 8
        shapes = {shard.data.shape for shard in x.addressable_shards}
        assert shapes == {(LANES // parts, *x.shape[1:])}


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("mesh", MESHES)
def test_state_is_where_the_members_are(mesh, jit):
    where = sharding(mesh)
    params, _, _ = members(where)
    for optimiser in OPTIMISERS.values():
        init = lanes.vmap(optimiser.init)
        state = (eqx.filter_jit(init) if jit else init)(params)
        assert_spread(state, where)
        oracle.assert_same(state, eqx.filter_vmap(optimiser.init)(params))


@pytest.mark.parametrize("jit", [False, True])
def test_on_explicit_axes(jit):
    where = sharding(types=AxisType.Explicit)
    params, _, _ = members(where)
    enter: Any = vars(jax.sharding).get("use_mesh") or jax.set_mesh
    with enter(where.mesh):
        init = lanes.vmap(optax.adam(1e-2).init)
        assert_spread((eqx.filter_jit(init) if jit else init)(params), where)


def test_inside_a_jit_no_device_holds_another_ones_lanes():
    params, _, _ = members(sharding(), width=64)
    program = compiled(lanes.vmap(optax.adam(1e-2).init), params)
    assert re.findall(COLLECTIVES, program.as_text()) == []
    whole = 2 * sum(x.nbytes for x in jtu.tree_leaves(params))
    stats = program.memory_analysis()
    held = stats.output_size_in_bytes + stats.temp_size_in_bytes
    assert held < whole / 8 + 4096


def test_training_leaves_it_there():
    where = sharding()
    params, rest, delta = members(where)
    optimiser = optax.adam(1e-2)
    x, y = jnp.ones((8, 4)), jnp.zeros((8, 2))

    def step(params, rest, state):
        def loss(params):
            return jnp.mean((jax.vmap(eqx.combine(params, rest))(x) - y) ** 2)

        updates, state = optimiser.update(jax.grad(loss)(params), state)
        return eqx.apply_updates(params, updates), state

    steps = lanes.vmap(step, in_axes=(delta, delta, 0))

    @eqx.filter_jit
    def train(params):
        state = lanes.vmap(optimiser.init)(params)
        for _ in range(2):
            params, state = steps(params, rest, state)
        return params, state

    with jax.numpy_dtype_promotion("standard"):
        assert_spread(train(params), where)
        state = lanes.vmap(optimiser.init)(params)
        program = compiled(steps, params, rest, state)
        assert re.findall(COLLECTIVES, program.as_text()) == []


def results(x):
    key = jax.random.key(0)
    return {"mapped": x * 2, "same": jnp.ones(3), "key": key, "host": np.ones(2)}


def test_what_has_no_lane_axis_is_left_alone():
    x = jax.device_put(jnp.arange(16.0), sharding())
    axes = {"mapped": 0, "same": None, "key": None, "host": None}
    for run in (
        lanes.vmap(results, 0, axes),
        eqx.filter_jit(lanes.vmap(results, 0, axes)),
    ):
        found = run(x)
        assert found["same"].shape == (3,)
        assert found["key"].shape == ()
        assert found["host"].shape == (2,)
    found = lanes.vmap(results)(x)
    assert found["key"].shape == (16,)
    assert_spread([found["mapped"], found["same"]], sharding())


def test_one_device_is_one_device():
    x = jnp.arange(16.0)
    for run in (lanes.vmap(results), eqx.filter_jit(lanes.vmap(results))):
        assert {len(x.sharding.device_set) for x in run(x).values()} == {1}
    # An argument on the host is on no device.
    assert lanes.vmap(results)(np.arange(16.0, dtype=np.float32))["same"].shape[0] == 16


def test_lanes_in_the_middle_and_lanes_of_lanes():
    where = sharding()
    x = jax.device_put(jnp.ones((3, 16)), NamedSharding(where.mesh, P(None, "lanes")))

    def run(x):
        return lanes.vmap(lambda x: (x.sum(), jnp.ones(2)), 1)(x)

    for call in (run, jax.jit(run)):
        assert_spread(call(x), where)
    outer = jax.device_put(jnp.ones((16, 8)), where)
    nested = lanes.vmap(lanes.vmap(lambda x: jnp.ones(2)))
    for call in (nested, eqx.filter_jit(nested)):
        assert_spread(call(outer), where)


def test_gradients_go_through():
    x = jax.device_put(jnp.arange(16.0), sharding())

    def total(x):
        y, same = lanes.vmap(lambda x: (x**2, jnp.ones(2)))(x)
        return y.sum() + same.sum()

    for run in (jax.grad(total), jax.jit(jax.grad(total))):
        np.testing.assert_allclose(run(x), 2 * np.arange(16.0))
    scaled = jax.grad(lambda s: lanes.vmap(lambda x: (x * s, s))(x)[1].sum())
    assert scaled(2.0) == 16.0
