"""After a call, good or failed, nothing is left behind: no change, no tracer, and no
reference that was not there before."""

import contextlib
import functools
import gc
import logging
import sys
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest
from equinox import is_array
from jaxtyping import Array, Float

import chorax
import oracle
from chorax import call_all_fns, call_order, replace, vmap_call_all_fns
from rows import quick


@pytest.fixture(scope="module", autouse=True)
def _only_what_is_new():
    """Objects that were there before are left out of each collection of garbage."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _no_log():
    """JAX logs what fails at run time, and pytest keeps the log, frames and all."""
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def drawn(key):
    return (jax.random.key_data(key)[0] % np.uint32(97)).astype(float)


class Static(eqx.Module):
    value: Any = eqx.field(static=True)


class Leaf(eqx.Module):
    w: Float[Array, "n"]
    x: Float[Array, "n"] | None = None

    def step(self, *, key):
        return replace(self, x=self.w + drawn(key))

    def grow(self):
        return replace(self, x=jnp.zeros(self.w.size + 1))

    def stop(self):
        raise KeyboardInterrupt("by the user")

    def check(self):
        return replace(self, x=eqx.error_if(self.w, self.w.sum() > -1, "too much"))

    def freeze(self):
        return replace(self, x=replace(Static(0), value=self.w))

    def become(self):
        return Static(0)

    def forget(self):
        return None

    def same(self):
        return self

    def double(self):
        return replace(self, x=self.w * 2)


class Stem(eqx.Module):
    """Called in the second wave: it reads what its leaves became."""

    leaves: list[Leaf]
    total: Any = None

    def step(self, *, key):
        total = sum(jnp.sum(leaf.x) for leaf in self.leaves if leaf.x is not None)
        return replace(self, total=total + drawn(key))

    @call_order(1)
    def prune(self):
        return self

    def double(self):
        if self.total is None:
            raise RuntimeError("nothing to double")
        return self


class Root(eqx.Module):
    """Called in the last wave, by its mark."""

    stem: Any
    act: Any
    total: Any = None

    @call_order(3)
    def step(self, *, key):
        return replace(self, total=self.act(self.stem.total) + drawn(key))

    @call_order(0)
    def prune(self):
        return replace(self, stem=None)


def make():
    w = jnp.arange(6.0).reshape(2, 3)
    return {"a": Root(Stem([Leaf(w[0]), Leaf(w[1])]), lambda x: -x)}


def raising(cls):
    """A function that works on all but the modules of one class."""

    def fails(node, *, key):
        if isinstance(node, cls):
            raise RuntimeError(f"in a {cls.__name__}")
        return node.step(key=key)

    return fails


def in_lanes(net, fn, **options):
    options = {"axis_size": 3, "fn_if_not_exist": "pass", **options}
    return vmap_call_all_fns(net, fn, **options)


def alone(net, fn, **options):
    return call_all_fns(net, fn, fn_if_not_exist="pass", **options)


def total(net, fn, **options):
    return alone(net, fn, **options)[0]["a"].total


def in_jit(net, fn, **options):
    # Not `eqx.filter_jit`, which keeps what it is given.
    arrays, rest = eqx.partition(net, is_array)

    @jax.jit
    def run(arrays):
        return eqx.filter(in_lanes(eqx.combine(arrays, rest), fn, **options), is_array)

    return run(arrays)


def in_grad(net, fn, **options):
    return eqx.filter_grad(lambda net: total(net, fn, **options))(net)


def in_scan(net, fn, key):
    def body(carry, own):
        return carry, total(net, fn, key=own)

    return jax.lax.scan(body, None, jax.random.split(key, 2))


def in_vmap(net, fn, key):
    run = eqx.filter_vmap(lambda own: total(net, fn, key=own))
    return run(jax.random.split(key, 2))


def plainly(net, fn, **options):
    with jax.disable_jit():
        return in_lanes(net, fn, **options)


def computed(result):
    """The result, once all of it is there: some errors come up only then."""
    return jax.block_until_ready(eqx.filter(result, is_array))


def fails_at_one(path, _):
    if path[-1:] == (1,):
        raise LookupError("asked too much")
    return False


def fails_at_all(x):
    raise LookupError(f"asked of a {type(x).__name__}")


WAYS = (in_lanes, alone, in_jit, in_grad, in_scan, in_vmap)
IN_WAYS = {
    f"in {cls.__name__}, {way.__name__}": (
        functools.partial(lambda way, fn, net, key: way(net, fn, key=key), way, fn),
        RuntimeError,
        f"in a {cls.__name__}",
    )
    for cls, ways in [(Leaf, WAYS[:3]), (Stem, WAYS), (Root, WAYS[:3])]
    for fn in [raising(cls)]
    for way in ways
}
FAILING: dict[str, tuple[Any, type[BaseException], str]] = {
    **IN_WAYS,
    "axis_size": (
        lambda net, key: in_lanes(net, "step", key=key, axis_size=0),
        ValueError,
        "`axis_size`",
    ),
    "kwargs": (
        lambda net, key: in_lanes(net, "step", key=key, kwargs=[1]),
        TypeError,
        "`kwargs`",
    ),
    "no method": (
        lambda net, key: in_lanes(net, "stop", fn_if_not_exist="raise"),
        AttributeError,
        "Stem at `a.stem` has no method `stop`",
    ),
    "no key": (
        lambda net, key: in_lanes(net, "step"),
        ValueError,
        "needs a `key`, and none was given",
    ),
    "two keys": (
        lambda net, key: in_lanes(net, "step", key=key, kwargs={"key": key}),
        TypeError,
        "`key` is given twice",
    ),
    "other keys": (
        lambda net, key: in_lanes(net, "step", key=jax.random.split(key, 2)),
        ValueError,
        r"expected shape \(3,\), got \(2,\)",
    ),
    "other lanes": (
        lambda net, key: in_lanes(net, "same", axis_size=2, in_axes=eqx.if_array(0)),
        ValueError,
        "must be `axis_size` = 2 long",
    ),
    "mask": (
        lambda net, key: in_lanes(net, "step", key=key, where=jnp.ones(2, bool)),
        ValueError,
        "`where`",
    ),
    "nothing to keep": (
        lambda net, key: in_lanes(net, "step", key=key, where=jnp.ones(3, bool)),
        ValueError,
        "has nothing to keep",
    ),
    "differs": (
        lambda net, key: in_lanes(net, "step", key=key, state_to_exclude=...),
        ValueError,
        "differs from lane to lane",
    ),
    "filter of nodes": (
        lambda net, key: in_lanes(net, "step", key=key, node_to_exclude=fails_at_one),
        LookupError,
        "asked too much",
    ),
    "filter of leaves": (
        lambda net, key: in_lanes(net, "step", key=key, state_to_exclude=fails_at_all),
        LookupError,
        "asked of a ",
    ),
    "None": (
        lambda net, key: alone(net, "forget"),
        TypeError,
        "`return self` if nothing changes",
    ),
    "class": (
        lambda net, key: in_lanes(net, "become"),
        TypeError,
        "must return a Leaf, but returned a Static",
    ),
    "static": (
        lambda net, key: in_lanes(net, "freeze"),
        TypeError,
        "put a traced array into the static field `x.value`",
    ),
    "gone": (
        lambda net, key: alone(net, "prune"),
        ValueError,
        "was still to be called on the Stem at `a.stem`",
    ),
    "annotation": (
        lambda net, key: in_lanes(net, "grow"),
        chorax.AnnotationError,
        "The field `x` of the Leaf at `a.stem.leaves.0` does not fit",
    ),
    "interrupt": (
        lambda net, key: in_lanes(net, "stop"),
        KeyboardInterrupt,
        "by the user",
    ),
    "plainly": (
        lambda net, key: plainly(net, "double"),
        RuntimeError,
        "nothing to double",
    ),
    "at run time": (
        lambda net, key: computed(in_lanes(net, "check")),
        RuntimeError,
        "too much",
    ),
    "at run time in jit": (
        lambda net, key: computed(in_jit(net, "check")),
        RuntimeError,
        "too much",
    ),
}


def checking(leaks):
    return jax.checking_leaks() if leaks else contextlib.nullcontext()


def live_tracers():
    return [type(x) for x in gc.get_objects() if isinstance(x, jax.core.Tracer)]


def given():
    """The arguments of a call; in a container, which may be copied along with the local
    variables of a frame."""
    return {"net": make(), "key": jax.random.key(0)}


def references(tree):
    """How often each leaf is referred to, by its identity."""
    gc.collect()
    return {id(x): sys.getrefcount(x) for x in jtu.tree_leaves(tree)}


@functools.lru_cache(maxsize=1)
def expected():
    keys = jax.random.split(jax.random.key(0), 3)
    return oracle.leaves_by_path(oracle.vmap_call(make(), "step", keys))


def check_good_call(net, key):
    after = oracle.leaves_by_path(in_lanes(net, "step", key=key)[0])
    for path, value in expected().items():
        if is_array(value):
            oracle.assert_same(after[path], value, exact=False)
        else:
            assert after[path] is oracle.leaves_by_path(net)[path]


@pytest.mark.parametrize("name", FAILING)
def test_failing_calls(name, request):
    fails, error, match = FAILING[name]
    if name == "static":  # Without jit the array is not a traced one.
        request.getfixturevalue("needs_jit")
    arguments = given()
    structure = jtu.tree_structure(arguments)
    values = [np.array(x) for x in jtu.tree_leaves(arguments["net"]) if is_array(x)]
    before = references(arguments)
    for leaks in (False, True):
        with checking(leaks), pytest.raises(error, match=match):
            fails(**arguments)
        # The same objects still, to which nobody refers that did not before.
        assert references(arguments) == before
        assert live_tracers() == []
    assert jtu.tree_structure(arguments) == structure
    arrays = [x for x in jtu.tree_leaves(arguments["net"]) if is_array(x)]
    for x, value in zip(arrays, values, strict=True):
        assert np.asarray(x).tobytes() == value.tobytes()
    check_good_call(**arguments)


def made_twice(net, key):
    model, delta = in_lanes(net, "step", key=key, state_tag="s")
    options: dict[str, Any] = {"in_axes": delta, "where": jnp.arange(3) == 1}
    model, later = in_lanes(model, "step", key=key, **options)
    return chorax.apply_delta(net, delta | later)


def taken_apart(net, key):
    model, delta = in_lanes(net, "step", key=key)
    parts = chorax.lanes.unstack(model, delta)
    return chorax.diff(net, parts[0]), delta.select("s"), repr(delta)


GOOD: dict[str, Any] = {
    **{
        way.__name__: functools.partial(
            lambda way, net, key: way(net, "step", key=key), way
        )
        for way in WAYS
    },
    "plainly": lambda net, key: plainly(net, "double", node_to_exclude=Stem),
    "with values": made_twice,
    "taken apart": taken_apart,
    "checked": lambda net, key: chorax.check_annotations(net),
    "made where others are": lambda net, key: chorax.lanes.Ensemble(
        *in_lanes(net, "step", key=key)
    )[0],
}


@pytest.mark.parametrize(
    "name",
    quick(GOOD, [name for name in GOOD if name not in ("in_scan", "in_vmap")]),
)
def test_good_calls(name):
    arguments = given()
    before = references(arguments)
    for leaks in (False, True):
        with checking(leaks):
            result = GOOD[name](**arguments)
        del result
        assert references(arguments) == before
        assert live_tracers() == []
