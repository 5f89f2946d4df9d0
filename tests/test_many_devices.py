"""Lanes on the devices of a mesh, simulated: the same results, each in its place, and
nothing sent between devices."""

import functools
import itertools
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import chorax
import counts
import oracle
import trees
from calls import build, call, jits, maybe_jit, quiet, seeds
from chorax import lanes, replace, vmap_call_all_fns
from programs import COLLECTIVES, compiled, peak
from rows import quick
from trees import keys_of, shapes


pytestmark = [
    pytest.mark.skipif(
        jax.device_count() < 8, reason="XLA_FLAGS ask for fewer than 8 devices"
    ),
    # What it is about is compiled; explicit axes are not for plain `jax.vmap` either.
    pytest.mark.usefixtures("needs_jit"),
]
LANES = 16
TYPES = pytest.mark.parametrize(
    "types", quick([AxisType.Auto, AxisType.Explicit], [AxisType.Explicit])
)
JITS = pytest.mark.parametrize("jit", quick([False, True], [True]))


@pytest.fixture
def key(lane_key):
    """Devices are compared with one."""
    return lane_key


def sharding(shape=(8,), names=("lanes",), entry: Any = "lanes", types=AxisType.Auto):
    mesh = jax.make_mesh(shape, names, axis_types=(types,) * len(names))
    return NamedSharding(mesh, P(entry))


MESHES = {
    "one axis": lambda types: sharding(types=types),
    "lanes and model": lambda types: sharding((4, 2), ("lanes", "model"), types=types),
    "lanes come second": lambda types: sharding(
        (2, 4), ("model", "lanes"), types=types
    ),
    "two axes of lanes": lambda types: sharding(
        (4, 2), ("hosts", "lanes"), ("hosts", "lanes"), types=types
    ),
}


class Cell(eqx.Module):
    """Reads what is shared, writes a state, and leaves the rest alone."""

    w: jax.Array
    b: jax.Array
    h: Any = None
    n: Any = 0

    def init_state(self, scale=1.0, *, key):
        h = scale * jax.random.normal(key, self.w.shape)
        return replace(self, h=h, n=self.n + 1)

    def reset_state(self, to, *, key):
        return replace(self, h=self.h * self.w + to + jax.random.uniform(key, ()))

    def tell(self, *, key):
        h = jax.random.normal(key, (2,))
        return replace(self, h=h), {"norm": jnp.sum(h**2), "name": "cell"}

    def meet(self, *, key):
        h = jax.random.uniform(key, (3,))
        return replace(self, h=h - jax.lax.pmean(h, "lane"))

    def until(self, *, key):
        """Another number of steps in every lane."""

        def more(state):
            key, x = state
            key, own = jax.random.split(key)
            return key, x + jax.random.uniform(own, ())

        _, x = jax.lax.while_loop(lambda s: s[1] < 3.0, more, (key, jnp.zeros(())))
        return replace(self, h=x)


def net():
    return {"cells": [Cell(jnp.arange(3.0) + i, jnp.ones(2) * i) for i in range(3)]}


def arrays(tree):
    return jtu.tree_leaves(eqx.filter(tree, eqx.is_array))


def check_layout(batched, delta, where):
    """Lanes are divided among the devices, and everything else is on all of them."""
    parts = lanes_per_device(where)
    axes = oracle.leaves_by_path(delta.in_axes)
    for path, x in oracle.leaves_by_path(batched).items():
        if not eqx.is_array(x):
            continue
        assert len(x.sharding.device_set) == 8, path
        axis = axes.get(path)
        for shard in x.addressable_shards:
            expected = list(x.shape)
            if axis is not None:
                expected[axis] = parts
            assert shard.data.shape == tuple(expected), path


def lanes_per_device(where):
    entry = where.spec[0]
    names = entry if isinstance(entry, tuple) else (entry,)
    return LANES // int(np.prod([where.mesh.shape[name] for name in names]))


@pytest.mark.parametrize(
    ("mesh", "types", "jit"),
    quick(
        [
            (mesh, types, jit)
            for mesh, types in (
                ("one axis", AxisType.Auto),
                ("one axis", AxisType.Explicit),
                ("lanes and model", AxisType.Auto),
                ("lanes and model", AxisType.Explicit),
                ("lanes come second", AxisType.Auto),
                ("two axes of lanes", AxisType.Explicit),
            )
            for jit in (False, True)
        ],
        [
            ("one axis", AxisType.Explicit, False),
            ("two axes of lanes", AxisType.Explicit, True),
        ],
    ),
)
def test_creation_and_reset(mesh, types, jit, key):
    where = MESHES[mesh](types)

    def make(net, key, **options):
        return chorax.vmap_init_all_states(net, axis_size=LANES, key=key, **options)

    def reset(net, delta, key, mask, to, **options):
        options |= {"in_axes": delta, "where": mask, "args_in_axes": 0}
        return chorax.vmap_reset_all_states(
            net, to, axis_size=LANES, key=key, **options
        )

    many_make: Any = make
    many_reset: Any = reset
    if jit:
        many_make = eqx.filter_jit(functools.partial(make, sharding=where))
        many_reset = eqx.filter_jit(functools.partial(reset, sharding=where))
        options = {}
    else:
        options = {"sharding": where}
    one, one_delta = make(net(), key)
    many, delta = many_make(net(), key, **options)
    oracle.assert_same((one, one_delta), (many, delta))
    if not jit:
        check_layout(many, delta, where)
    for x in arrays(delta):
        shapes = {shard.data.shape for shard in x.addressable_shards}
        assert shapes == {(lanes_per_device(where), *x.shape[1:])}
    mask, to = jnp.arange(LANES) % 3 == 0, jnp.arange(float(LANES))
    one, one_delta = reset(one, one_delta, key, mask, to)
    many, delta = many_reset(many, delta, key, mask, to, **options)
    oracle.assert_same((one, one_delta), (many, delta))
    for x in arrays(delta):
        shapes = {shard.data.shape for shard in x.addressable_shards}
        assert shapes == {(lanes_per_device(where), *x.shape[1:])}


OPTIONS: dict[str, Any] = {
    "in chunks": {"chunk_size": 1},
    "in chunks that are too big": {"chunk_size": 5},
    "an argument for all": {"args": 2.0},
    "an argument a lane": {"args": jnp.arange(float(LANES)), "args_in_axes": 0},
    "by keyword": {"kwargs": {"scale": jnp.ones((1, LANES))}, "kwargs_in_axes": 1},
    "an excluded constant": {"state_to_exclude": lambda path, x: path[-1] == "n"},
    "a tag": {"state_tag": "state"},
}


@pytest.mark.parametrize(
    ("name", "jit"),
    quick(
        itertools.product(OPTIONS, (False, True)),
        [(name, "argument" in name) for name in OPTIONS if "keyword" not in name],
    ),
)
def test_options(name, jit, key):
    def run(net, key, **where):
        return vmap_call_all_fns(
            net, "init_state", axis_size=LANES, key=key, **OPTIONS[name], **where
        )

    many = eqx.filter_jit(run) if jit else run
    target = net()
    if "keyword" in name:
        target = jtu.tree_map(lambda x: x[:1] if eqx.is_array(x) else x, target)
    oracle.assert_same(run(target, key), many(target, key, sharding=sharding()))


@pytest.mark.parametrize(
    "kind", quick(["many", "legacy", "many legacy", "numpy"], ["many"])
)
def test_keys(kind, key, legacy_lane_key):
    keys: dict[str, Any] = {
        "many": jax.random.split(key, LANES),
        "legacy": legacy_lane_key,
        "many legacy": jax.random.split(legacy_lane_key, LANES),
        "numpy": np.asarray(legacy_lane_key),
    }
    given = keys[kind]
    run: Any = lambda **options: vmap_call_all_fns(  # noqa: E731
        net(), "init_state", axis_size=LANES, key=given, **options
    )
    oracle.assert_same(run(), run(sharding=sharding()))


@TYPES
def test_what_reads_nothing(types):
    class Zero(eqx.Module):
        x: Any = None

        def step(self):
            return replace(self, x=jnp.zeros(2))

    where = sharding(types=types)
    many, delta = vmap_call_all_fns([Zero()], "step", axis_size=8, sharding=where)
    oracle.assert_same(many, vmap_call_all_fns([Zero()], "step", axis_size=8)[0])
    assert {x.data.shape[0] for x in many[0].x.addressable_shards} == {1}


@JITS
def test_what_methods_return_besides(jit, key):
    def run(net, key, **options):
        return vmap_call_all_fns(
            net, "tell", axis_size=LANES, key=key, has_aux=True, **options
        )

    many = eqx.filter_jit(run) if jit else run
    found = many(net(), key, sharding=sharding())
    oracle.assert_same(run(net(), key), found)
    for x in arrays(found[2]):
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}


def test_lanes_that_meet(key):
    def run(**options):
        return vmap_call_all_fns(
            net(), "meet", axis_size=LANES, key=key, axis_name="lane", **options
        )

    many, delta = run(sharding=sharding())
    oracle.assert_same(run(), (many, delta), exact=False)
    check_layout(many, delta, sharding())
    with pytest.raises(ValueError, match="explicit axes does not go together"):
        run(sharding=sharding(types=AxisType.Explicit))


@pytest.mark.slow
def test_a_method_that_lays_out_along_another_axis(key):
    where = sharding((4, 2), ("lanes", "model"))

    class Wide(eqx.Module):
        x: Any = None

        def step(self, *, key):
            x = jax.random.normal(key, (6,))
            layout = NamedSharding(where.mesh, P("model"))
            return replace(self, x=jax.lax.with_sharding_constraint(x, layout))

    one, _ = vmap_call_all_fns(Wide(), "step", axis_size=LANES, key=key)
    many, _ = vmap_call_all_fns(
        Wide(),
        "step",
        axis_size=LANES,
        key=key,
        sharding=where,
        spmd_axis_name="lanes",
    )
    oracle.assert_same(one, many)
    assert {x.data.shape[0] for x in many.x.addressable_shards} == {LANES // 4}


# A third of the examples: each is compiled for many devices, and for one.
@settings(max_examples=max(1, settings.default.max_examples // 3))  # pyright: ignore[reportOptionalMemberAccess]
@given(shape=shapes, seed=seeds, jit=jits)
def test_law_spread_lanes_are_the_same(shape, seed, jit):
    tree = build(shape, jit)
    keys = keys_of(seed)
    where = NamedSharding(jax.make_mesh((trees.LANES,), ("lanes",)), P("lanes"))
    run = functools.partial(call, sharding=where)
    many, _ = maybe_jit(run, jit)(tree, keys)
    # Programs that are not the same may round sums otherwise.
    oracle.assert_same(call(tree, keys)[0], many, exact=not jit)


# ---------------------------------------------------------------------------
# What is compiled


def programs(where):
    """Creation, reset of some lanes, and a step of training, each with its inputs."""
    key = jax.random.key(0)
    sizes = {"axis_size": LANES * 8, "sharding": where}
    model = eqx.nn.MLP(8, 4, 32, 1, key=key)

    def create(key):
        return vmap_call_all_fns(model, chorax.reset_parameters, key=key, **sizes)[0]

    members, delta = vmap_call_all_fns(model, chorax.reset_parameters, key=key, **sizes)
    options = {**sizes, "in_axes": delta}
    mask = jax.device_put(jnp.arange(LANES * 8) % 2 == 0, where)

    def reset(members, mask, key):
        return vmap_call_all_fns(
            members, chorax.reset_parameters, key=key, where=mask, **options
        )[0]

    optimiser = optax.adam(1e-3)
    parts = eqx.filter(members, eqx.is_inexact_array)
    state = jax.jit(jax.vmap(optimiser.init))(parts)
    state = lanes.shard(state, 0, where)

    def one(member, state, x, y):
        def loss(member):
            return jnp.mean((jax.vmap(member)(x) - y) ** 2)

        grads = eqx.filter_grad(loss)(member)
        updates, state = optimiser.update(grads, state)
        return eqx.apply_updates(member, updates), state

    def train(members, state, x, y):
        axes = (delta.in_axes, 0, None, None)
        return eqx.filter_vmap(one, in_axes=axes, out_axes=(delta.in_axes, 0))(
            members, state, x, y
        )

    everywhere = NamedSharding(where.mesh, P())
    x, y = jax.device_put((jnp.ones((16, 8)), jnp.ones((16, 4))), everywhere)
    return {
        "creation": (create, key),
        "reset": (reset, members, mask, key),
        "training": (train, members, state, x, y),
    }


@pytest.mark.slow
def test_a_device_does_an_eighth_and_waits_for_none():
    one = NamedSharding(jax.make_mesh((1,), ("lanes",)), P("lanes"))
    with jax.numpy_dtype_promotion("standard"):
        whole, part = (
            {name: compiled(*each) for name, each in programs(where).items()}
            for where in (one, sharding())
        )
    for name, program in part.items():
        assert re.findall(COLLECTIVES, program.as_text()) == [], name
        # The key, the batch of data and what a program needs of itself are on each.
        assert peak(program) < peak(whole[name]) / 8 + 4096, name


def test_lanes_of_other_lengths_do_not_wait_for_each_other(key):
    """A loop over all lanes asks in every step whether one of them goes on; over the
    lanes of a device it asks no other device."""

    def run(key, where):
        return vmap_call_all_fns(
            net(), "until", axis_size=LANES, key=key, sharding=where
        )[0]

    program = compiled(lambda key: run(key, sharding()), key)
    assert re.findall(COLLECTIVES, program.as_text()) == []
    oracle.assert_same(run(key, None), run(key, sharding()))


def test_methods_run_once_and_programs_are_compiled_once(key):
    runs = []

    class Counted(eqx.Module):
        x: Any = None

        def step(self, *, key):
            runs.append(1)
            return replace(self, x=jax.random.normal(key, (3,)))

    target = [Counted() for _ in range(20)]
    options: dict[str, Any] = {"key": key, "sharding": sharding()}
    for count in (1, 0, 0):
        runs.clear()
        with counts.compiled() as programs:
            vmap_call_all_fns(target, "step", axis_size=LANES, **options)
        assert len(runs) == count
        assert bool(programs) == bool(count)


class Wide(eqx.Module):
    """Keeps little of what it computes on the way."""

    h: Any = None

    def init_state(self, *, key):
        x = jax.random.normal(key, (500,))
        return replace(self, h=(jnp.outer(x, x) @ x)[:4])


@pytest.mark.slow
@pytest.mark.parametrize("spread", [False, True])
def test_chunks_bound_what_a_device_holds(spread, key):
    def between(**options):
        def run(key):
            return chorax.vmap_init_all_states(
                Wide(), axis_size=64, key=key, **options
            )[0]

        return compiled(run, key).memory_analysis().temp_size_in_bytes

    options: dict[str, Any] = {"sharding": sharding()} if spread else {}
    own = 8 if spread else 64
    whole = between(**options)
    assert whole > own * 500 * 500 * 4
    for chunk_size in (4, 2, 1):
        held = between(**options, chunk_size=chunk_size)
        assert held < 1.1 * whole * chunk_size / own


@pytest.mark.slow
def test_a_million_lanes_in_chunks_and_shards():
    count = 1_000_000
    # Bit for bit: XLA may round what it fuses with the fixture's cheap draws otherwise.
    key = jax.random.key(0, impl="threefry2x32")
    model = eqx.nn.MLP(2, 1, 8, 1, key=key)
    many, delta = vmap_call_all_fns(
        model,
        chorax.reset_parameters,
        axis_size=count,
        key=key,
        chunk_size=10_000,
        sharding=sharding(),
    )
    for x in arrays(delta):
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {count // 8}
    keys = jax.random.split(key, count)
    for index in (0, 124_999, 125_000, 777_777, count - 1):
        alone, _ = chorax.call_all_fns(model, chorax.reset_parameters, key=keys[index])
        oracle.assert_same(lanes.take(many, delta, index), alone)


# ---------------------------------------------------------------------------
# What is there already, and what is around


def test_what_lies_right_stays_the_same_object(key):
    where = sharding()
    many, delta = vmap_call_all_fns(
        net(), "init_state", axis_size=LANES, key=key, sharding=where
    )
    again, _ = vmap_call_all_fns(
        many,
        "reset_state",
        (jnp.zeros(()),),
        axis_size=LANES,
        key=key,
        in_axes=delta,
        sharding=where,
    )
    for old, new in zip(many["cells"], again["cells"], strict=True):
        assert new.w is old.w
        assert new.b is old.b
        assert new.h is not old.h
    laid = lanes.shard(many, delta, where)
    pairs = zip(arrays(laid), arrays(many), strict=True)
    assert all(new is old for new, old in pairs)


@TYPES
def test_what_is_spread_along_another_axis_stays_so(types, key):
    where = sharding((4, 2), ("lanes", "model"), types=types)
    split = NamedSharding(where.mesh, P("model"))
    target = replace(net()["cells"][0], b=jax.device_put(jnp.arange(4.0), split))
    many, _ = vmap_call_all_fns(
        target, "init_state", axis_size=LANES, key=key, sharding=where
    )
    assert many.b is target.b
    assert {x.data.shape for x in many.w.addressable_shards} == {(3,)}


@pytest.mark.slow
def test_a_target_on_one_device_is_taken_along(key):
    target = jax.device_put(eqx.nn.Linear(2, 3, key=key), jax.devices()[3])
    many, delta = vmap_call_all_fns(
        target, chorax.reset_parameters, axis_size=8, key=key, sharding=sharding()
    )
    one, _ = vmap_call_all_fns(target, chorax.reset_parameters, axis_size=8, key=key)
    oracle.assert_same(one, many)
    key = jax.device_put(key, jax.devices()[5])
    again, _ = vmap_call_all_fns(
        many,
        chorax.reset_parameters,
        axis_size=8,
        key=key,
        in_axes=delta,
        sharding=sharding(),
    )
    oracle.assert_same(one, again)


@TYPES
def test_inside_a_jit_with_shardings(types, key):
    before = key
    where = sharding(types=types)
    everywhere = NamedSharding(where.mesh, P())

    def run(w, h, key):
        target = Cell(w, jnp.ones(2), h)
        out, _ = vmap_call_all_fns(
            target,
            "reset_state",
            0.5,
            axis_size=LANES,
            key=key,
            in_axes=Cell(None, None, 0, None),  # pyright: ignore[reportArgumentType]
            sharding=where,
        )
        return out.h

    w, h = jnp.arange(3.0), jnp.ones((LANES, 3))
    call = jax.jit(
        run, in_shardings=(everywhere, where, everywhere), out_shardings=where
    )
    if types == AxisType.Explicit:
        w, h, key = (
            jax.device_put(x, s)
            for x, s in ((w, everywhere), (h, where), (key, everywhere))
        )
    found = call(w, h, key)
    assert {x.data.shape for x in found.addressable_shards} == {(2, 3)}
    plain = Cell(jnp.arange(3.0), jnp.ones(2), jnp.ones((LANES, 3)))
    expected, _ = vmap_call_all_fns(
        plain,
        "reset_state",
        0.5,
        axis_size=LANES,
        key=before,
        in_axes=Cell(None, None, 0, None),  # pyright: ignore[reportArgumentType]
    )
    oracle.assert_same(found, expected.h)


@pytest.mark.slow
def test_inside_grad_vmap_scan_and_shapes(key):
    where = sharding()

    def total(w, key, **options):
        out, _ = vmap_call_all_fns(
            Cell(w, jnp.ones(2), jnp.ones((LANES, 3))),
            "reset_state",
            0.5,
            axis_size=LANES,
            key=key,
            in_axes=Cell(None, None, 0, None),  # pyright: ignore[reportArgumentType]
            **options,
        )
        return jnp.sum(out.h**2)

    w = jnp.arange(3.0)
    for run in (jax.grad(total), eqx.filter_jit(jax.grad(total))):
        found = run(w, key, sharding=where)
        np.testing.assert_allclose(found, jax.grad(total)(w, key), rtol=1e-5)
    ws = jnp.arange(6.0).reshape(2, 3)
    found = jax.vmap(lambda w: total(w, key, sharding=where))(ws)
    expected = jax.vmap(lambda w: total(w, key))(ws)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    shape = jax.eval_shape(lambda w: total(w, key, sharding=where), w)
    assert shape.shape == ()

    def episode(h, key, **options):
        out, _ = vmap_call_all_fns(
            Cell(w, jnp.ones(2), h),
            "reset_state",
            0.5,
            axis_size=LANES,
            key=key,
            in_axes=Cell(None, None, 0, None),  # pyright: ignore[reportArgumentType]
            where=jnp.arange(LANES) % 2 == 0,
            **options,
        )
        return out.h, None

    keys = jax.random.split(key, 5)
    start = jnp.ones((LANES, 3))
    many, _ = jax.lax.scan(lambda h, key: episode(h, key, sharding=where), start, keys)
    one, _ = jax.lax.scan(episode, start, keys)
    np.testing.assert_allclose(many, one, rtol=1e-5)


@TYPES
@JITS
def test_where_a_mesh_is_set(types, jit, key):
    """Nothing of it is seen by what every device does on its own."""
    where = sharding(types=types)

    def run(net, **options):
        return vmap_call_all_fns(
            net, lambda cell: replace(cell, h=cell.w * 2.0), axis_size=16, **options
        )

    one = run(net())
    # The oldest versions call it so.
    enter: Any = vars(jax.sharding).get("use_mesh") or jax.set_mesh
    with enter(where.mesh):
        many = functools.partial(run, sharding=where)
        found = (eqx.filter_jit(many) if jit else many)(net())
        told = chorax.explain(
            net(), "init_state", axis_size=16, key=key, sharding=where
        )
    oracle.assert_same(one, found)
    assert told.devices == 8


def test_a_method_that_holds_an_array_of_the_mesh(key):
    where = sharding()
    held = jax.device_put(jnp.arange(3.0), NamedSharding(where.mesh, P()))

    def add(cell, key):
        return replace(cell, h=held * cell.w + jax.random.uniform(key, (3,)))

    for jit in (False, True):
        run = functools.partial(
            vmap_call_all_fns, net(), add, axis_size=16, sharding=where
        )
        many, delta = (eqx.filter_jit(run) if jit else run)(key=key)
        one, _ = vmap_call_all_fns(net(), add, axis_size=16, key=key)
        oracle.assert_same(one, many)
        for x in arrays(delta):
            assert {shard.data.shape[0] for shard in x.addressable_shards} == {2}


def test_layouts_along_other_axes_stay(key):
    where = sharding((4, 2), ("lanes", "model"))

    def lay(x, *spec):
        return jax.device_put(x, NamedSharding(where.mesh, P(*spec)))

    tree = {
        "mapped": lay(jnp.ones((16, 4)), None, "model"),
        "shared": lay(jnp.ones((8, 4)), "lanes", "model"),
        "text": np.array(["x", "y"]),
        "host": np.ones(3),
    }
    axes = {"mapped": 0, "shared": None, "text": None, "host": None}
    found = lanes.shard(tree, axes, where)
    assert found["mapped"].sharding.spec == P("lanes", "model")
    assert found["shared"].sharding.spec == P(None, "model")
    assert found["text"] is tree["text"]
    assert found["host"] is tree["host"]


def test_without_jit_results_are_laid_out_too(key):
    with jax.disable_jit():
        many, delta = vmap_call_all_fns(
            net(), "init_state", axis_size=8, key=key, sharding=sharding()
        )
        *_, aux = vmap_call_all_fns(
            net(), "tell", axis_size=8, key=key, has_aux=True, sharding=sharding()
        )
    assert aux["cells.1"]["name"] == "cell"
    assert len(aux["cells.1"]["norm"].sharding.device_set) == 8
    one, _ = vmap_call_all_fns(net(), "init_state", axis_size=8, key=key)
    oracle.assert_same(one, many)
    for x in arrays(delta):
        assert {shard.data.shape[0] for shard in x.addressable_shards} == {1}


@pytest.mark.parametrize(
    ("types", "jit"),
    quick(
        itertools.product((AxisType.Auto, AxisType.Explicit), (False, True)),
        [(AxisType.Explicit, True)],
    ),
)
def test_lanes_are_taken_from_where_they_live(types, jit, key):
    where = sharding(types=types)
    one, delta = vmap_call_all_fns(net(), "init_state", axis_size=LANES, key=key)
    many = lanes.shard(one, delta, where)
    indices: list[Any] = [3, -1, slice(2, 12, 3), [5, 0, 5], np.arange(LANES) % 4 == 1]
    for index in indices:

        def take(model, index=index):
            return lanes.take(model, delta, index)

        found = (eqx.filter_jit(take) if jit else take)(many)
        oracle.assert_same(found, take(one))
    for model, expected in zip(
        lanes.unstack(many, delta), lanes.unstack(one, delta), strict=True
    ):
        oracle.assert_same(model, expected)
    mask = jnp.arange(LANES) < 3
    oracle.assert_same(lanes.where(mask, many, many, delta), one)
    twice = lanes.concatenate([many, many], delta)
    oracle.assert_same(twice, lanes.concatenate([one, one], delta))


@pytest.mark.slow
def test_an_ensemble_on_many_devices(key):
    made = vmap_call_all_fns(
        eqx.nn.MLP(2, 3, 8, 1, key=key),
        chorax.reset_parameters,
        axis_size=LANES,
        key=key,
        sharding=sharding(),
    )
    members = lanes.Ensemble(*made)
    out = members(jnp.ones(2))
    assert {x.data.shape for x in out.addressable_shards} == {(2, 3)}
    np.testing.assert_allclose(out[5], members[5](jnp.ones(2)), rtol=1e-5)


# ---------------------------------------------------------------------------
# Bad use


MISUSES: dict[str, Any] = {
    "lanes that do not divide": (
        lambda: {"axis_size": 12, "sharding": sharding()},
        ValueError,
        "12 lanes do not divide evenly among the 8 devices along 'lanes' of the mesh. "
        "Use a multiple of 8 lanes.",
    ),
    "lanes that do not divide among two axes": (
        lambda: {
            "axis_size": 12,
            "sharding": sharding((4, 2), ("a", "b"), ("a", "b")),
        },
        ValueError,
        "12 lanes do not divide evenly among the 8 devices along ('a', 'b') of the "
        "mesh. Use a multiple of 8 lanes.",
    ),
    "no sharding": (
        lambda: {"axis_size": 8, "sharding": "lanes"},
        TypeError,
        "`sharding` must be a `jax.sharding.NamedSharding`, of a mesh and the name of "
        "an axis, but got 'lanes' of type str.",
    ),
    "a device": (
        lambda: {
            "axis_size": 8,
            "sharding": jax.sharding.SingleDeviceSharding(jax.devices()[0]),
        },
        TypeError,
        "`sharding` must be a `jax.sharding.NamedSharding`, of a mesh and the name",
    ),
    "an abstract mesh": (
        lambda: {
            "axis_size": 8,
            "sharding": NamedSharding(
                jax.sharding.AbstractMesh((8,), ("lanes",)), P("lanes")
            ),
        },
        ValueError,
        "`sharding` must be on a mesh of devices, as `jax.make_mesh` makes, but its "
        "mesh is abstract: it names no devices.",
    ),
    "left open": (
        lambda: {
            "axis_size": 8,
            "sharding": NamedSharding(sharding().mesh, P(P.UNCONSTRAINED)),
        },
        ValueError,
        "`sharding` must name the mesh axis of the lanes, but its specification is",
    ),
    "no entry": (
        lambda: {
            "axis_size": 8,
            "sharding": NamedSharding(sharding().mesh, P()),
        },
        ValueError,
        "`sharding` must have a specification of one entry, the mesh axis of the lanes",
    ),
}


@pytest.mark.parametrize("name", MISUSES)
def test_misuse(name, key):
    options, kind, text = MISUSES[name]
    for collective in (vmap_call_all_fns, chorax.explain):
        with pytest.raises(kind, match=re.escape(text)):
            collective(net(), "init_state", key=key, **options())
    with pytest.raises(kind, match=re.escape(text)):
        chorax.vmap_init_all_states(net(), key=key, **options())


def test_explained(key):
    found = chorax.explain(
        net(), "init_state", axis_size=LANES, key=key, sharding=sharding()
    )
    assert repr(found).startswith("`init_state` in 16 lanes on 8 devices: 3 calls")


def test_a_model_with_shared_objects(key):
    layer = eqx.nn.Linear(2, 2, key=key)
    with quiet():
        one = vmap_call_all_fns(
            [layer, layer], chorax.reset_parameters, axis_size=8, key=key
        )
        many = vmap_call_all_fns(
            [layer, layer],
            chorax.reset_parameters,
            axis_size=8,
            key=key,
            sharding=sharding(),
        )
    oracle.assert_same(one, many)


class Scalar(eqx.Module):
    v: jax.Array | None = None

    def init_state(self):
        return replace(self, v=jnp.ones(()))

    def reset_state(self):
        return replace(self, v=jnp.zeros(()))


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("spread_mask", [False, True])
def test_some_lanes_on_explicit_axes(jit, spread_mask):
    # One number per lane: a mask of the same shape is not broadcast.
    place = sharding(types=AxisType.Explicit)
    enter: Any = vars(jax.sharding).get("use_mesh") or jax.set_mesh
    expected = np.arange(LANES) % 2
    with enter(place.mesh):
        model, delta = chorax.vmap_init_all_states(
            Scalar(), axis_size=LANES, sharding=place
        )
        done = jnp.arange(LANES) % 2 == 0
        if spread_mask:
            done = jax.device_put(done, place)

        def reset(model, done):
            new, _ = chorax.vmap_reset_all_states(model, in_axes=delta, where=done)
            return new

        def choose(model, done):
            return lanes.where(done, Scalar(model.v * 0), model, delta)

        for act in (reset, choose):
            new = maybe_jit(act, jit)(model, done)
            assert new.v.sharding.spec == P("lanes")
            np.testing.assert_array_equal(new.v, expected)
