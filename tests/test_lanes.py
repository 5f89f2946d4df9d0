"""`chorax.lanes`: taking batched models apart and putting them together."""

import copy
import functools
import os
import re
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import chorax
import oracle
from chorax import lanes


class Cell(eqx.Module):
    w: Any
    v: Any
    key: Any = None
    name: str = eqx.field(static=True, default="cell")
    gain: float = 1.0

    def __call__(self, x):
        return self.gain * (self.w @ x) + self.v


def cell(seed, **fields):
    key = jax.random.key(seed)
    w = jax.random.normal(key, (2, 3))
    return Cell(w, jnp.full(2, float(seed)), **{"key": key, **fields})


def net(seed):
    return {"a": cell(seed), "b": [cell(seed + 10), jnp.arange(3) + seed]}


def shared_net():
    """Four lanes over shared weights, with its delta and its members."""
    model = {"a": cell(0), "b": cell(1)}

    def state(node, key):
        return chorax.replace(node, v=jax.random.normal(key, (2,)))

    batched, delta = chorax.vmap_call_all_fns(
        model, state, axis_size=4, key=jax.random.key(5)
    )
    return model, batched, delta


def test_stack_is_what_filter_vmap_makes():
    batched, axes = lanes.stack([net(i) for i in range(3)])
    by_hand = jtu.tree_map(
        lambda *xs: jnp.stack(xs) if eqx.is_array(xs[0]) else xs[0],
        *[net(i) for i in range(3)],
    )
    oracle.assert_same(batched, by_hand)
    assert axes["a"].w == 0
    assert axes["a"].gain is None
    out = eqx.filter_vmap(lambda m, x: m["a"](x), in_axes=(axes, None))(
        batched, jnp.ones(3)
    )
    np.testing.assert_allclose(
        out, jnp.stack([net(i)["a"](jnp.ones(3)) for i in range(3)]), rtol=1e-6
    )


def test_unstack_gives_back_what_was_stacked():
    models = [net(i) for i in range(3)]
    for back, model in zip(lanes.unstack(*lanes.stack(models)), models, strict=True):
        oracle.assert_same(back, model)


def test_stack_shares_what_it_is_told_to():
    w = jnp.ones((2, 3))
    models = [chorax.replace(cell(i), w=w) for i in range(3)]
    batched, axes = lanes.stack(models, share=lambda path, x: path == ("w",))
    assert batched.w is w
    assert axes.w is None
    assert batched.v.shape == (3, 2)
    for model in lanes.unstack(batched, axes):
        assert model.w is w


def test_unstack_shares_shared_leaves():
    model, batched, delta = shared_net()
    members = lanes.unstack(batched, delta)
    assert len(members) == 4
    for index, member in enumerate(members):
        assert member["a"].w is model["a"].w
        oracle.assert_same(member["a"].v, batched["a"].v[index])


def test_the_lane_law(lane_key):
    def draw(node, key):
        return chorax.replace(node, v=jax.random.normal(key, (2,)))

    keys = jax.random.split(lane_key, 4)
    model = {"a": cell(0), "b": cell(1)}
    batched = chorax.vmap_call_all_fns(model, draw, axis_size=4, key=keys)
    for key, member in zip(keys, lanes.unstack(*batched), strict=True):
        alone, _ = chorax.call_all_fns(model, draw, key=key)
        oracle.assert_same(member, alone)


@pytest.mark.parametrize("axes", ["delta", "tree", "prefix"])
def test_every_form_of_axes(axes):
    _, batched, delta = shared_net()
    prefix = {
        "a": Cell(None, 0, None, gain=None),  # pyright: ignore[reportArgumentType]
        "b": delta.in_axes["b"],
    }
    form = {"delta": delta, "tree": delta.in_axes, "prefix": prefix}[axes]
    assert lanes.take(batched, form, 2)["a"].v.shape == (2,)
    assert len(lanes.unstack(batched, form)) == 4
    assert lanes.concatenate([batched, batched], form)["b"].v.shape == (8, 2)


INDICES = {
    "first": 0,
    "last": -1,
    "numpy": np.int64(2),
    "array": jnp.array(1),
    "slice": slice(1, 3),
    "step": slice(None, None, -2),
    "empty": slice(0, 0),
    "indices": jnp.array([3, 0, 3]),
    "negative": jnp.array([-1, -4]),
    "list": [1, 2],
    "nothing": [],
    "mask": jnp.array([True, False, False, True]),
    "numpy mask": np.array([False, True, False, False]),
    "list mask": [True, True, False, False],
}


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_take(index):
    model, batched, delta = shared_net()
    taken = lanes.take(batched, delta, index)
    plain = np.asarray(index) if isinstance(index, list) and index else index
    plain = slice(0, 0) if isinstance(index, list) and not index else plain
    assert taken["a"].w is model["a"].w
    oracle.assert_same(taken["a"].v, batched["a"].v[plain])
    oracle.assert_same(taken["b"].v, batched["b"].v[plain])


def test_take_keeps_axes_where_they_are():
    batched = {"v": jnp.arange(24.0).reshape(2, 3, 4), "n": np.arange(3)}
    axes = {"v": -2, "n": 0}
    taken = lanes.take(batched, axes, jnp.array([2, 0]))
    oracle.assert_same(taken["v"], batched["v"][:, jnp.array([2, 0])])
    assert taken["n"].tolist() == [2, 0]
    assert lanes.take(batched, axes, 1)["v"].shape == (2, 4)
    joined = lanes.concatenate([batched, taken], axes)
    assert joined["v"].shape == (2, 5, 4)
    new = jtu.tree_map(lambda x: x + 100, batched)
    mixed = lanes.where([False, True, False], new, batched, axes)
    oracle.assert_same(mixed["v"][:, 1], new["v"][:, 1])
    oracle.assert_same(mixed["v"][:, 0], batched["v"][:, 0])
    assert mixed["n"].tolist() == [0, 101, 2]


def test_concatenate_is_the_inverse_of_slices():
    _, batched, delta = shared_net()
    parts = [lanes.take(batched, delta, slice(a, b)) for a, b in [(0, 1), (1, 4)]]
    oracle.assert_same(lanes.concatenate(parts, delta), batched)


def test_where_chooses_by_lanes():
    model, old, delta = shared_net()
    new = jtu.tree_map(lambda x: x, old)
    new["a"] = chorax.replace(old["a"], v=old["a"].v + 1)
    mask = jnp.array([True, False, True, False])
    out = lanes.where(mask, new, old, delta)
    oracle.assert_same(out["a"].v, jnp.where(mask[:, None], new["a"].v, old["a"].v))
    assert out["a"].w is model["a"].w


def test_where_takes_shared_leaves_from_old():
    _, old, delta = shared_net()
    trained = {**old, "a": chorax.replace(old["a"], w=old["a"].w * 2)}
    out = lanes.where([True] * 4, old, trained, delta)
    assert out["a"].w is trained["a"].w


def test_where_works_on_keys():
    keys = jax.random.split(jax.random.key(0), 3)
    other = jax.random.split(jax.random.key(1), 3)
    out = lanes.where([True, False, True], {"k": keys}, {"k": other}, 0)["k"]
    found = jax.random.key_data(out)
    oracle.assert_same(found[1], jax.random.key_data(other)[1])
    oracle.assert_same(found[0], jax.random.key_data(keys)[0])


def test_broadcast():
    model = {"a": cell(0), "n": 3}
    batched, axes = lanes.broadcast(model, 4)
    assert batched["a"].w.shape == (4, 2, 3)
    assert batched["n"] == 3
    assert axes["n"] is None
    for member in lanes.unstack(batched, axes):
        oracle.assert_same(member, model)


def test_broadcast_some():
    model = {"a": cell(0), "b": cell(1)}
    batched, axes = lanes.broadcast(
        model, np.int32(4), chorax.filters.PathContains("v")
    )
    assert batched["a"].w is model["a"].w
    assert batched["b"].v.shape == (4, 2)
    assert axes["a"].w is None


def test_inside_jit_with_traced_indices_and_masks():
    _, batched, delta = shared_net()
    arrays, static = eqx.partition(batched, eqx.is_array)

    @jax.jit
    def call(arrays, index, mask):
        model = eqx.combine(arrays, static)
        one = lanes.take(model, delta, index)
        some = lanes.take(model, delta, jnp.stack([index, index - 1]))
        fresh = jtu.tree_map(lambda x: x - x if eqx.is_inexact_array(x) else x, model)
        chosen = lanes.where(mask, fresh, model, delta)
        stacked, axes = lanes.stack([one, one])
        del axes
        return [m["a"].v for m in (one, some, chosen, stacked)]

    mask = jnp.array([True, False, False, True])
    one, some, chosen, stacked = call(arrays, jnp.array(2), mask)
    v = batched["a"].v
    oracle.assert_same(one, v[2])
    oracle.assert_same(some, v[jnp.array([2, 1])])
    oracle.assert_same(chosen, jnp.where(mask[:, None], 0.0, v))
    oracle.assert_same(stacked, jnp.stack([v[2], v[2]]))


# What is NumPy's is left to NumPy.


def hosted():
    """Leaves that JAX would change, the lanes of one of them behind."""
    batched = {
        "id": np.array([[3_000_000_000, 1], [2, 2**60], [5, 6], [7, 8]]),
        "x": np.array([1e300, -1e-300, 0.0, 1.0]),
        "flag": np.array([True, False, True, True]),
        "behind": np.arange(8, dtype=np.uint64).reshape(2, 4),
        "j": jnp.arange(4),
    }
    return batched, {"id": 0, "x": 0, "flag": 0, "behind": 1, "j": 0}


def assert_hosted(found, expected):
    for name, x in found.items():
        assert isinstance(x, jax.Array) == (name == "j"), name
        assert x.dtype == expected[name].dtype, name
        np.testing.assert_array_equal(x, expected[name], strict=True)


@pytest.mark.parametrize("index", INDICES.values(), ids=INDICES)
def test_numpy_leaves_are_taken_by_numpy(index):
    batched, axes = hosted()
    is_array = isinstance(index, jax.Array | list)
    plain = np.asarray(index, int if index is INDICES["nothing"] else None)
    plain = plain if is_array else index
    expected = {
        name: x[:, plain] if axes[name] else x[plain] for name, x in batched.items()
    }
    assert_hosted(lanes.take(batched, axes, index), expected)
    member: Any = lanes.Ensemble(batched, axes)[index]
    member = member.model if isinstance(member, lanes.Ensemble) else member
    assert_hosted(member, expected)


def test_numpy_leaves_stay_what_they_are():
    batched, axes = hosted()
    for found in (lanes.unstack(batched, axes), list(lanes.Ensemble(batched, axes))):
        for index, member in enumerate(found):
            assert_hosted(member, lanes.take(batched, axes, index))
    in_front = batched | {"behind": batched["behind"].T}
    back, front = lanes.stack(lanes.unstack(batched, axes))
    assert front == dict.fromkeys(axes, 0)
    assert_hosted(back, in_front)
    halves = [lanes.take(batched, axes, x) for x in (slice(3), [3])]
    assert_hosted(lanes.concatenate(halves, axes), batched)
    again, _ = lanes.broadcast(lanes.take(batched, axes, 0), 2)
    assert_hosted(lanes.take(again, front, 1), lanes.take(batched, axes, 0))
    assert again["x"].flags.writeable
    turned = lanes.take(batched, axes, [3, 1, 2, 0])
    for mask in ([True, False, True, True], jnp.array([True, False, True, True])):
        assert_hosted(lanes.where(mask, turned, batched, axes), turned)


def test_numpy_leaves_where_something_is_traced():
    batched, axes = {"x": np.arange(3.0)}, {"x": 0}

    @jax.jit
    def call(index, mask):
        known = lanes.where([True, False, False], {"x": np.ones(3)}, batched, axes)
        assert isinstance(known["x"], np.ndarray)
        assert isinstance(lanes.take(known, axes, [0, 1])["x"], np.ndarray)
        taken = lanes.take(known, axes, index), lanes.take(known, axes, index[None])
        return taken, lanes.where(mask, known, batched, axes)

    (one, some), chosen = call(jnp.array(2), jnp.array([True, False, True]))
    assert (one["x"], some["x"].tolist()) == (2.0, [2.0])
    assert chosen["x"].tolist() == [1.0, 1.0, 2.0]


def test_other_leaves_of_a_column_are_those_of_jax():
    one, two = {"x": np.zeros(2, np.float32)}, {"x": jnp.ones(2, jnp.float32)}
    found = [
        lanes.stack([one, two])[0],
        lanes.concatenate([one, two], 0),
        lanes.where([True, False], two, one, 0),
    ]
    assert all(isinstance(made["x"], jax.Array) for made in found)
    assert found[2]["x"].tolist() == [1.0, 0.0]
    wide = {"x": np.zeros(2, np.float64)}
    with pytest.raises(ValueError, match=r"differ: float32\[2\] against float64\[2\]"):
        lanes.stack([one, wide])


FOREIGN = {
    "strings": np.array(["a", "b"]),
    "objects": np.array([None, {}]),
    "dates": np.array(["2020-01-01", "2021-01-01"], "datetime64[D]"),
    "times": np.array([1, 2], "timedelta64[s]"),
    "records": np.array([(1,), (2,)], [("a", int)]),
}


def foreign(name):
    return {"name": copy.deepcopy(FOREIGN[name]), "x": jnp.ones(2)}


WITH_LANES: dict[str, Any] = {
    "unstack": lambda model: lanes.unstack(model, 0),
    "take": lambda model: lanes.take(model, 0, 0),
    "where": lambda model: lanes.where([True, False], model, model, 0),
    "concatenate": lambda model: lanes.concatenate([model, model], 0),
    "Ensemble": lambda model: lanes.Ensemble(model, 0),
    "vmap": lambda model: lanes.Ensemble(jnp.ones(2), 0).vmap(len, in_axes=0)(model),
    "in_axes": lambda model: chorax.vmap_call_all_fns(
        [cell(0), model], "go", axis_size=2, in_axes=[None, 0]
    ),
    "args_in_axes": lambda model: chorax.vmap_call_all_fns(
        cell(0), "go", model, axis_size=2, args_in_axes=0
    ),
}


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("use", WITH_LANES)
def test_what_jax_does_not_take_is_not_mapped(name, use):
    text = (
        f"name` along axis 0, but JAX does not take its dtype, {FOREIGN[name].dtype}. "
        "Use `None` there to share it."
    )
    with pytest.raises(ValueError, match=re.escape(text)):
        WITH_LANES[use](foreign(name))


@pytest.mark.parametrize("name", FOREIGN)
def test_what_jax_does_not_take_is_shared(name):
    model, other = foreign(name), foreign(name)
    text = (
        "`name` can't have a lane axis: JAX does not take its dtype, "
        f"{FOREIGN[name].dtype}. Share it, with "
    )
    with pytest.raises(ValueError, match=re.escape(f"{text}`share=`.")):
        lanes.stack([model, other])
    with pytest.raises(ValueError, match=re.escape(f"{text}`filter=`.")):
        lanes.broadcast(model, 3)
    names = chorax.filters.PathContains("name")
    batched, axes = lanes.stack([model, other], share=names)
    for found in (
        batched,
        lanes.unstack(batched, axes)[1],
        lanes.where([True, False], batched | {"name": other["name"]}, batched, axes),
        lanes.concatenate([batched, lanes.stack([other], share=names)[0]], axes),
        lanes.broadcast(model, 2, ~names)[0],
    ):
        assert found["name"] is model["name"]
    other["name"] = model["name"][::-1]
    with pytest.raises(ValueError, match=r"`name` .* have different values, but no"):
        lanes.stack([model, other], share=names)


class Table(eqx.Module):
    w: Any
    rows: Any = eqx.field(static=True)


def table(last=3.0, dtype: Any = float):
    return {"t": Table(jnp.ones(2), {"a": (np.array([1.0, 2.0, last], dtype), "b")})}


# Equinox has something against them.
@pytest.mark.filterwarnings("ignore:A JAX array is being set as static")
def test_arrays_in_static_fields():
    one, same = table(), table()
    batched, axes = lanes.stack([one, same])
    assert batched["t"].w.shape == (2, 2)
    other_axes = lanes.stack([same])[1]
    assert len(lanes.unstack(batched, other_axes)) == 2
    assert lanes.concatenate([batched, lanes.stack([same])[0]], axes)["t"].w.shape == (
        3,
        2,
    )
    assert lanes.where([True, False], lanes.stack([same] * 2)[0], batched, axes)[
        "t"
    ].rows
    text = r"differ at `t\.rows`: .*: \{'a': \(float64\[3\], 'b'\)\}; .*: another \{'a'"
    for other in (table(4.0), table(float("nan"))):
        uses: list[Any] = [
            lambda other=other: lanes.stack([one, other]),
            lambda other=other: lanes.concatenate([one, other], 0),
            lambda other=other: lanes.where([True, False], other, one, 0),
        ]
        for use in uses:
            with pytest.raises(ValueError, match=text):
                use()
    with pytest.raises(ValueError, match=r"`t\.rows`: .*float64.*: .*float32"):
        lanes.stack([one, table(dtype=np.float32)])


@pytest.mark.slow
def test_inside_grad_vmap_and_scan():
    _, batched, delta = shared_net()
    diff, static = eqx.partition(batched, eqx.is_inexact_array)

    def loss(diff, index):
        model = lanes.take(eqx.combine(diff, static), delta, index)
        return (model["a"].v ** 2).sum() + (model["b"].w ** 2).sum()

    v, w = batched["a"].v, batched["b"].w
    grads = jax.grad(loss)(diff, 1)
    oracle.assert_same(grads["a"].v, jnp.zeros_like(v).at[1].set(2 * v[1]))
    each = jax.vmap(loss, in_axes=(None, 0))(diff, jnp.arange(4))
    np.testing.assert_allclose(each, (v**2).sum(1) + (w**2).sum(), rtol=1e-6)

    def body(total, index):
        return total + loss(diff, index), None

    total, _ = jax.lax.scan(body, 0.0, jnp.arange(4))
    np.testing.assert_allclose(total, each.sum(), rtol=1e-6)


def test_an_index_that_is_traced_is_clamped():
    out = jax.vmap(lambda i: lanes.take({"v": jnp.arange(3)}, 0, i))(jnp.array([7]))
    assert out["v"] == 2


def test_shared_values_that_are_traced_can_not_be_compared():
    def call(w):
        one, other = {"w": w, "v": w}, {"w": w + 1, "v": w}
        return lanes.stack([one, other], share=lambda path, x: path == ("w",))[0]

    assert jax.eval_shape(call, jnp.ones(2))["w"].shape == (2,)


def test_shard_spreads_lanes_and_replicates_the_rest():
    _, batched, delta = shared_net()
    for entry in ("lanes", ("lanes",)):
        out = lanes.shard(batched, delta, sharding(entry))
        oracle.assert_same(out["a"].v, batched["a"].v)
        assert out["a"].v.sharding.spec[0] in (entry, "lanes")
        assert out["a"].w.sharding.spec == PartitionSpec()


def sharding(*entries):
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("lanes",))
    return NamedSharding(mesh, PartitionSpec(*entries))


def test_shard_wants_a_sharding():
    with pytest.raises(TypeError, match="`sharding` of `shard` must be a"):
        lanes.shard(two_lanes(), 0, "lanes")  # pyright: ignore[reportArgumentType]


def floats(*shape):
    return jnp.zeros(shape, jnp.float32)


def two_lanes(**fields):
    return {"a": {"v": floats(2, 3)}, **fields}


def with_closure(value, array):
    def activation(x, *, scale=2.0):
        return value * x + array.sum() * scale

    return {"f": activation, "p": functools.partial(activation, scale=value)}


def test_functions_that_constructors_make_anew():
    batched, _ = lanes.stack([with_closure(1, jnp.ones(2)) for _ in range(3)])
    assert callable(batched["f"])
    for other in (with_closure(2, jnp.ones(2)), with_closure(1, jnp.ones(3))):
        with pytest.raises(ValueError, match="`f` of model 0 and model 1 differ"):
            lanes.stack([with_closure(1, jnp.ones(2)), other])
    with pytest.raises(ValueError, match="`f` of model 0 and model 1 differ"):
        lanes.stack([{"f": lambda x: x + 1}, {"f": lambda x: x + 2}])
    one, other = with_closure(1, jnp.ones(2)), with_closure(1, jnp.ones(2))
    other["p"] = functools.partial(one["f"], scale=7)
    with pytest.raises(ValueError, match="`p` of model 0 and model 1 differ"):
        lanes.stack([one, other])


class Tied(eqx.Module):
    """Its two marks and its functions are made anew by each constructor."""

    layers: eqx.nn.Shared
    mark: Any

    def __init__(self, key, mark=None):
        linears = [eqx.nn.Linear(2, 2, key=k) for k in jax.random.split(key)]
        self.layers = eqx.nn.Shared(
            linears, where=lambda x: x[1].weight, get=lambda x: x[0].weight
        )
        self.mark = Mark() if mark is None else mark

    def __call__(self, x):
        one, two = self.layers()
        return two(one(x))


class Mark:
    __slots__ = ("__weakref__", "size")


class Sized(Mark):
    def __init__(self, size):
        self.size = size


def test_marks_that_constructors_make_anew(lane_key):
    keys = jax.random.split(lane_key, 3)
    models = [Tied(k) for k in keys]
    batched, axes = lanes.stack(models)
    made = lanes.Ensemble(batched, axes)
    assert made.model.mark is models[0].mark
    x = jnp.ones(2)
    np.testing.assert_allclose(made(x), [m(x) for m in models], rtol=1e-5)
    again, _ = lanes.stack([Tied(k) for k in keys[::-1]])
    assert len(lanes.Ensemble(lanes.concatenate([batched, again], axes), axes)) == 6
    mixed = lanes.where([True, False, False], again, batched, axes)
    assert mixed.mark is models[0].mark
    expected = [models[i](x) for i in (2, 1, 2)]
    np.testing.assert_allclose(lanes.Ensemble(mixed, axes)(x), expected, rtol=1e-5)


NO_MARKS = {
    "of another class": (Mark(), Sized(1)),
    "with a value": (Sized(1), Sized(1)),
    "jitted": (jnp.sin, jnp.cos),
    "of NumPy": (np.sin, np.cos),
    "built in": (len, print),
    "signs": (0.0, -0.0),
    "types": (1, True),
}


@pytest.mark.parametrize("marks", NO_MARKS.values(), ids=NO_MARKS)
def test_what_holds_something_is_no_mark(marks, lane_key):
    with pytest.raises(ValueError, match="`mark` of model 0 and model 1 differ"):
        lanes.stack([Tied(lane_key, mark) for mark in marks])


@pytest.mark.slow
def test_many_devices():
    program = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from chorax import lanes

mesh = jax.make_mesh((8,), ("lanes",))
sharding = NamedSharding(mesh, PartitionSpec("lanes"))
batched = {"v": jnp.arange(48.0).reshape(3, 16), "w": jnp.ones(2)}
out = lanes.shard(batched, {"v": 1, "w": None}, sharding)
assert [s.data.shape for s in out["v"].addressable_shards] == [(3, 2)] * 8
assert len(out["w"].sharding.device_set) == 8 and (out["v"] == batched["v"]).all()
jitted = jax.jit(lambda m: lanes.shard(m, {"v": 1, "w": None}, sharding))(batched)
assert jitted["v"].sharding.is_equivalent_to(out["v"].sharding, 2)
try:
    lanes.shard({"v": jnp.ones(12)}, 0, sharding)
except ValueError as error:
    assert "12 lanes do not divide evenly among the 8 devices" in str(error)
else:
    raise AssertionError
"""
    flags = "--xla_force_host_platform_device_count=8"
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", program], check=True, env=environment)


BAD: dict[str, tuple[Any, type[Exception], str]] = {
    "nothing to stack": (
        lambda: lanes.stack([]),
        ValueError,
        "There is nothing to stack: no models were given.",
    ),
    "other structure": (
        lambda: lanes.stack([{"a": 1}, {"a": 1, "b": 2}]),
        ValueError,
        "Lanes are models of one structure, but model 0 and model 1 differ at `b`: "
        "model 0: lacks it; model 1: has it.",
    ),
    "other static field": (
        lambda: lanes.stack([[cell(0)], [cell(1, name="other")]]),
        ValueError,
        "Lanes are models of one structure, but model 0 and model 1 differ at `0.name`: "
        "model 0: 'cell'; model 1: 'other'.",
    ),
    "other shape": (
        lambda: lanes.stack([{"v": floats(2)}, {"v": floats(3)}]),
        ValueError,
        "`v` of model 0 and model 1 differ: float32[2] against float32[3].",
    ),
    "other dtype": (
        lambda: lanes.stack([{"v": floats(2)}, {"v": jnp.zeros(2, jnp.int32)}]),
        ValueError,
        "`v` of model 0 and model 1 differ: float32[2] against int32[2].",
    ),
    "other number": (
        lambda: lanes.stack([cell(0), cell(1, gain=2.0)]),
        ValueError,
        "`gain` of model 0 and model 1 differ: 1.0 against 2.0. A leaf that is not an "
        "array is shared by all lanes; make it an array to have one per lane.",
    ),
    "an array against a number": (
        lambda: lanes.stack([{"v": jnp.zeros(2)}, {"v": 2.0}]),
        ValueError,
        "`v` of model 0 and model 1 differ: one is not an array but a float, 2.0.",
    ),
    "shared but other": (
        lambda: lanes.stack([{"v": jnp.zeros(2)}, {"v": jnp.ones(2)}], share=...),
        ValueError,
        "`v` of model 0 and model 1 have different values, but no lane axis: one of "
        "them would be lost. Give the leaf a lane axis, or make it the same in all.",
    ),
    "no lanes": (
        lambda: lanes.unstack(two_lanes(), None),
        ValueError,
        "No leaf has a lane axis: `axes` is `None` everywhere. Pass the `StateDelta` or "
        "the tree of axes that came with the batched model.",
    ),
    "lanes that disagree": (
        lambda: lanes.unstack(two_lanes(b=jnp.zeros(3)), 0),
        ValueError,
        "`axes` maps `b` along axis 0, which must be 2 long, but it has 3 there: its "
        "shape is (3,). Map it along its lane axis, or use `None` to share it.",
    ),
    "axes of another tree": (
        lambda: lanes.unstack(two_lanes(), {"b": 0}),
        ValueError,
        "`axes` must be a prefix of the tree it describes, but they differ at the root "
        "`()`: a dict of ['b'] against a dict of ['a'].",
    ),
    "out of range": (
        lambda: lanes.take(two_lanes(), 0, 2),
        IndexError,
        "There are 2 lanes, so there is none at index 2.",
    ),
    "out of range below": (
        lambda: lanes.take(two_lanes(), 0, jnp.array([0, -3])),
        IndexError,
        "There are 2 lanes, so there is none at index -3.",
    ),
    "a bool": (
        lambda: lanes.take(two_lanes(), 0, True),
        TypeError,
        "A lane's index must be an integer, but got a `bool`.",
    ),
    "a float": (
        lambda: lanes.take(two_lanes(), 0, 1.0),
        TypeError,
        "`index` must be an integer, a slice, a mask or an array of indices, but got "
        "1.0 of type float.",
    ),
    "floats": (
        lambda: lanes.take(two_lanes(), 0, floats(2)),
        TypeError,
        "`index` must consist of integers, but got float32.",
    ),
    "a matrix of indices": (
        lambda: lanes.take(two_lanes(), 0, jnp.zeros((2, 2), jnp.int32)),
        ValueError,
        "`index` must have at most one axis, but its shape is (2, 2).",
    ),
    "a mask of another length": (
        lambda: lanes.take(two_lanes(), 0, jnp.array([True])),
        ValueError,
        "A mask of lanes must have the shape (2,), but has (1,).",
    ),
    "a traced mask": (
        lambda: jax.eval_shape(
            lambda mask: lanes.take(two_lanes(), 0, mask), jnp.ones(2, bool)
        ),
        ValueError,
        "How many lanes a traced mask keeps is not known while tracing. Choose lane by "
        "lane with `chorax.lanes.where`, or take `jnp.flatnonzero(mask, size=...)`.",
    ),
    "nothing to concatenate": (
        lambda: lanes.concatenate([], 0),
        ValueError,
        "There is nothing to concatenate: no models were given.",
    ),
    "batches of other shapes": (
        lambda: lanes.concatenate([two_lanes(), {"a": {"v": floats(2, 4)}}], 0),
        ValueError,
        "`a.v` of batch 0 and batch 1 differ: float32[2, 3] against float32[2, 4].",
    ),
    "batches that share other values": (
        lambda: lanes.concatenate(
            [two_lanes(w=jnp.zeros(2)), two_lanes(w=jnp.ones(2))], {"a": 0, "w": None}
        ),
        ValueError,
        "`w` of batch 0 and batch 1 have different values, but no lane axis: one of "
        "them would be lost. Give the leaf a lane axis, or make it the same in all.",
    ),
    "batches of another structure": (
        lambda: lanes.concatenate([two_lanes(), two_lanes(w=1)], 0),
        ValueError,
        "Lanes are models of one structure, but batch 0 and batch 1 differ at `w`: "
        "batch 0: lacks it; batch 1: has it.",
    ),
    "a short mask": (
        lambda: lanes.where([True], two_lanes(), two_lanes(), 0),
        ValueError,
        "`mask` must be a boolean array of shape (2,), one entry per lane, but its shape "
        "is (1,).",
    ),
    "where of another shape": (
        lambda: lanes.where([True, False], two_lanes(), {"a": {"v": floats(2, 4)}}, 0),
        ValueError,
        "`a.v` of `old` and `new` differ: float32[2, 4] against float32[2, 3].",
    ),
    "where of another structure": (
        lambda: lanes.where([True, False], two_lanes(w=1), two_lanes(), 0),
        ValueError,
        "Lanes are models of one structure, but `old` and `new` differ at `w`: `old`: "
        "lacks it; `new`: has it.",
    ),
    "where of other numbers": (
        lambda: lanes.where(
            [True, False], two_lanes(w=1), two_lanes(w=2), {"a": 0, "w": None}
        ),
        ValueError,
        "`w` of `old` and `new` differ: 2 against 1. A leaf that is not an array is shared by all "
        "lanes; make it an array to have one per lane.",
    ),
    "no number of lanes": (
        lambda: lanes.broadcast(two_lanes(), 0),
        ValueError,
        "`axis_size` must be a positive integer, the number of lanes, but got 0 of type "
        "int.",
    ),
    "a sharding of two axes": (
        lambda: lanes.shard(two_lanes(), 0, sharding("lanes", None)),
        ValueError,
        "`sharding` must have a specification of one entry, the mesh axis of the lanes, "
        f"but has {PartitionSpec('lanes', None)}.",
    ),
}


@pytest.mark.parametrize(("call", "kind", "text"), BAD.values(), ids=BAD)
def test_bad_use(call, kind, text):
    with pytest.raises(kind, match=f"(?m)^{re.escape(text)}$"):
        call()


# Trees of `jax.ShapeDtypeStruct`, as `eqx.filter_eval_shape` makes them.


def abstract(tree):
    def struct(x):
        is_jax = isinstance(x, jax.Array)
        return jax.ShapeDtypeStruct(x.shape, x.dtype) if is_jax else x

    return jtu.tree_map(struct, tree)


def lanes_and_axes():
    """Lanes on several axes, of NumPy too, and leaves without any."""
    batched = {
        "a": Cell(jnp.zeros((3, 2, 3)), jnp.ones(4)),
        "behind": jnp.arange(12).reshape(2, 3, 2),
        "keys": jax.random.split(jax.random.key(0), 3),
        "host": np.arange(6.0).reshape(3, 2),
        "f": jnp.tanh,
    }
    a = chorax.replace(Cell(0, None), gain=None)
    return batched, {"a": a, "behind": -2, "keys": 0, "host": 0, "f": None}


def shares_v(path, x):
    return path[-1] == "v" and eqx.is_inexact_array(x)


ABSTRACT: dict[str, Any] = {
    "stack": lambda m, axes: lanes.stack([m, m, m]),
    "stack, shared": lambda m, axes: lanes.stack([m, m], share=shares_v),
    "unstack": lanes.unstack,
    "take one": lambda m, axes: lanes.take(m, axes, -1),
    "take a slice": lambda m, axes: lanes.take(m, axes, slice(1, None)),
    "take a mask": lambda m, axes: lanes.take(m, axes, [True, False, True]),
    "take indices": lambda m, axes: lanes.take(m, axes, jnp.array([2, 2, 0, 1])),
    "take nothing": lambda m, axes: lanes.take(m, axes, []),
    "concatenate": lambda m, axes: lanes.concatenate(
        [m, lanes.take(m, axes, [0])], axes
    ),
    "where": lambda m, axes: lanes.where(jnp.array([True, False, True]), m, m, axes),
    "broadcast": lambda m, axes: lanes.broadcast(m, 4),
    "broadcast some": lambda m, axes: lanes.broadcast(m, 4, eqx.is_inexact_array),
    "broadcast a type": lambda m, axes: lanes.broadcast(m, 4, jax.Array),
}


@pytest.mark.parametrize("name", ABSTRACT)
def test_abstract_arrays_come_to_what_arrays_come_to(name):
    batched, axes = lanes_and_axes()
    use, expected = ABSTRACT[name], abstract(ABSTRACT[name](batched, axes))
    made = use(abstract(batched), axes)
    assert jtu.tree_structure(made) == jtu.tree_structure(expected)
    for x, y in zip(jtu.tree_leaves(made), jtu.tree_leaves(expected), strict=True):
        if isinstance(y, np.ndarray | np.generic):
            assert isinstance(x, np.ndarray | np.generic)
            np.testing.assert_array_equal(x, y)
        else:
            assert type(x) is type(y)
            assert x == y


def test_abstract_leaves_without_lanes_are_the_same_objects():
    batched, axes = lanes_and_axes()
    structs = abstract(batched)
    for member in lanes.unstack(structs, axes):
        assert member["a"].v is structs["a"].v
    assert lanes.stack([structs] * 2, share=...)[0]["keys"] is structs["keys"]


def test_abstract_arrays_beside_others():
    struct = jax.ShapeDtypeStruct((2,), jnp.float32)
    one, two = {"v": jnp.ones(2, jnp.float32)}, {"v": struct}
    for column in ([one, two], [two, one], [two, {"v": np.ones(2, np.float32)}]):
        assert lanes.stack(column)[0]["v"].shape == (2, 2)
        assert isinstance(lanes.stack(column)[0]["v"], jax.ShapeDtypeStruct)
        assert lanes.stack(column, share=...)[0]["v"] is column[0]["v"]
        joined = lanes.concatenate(column, 0)["v"]
        assert joined == jax.ShapeDtypeStruct((4,), jnp.float32)
    # Only the leaves that are abstract.
    mixed = lanes.take({"v": struct, "w": jnp.arange(2)}, 0, 1)
    assert (mixed["v"].shape, mixed["w"]) == ((), 1)


def test_functions_are_asked_about_abstract_arrays_as_about_arrays():
    batched = abstract({"v": jnp.ones((3, 2)), "f": jnp.tanh})
    for axes in (eqx.if_array(0), lambda x: 0 if eqx.is_inexact_array(x) else None):
        assert lanes.take(batched, axes, 0)["v"].shape == (2,)
        assert len(lanes.Ensemble(batched, axes)) == 3


@pytest.mark.parametrize("weak_type", [False, True])
def test_shard_says_where_abstract_arrays_are_to_live(weak_type):
    batched, axes = lanes_and_axes()
    weak: Any = jax.ShapeDtypeStruct((2, 3), jnp.float32, weak_type=weak_type)
    structs, axes = abstract(batched) | {"weak": weak}, axes | {"weak": 1}
    made = lanes.shard(structs, axes, sharding("lanes"))
    entries = PartitionSpec("lanes"), PartitionSpec(None, "lanes"), PartitionSpec()
    found = made["a"].w, made["behind"], made["a"].v
    for x, entry, name in zip(found, entries, ["w", "behind", "v"], strict=True):
        assert isinstance(x, jax.ShapeDtypeStruct), name
        assert x.sharding == NamedSharding(sharding().mesh, entry)
    assert made["keys"].dtype == batched["keys"].dtype
    assert made["weak"].weak_type == weak_type
    again = lanes.shard(made, axes, sharding("lanes"))
    assert again["behind"] is made["behind"]
    assert lanes.take(made, axes, 0)["behind"].shape == (2, 2)
    # The layout that arrays get.
    spread = lanes.shard(batched, lanes_and_axes()[1], sharding("lanes"))
    assert made["a"].w.sharding == spread["a"].w.sharding


def test_an_ensemble_of_abstract_arrays(key, tmp_path):
    linear = eqx.nn.Linear(2, 3, key=key)

    def make(model, key):
        return chorax.vmap_call_all_fns(
            model, chorax.reset_parameters, axis_size=4, key=key
        )

    real: Any = lanes.Ensemble(*make(linear, key))
    made: Any = lanes.Ensemble(*eqx.filter_eval_shape(make, linear, key))
    assert jtu.tree_structure(made) == jtu.tree_structure(real)
    assert len(made) == made.axis_size == 4
    assert made.axes.weight == 0
    assert "4 lanes of Linear, 2 leaves with lanes" in repr(made)
    assert made[0] == abstract(real[0])
    assert [member.weight.shape for member in made] == [(3, 2)] * 4
    assert len(made[1:]) == 3
    assert made[jnp.array([0, 0])].model.bias.shape == (2, 3)
    assert eqx.filter_eval_shape(made, jnp.ones(2)).shape == (4, 3)
    joined = lanes.concatenate([made, made[1:]], eqx.if_array(0))
    assert len(joined) == 7
    eqx.tree_serialise_leaves(tmp_path / "made.eqx", real)
    back = eqx.tree_deserialise_leaves(tmp_path / "made.eqx", made)
    oracle.assert_same(back, real)
    stacked = eqx.filter_eval_shape(lambda: lanes.stack([linear] * 4))
    assert len(lanes.Ensemble(*stacked)) == 4


BAD_STRUCTS: dict[str, tuple[Any, str]] = {
    "other shapes": (
        lambda one, two: lanes.stack([one, two]),
        "`v` of model 0 and model 1 differ: float32[2, 3] against float32[4, 3].",
    ),
    "against a number": (
        lambda one, two: lanes.stack([one, {"v": 2.0}]),
        "`v` of model 0 and model 1 differ: one is not an array but a float, 2.0.",
    ),
    "shared but other": (
        lambda one, two: lanes.stack([one, two], share=...),
        "`v` of model 0 and model 1 differ: float32[2, 3] against float32[4, 3].",
    ),
    "lanes that disagree": (
        lambda one, two: lanes.unstack([one, two], 0),
        "`axes` maps `1.v` along axis 0, which must be 2 long, but it has 4 there: its "
        "shape is (4, 3). Map it along its lane axis, or use `None` to share it.",
    ),
    "as a mask": (
        lambda one, two: lanes.where(one["v"], one, one, 0),
        "`mask` must be a boolean array of shape (2,), one entry per lane, but got an "
        "abstract array of dtype float32 and shape (2, 3).",
    ),
    "as an index": (
        lambda one, two: lanes.take(one, 0, one["v"]),
        "`index` must be an integer, a slice, a mask or an array of indices, but got "
        "an abstract array of dtype float32 and shape (2, 3).",
    ),
    "in a call": (
        lambda one, two: chorax.vmap_call_all_fns(
            [cell(0), one], "go", in_axes=[None, 0]
        ),
        "`in_axes` maps `1.v` along axis 0, but it is not an array: an abstract array of "
        "dtype float32 and shape (2, 3). Use `None` there, or `eqx.if_array(0)` to map "
        "the arrays only.",
    ),
}


@pytest.mark.parametrize(("call", "text"), BAD_STRUCTS.values(), ids=BAD_STRUCTS)
def test_bad_use_of_abstract_arrays(call, text):
    structs = [{"v": jax.ShapeDtypeStruct((n, 3), jnp.float32)} for n in (2, 4)]
    with pytest.raises((TypeError, ValueError), match=f"(?m)^{re.escape(text)}$"):
        call(*structs)


class Counter(eqx.Module):
    n: int
    w: Any

    def count(self):
        return chorax.replace(self, n=self.n + 1)

    def grow(self):
        return chorax.replace(self, w=self.w + self.n)


def test_ensembles_of_other_sizes_are_concatenated():
    def grown(size):
        # Until `grow` gives it lanes, no leaf says how many there are.
        model = Counter(size, jnp.ones(2))
        made = chorax.vmap_call_all_fns(model, "count", axis_size=size)
        made = chorax.replace(lanes.Ensemble(*made), model=Counter(1, jnp.ones(2)))
        return {"e": [chorax.call_all_fns(made, "grow")[0]]}

    one, two = grown(2), grown(3)
    joined: Any = lanes.concatenate([one, two], eqx.if_array(0))
    assert len(joined["e"][0]) == 5
    first = lanes.take(two, eqx.if_array(0), slice(0, 2))
    assert len(lanes.where([True, False], one, first, eqx.if_array(0))["e"][0]) == 2
    both, axes = lanes.stack([one, first])
    assert [len(each["e"][0]) for each in lanes.unstack(both, axes)] == [2, 2]
    # Where no leaf says it, nothing else would tell one from the other.
    alone = [
        lanes.Ensemble(
            *chorax.vmap_call_all_fns(Counter(1, None), "count", axis_size=n)
        )
        for n in (2, 3)
    ]
    with pytest.raises(ValueError, match=r"differ at `0\.size_when_made`: .*2; .*3"):
        lanes.stack([[alone[0]], [alone[1]]])


def test_axes_counted_from_the_end():
    batched = {"v": jnp.arange(6.0).reshape(3, 2)}
    assert [x["v"].tolist() for x in lanes.unstack(batched, -2)] == [
        [0.0, 1.0],
        [2.0, 3.0],
        [4.0, 5.0],
    ]
    assert lanes.take(batched, -1, 1)["v"].tolist() == [1.0, 3.0, 5.0]
    with pytest.raises(ValueError, match="which must be 2 long"):
        lanes.unstack({"v": jnp.zeros((2, 3)), "w": jnp.zeros(3)}, {"v": -2, "w": -1})


def test_every_index_counted_from_the_end():
    batched = {"v": jnp.arange(3)}
    taken = [int(lanes.take(batched, 0, index)["v"]) for index in range(-3, 3)]
    assert taken == [0, 1, 2] * 2
    for index in (-4, 3):
        with pytest.raises(IndexError, match=f"so there is none at index {index}"):
            lanes.take(batched, 0, index)


def test_a_single_batch_is_concatenated():
    batched = {"v": jnp.arange(3), "w": jnp.ones(2)}
    axes = {"v": 0, "w": None}
    oracle.assert_same(lanes.concatenate([batched], axes), batched)
