"""Many threads at once: each gets what it would get alone."""

import faulthandler
import functools
import resource
import subprocess
import sys
import threading
import types
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest
from jaxtyping import Array, Float

import chorax
import oracle
from chorax import call_all_fns, replace, vmap_call_all_fns
from chorax.filters import WithTag
from models import Add, Draw


THREADS = 16


@pytest.fixture(autouse=True)
def _switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def at_once(work, count=THREADS):
    """`[work(0), work(1), ...]`, all of them in threads that start together."""
    barrier = threading.Barrier(count)
    results: list[Any] = [None] * count
    errors: list[BaseException] = []

    def run(index):
        barrier.wait()
        try:
            results[index] = work(index)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def fresh(count=3):
    """A model of classes that nothing has been called on."""

    class Part(eqx.Module):
        w: jax.Array
        x: Any = None

        def step(self, *, key=None):
            drawn = 0.0 if key is None else jax.random.uniform(key, (3,))
            return replace(self, x=self.w * 2 + drawn)

    class Sum(eqx.Module):
        parts: Any
        total: Any = None

        def step(self):
            return replace(self, total=sum(part.x for part in self.parts))

    class Last(eqx.Module):
        below: Any
        n: int = 0

        @chorax.call_order(2)
        def step(self):
            return replace(self, n=self.n + 1)

    return [
        Last(Sum([Part(jnp.arange(3.0) + i), Part(jnp.ones(3))])) for i in range(count)
    ]


def step(net, key=None, **options):
    return vmap_call_all_fns(net, "step", axis_size=4, key=key, **options)


def test_the_same_call_first_made_by_all(key):
    expected = oracle.leaves_by_path(step(fresh(), key)[0])
    net = fresh()
    results = at_once(lambda _: step(net, key))
    for model, delta in results:
        oracle.assert_same(oracle.leaves_by_path(model), expected)
        assert delta.paths == results[0][1].paths
    # And from now on nothing is traced again.
    oracle.assert_same(oracle.leaves_by_path(step(net, key)[0]), expected)


@pytest.mark.usefixtures("needs_jit")
def test_it_is_not_traced_again_after_all_made_it_at_once(key):
    runs = []

    class Node(eqx.Module):
        x: Any = None

        def step(self, *, key):
            runs.append(self)
            return replace(self, x=jax.random.uniform(key, (3,)))

    net = [Node() for _ in range(5)]
    at_once(lambda _: step(net, key))
    assert 1 <= len(runs) <= THREADS
    runs.clear()
    at_once(lambda _: step(net, key))
    assert runs == []


def test_one_model_with_many_keys(key):
    net = fresh()
    keys = jax.random.split(key, THREADS)
    expected = [step(net, own)[0] for own in keys]
    for _ in range(3):
        found = at_once(lambda i: step(net, keys[i])[0])
        for one, other in zip(found, expected, strict=True):
            oracle.assert_same(one, other)


@pytest.mark.slow
def test_models_of_their_own():
    """Each of another structure and other classes, so that all is found anew."""
    expected = [
        oracle.leaves_by_path(step(fresh(1 + i % 4))[0]) for i in range(THREADS)
    ]
    nets = [fresh(1 + i % 4) for i in range(THREADS)]
    for _ in range(2):
        found = at_once(lambda i: step(nets[i])[0])
        for one, other in zip(found, expected, strict=True):
            oracle.assert_same(oracle.leaves_by_path(one), other)


@pytest.mark.slow
def test_options_of_their_own(key):
    net = [Scale(jnp.zeros((4, 3)), 2.0), Scale(jnp.ones((4, 3)), 3.0)]
    axes: Any = [Scale(0, None), Scale(0, None)]
    mask = jnp.arange(4) % 2 == 0
    options: list[dict[str, Any]] = [
        {},
        {"where": mask},
        {"state_tag": "s"},
        {"node_to_exclude": lambda path, _: path == (0,)},
        {"state_to_exclude": WithTag("nothing has this tag")},
        {"chunk_size": 3},
        {"axis_name": "lanes"},
        {"key": jax.random.split(key, 4)},
    ]

    def run(i):
        return step(net, in_axes=axes, **options[i % len(options)])

    expected = [run(i) for i in range(THREADS)]
    jax.clear_caches()
    for _ in range(2):
        for one, other in zip(at_once(run), expected, strict=True):
            oracle.assert_same(one, other)


def test_calls_that_fail_in_some_threads(key):
    """Each error is about its own thread's call, and harms no other."""

    class Odd(eqx.Module):
        name: str = eqx.field(static=True)
        x: Any = None

        def step(self, *, key):
            if self.name.startswith("bad"):
                raise RuntimeError(self.name)
            return replace(self, x=jax.random.uniform(key, (2,)))

    def net(i):
        return [Odd(f"good {i}"), {"b": Odd(f"{'bad' if i % 2 else 'good'} too {i}")}]

    expected = step(net(0), key)[0]

    def run(i):
        for _ in range(2):
            if i % 2:
                with pytest.raises(RuntimeError, match=f"^bad too {i}\n") as caught:
                    step(net(i), key)
                assert "`step` of Odd at `1.b`" in caught.value.__notes__[0]
            else:
                model, _ = step(net(i), key)
                oracle.assert_same(model[0].x, expected[0].x)
                oracle.assert_same(model[1]["b"].x, expected[1]["b"].x)

    at_once(run)


def test_bad_use_in_some_threads(key):
    net = [Add(jnp.zeros(3), jnp.ones(3))]
    expected = step(net, key)[0]

    def run(i):
        if i % 4 == 0:
            with pytest.raises(AttributeError, match=f"has no method `step_{i}`"):
                vmap_call_all_fns(net, f"step_{i}", axis_size=4, key=key)
        elif i % 4 == 1:
            with pytest.raises(ValueError, match="needs a `key`, and none was given"):
                vmap_call_all_fns(net, "step", axis_size=4)
        elif i % 4 == 2:
            with pytest.raises(ValueError, match=rf"got {-i}"):
                vmap_call_all_fns(net, "step", axis_size=-i, key=key)
        else:
            oracle.assert_same(step(net, key)[0], expected)

    for _ in range(2):
        at_once(run)


class Scale(eqx.Module):
    x: Any
    by: Any

    def step(self, *, key=None):
        return replace(self, x=self.x * self.by + 1)


class Mixed(eqx.Module):
    """What it computes, and whether it can, depends on JAX's settings."""

    x: jax.Array
    n: jax.Array
    y: Any = None

    def step(self):
        return replace(self, y=self.x @ self.x + self.n)


@pytest.mark.slow
def test_settings_of_their_own():
    """Promotion, precision and how a call is run, each in the thread that says so."""
    net = [Mixed(jnp.eye(3) * i, jnp.ones((3, 3), jnp.int32)) for i in range(3)]

    def call(net):
        return [node.y for node in call_all_fns(net, "step")[0]]

    def loss(net):
        return sum(y.sum() for y in call(net))

    def strict(call):
        with pytest.raises(Exception, match="no available implicit dtype promotion"):
            call(net)

    def standard(call):
        with jax.numpy_dtype_promotion("standard"):
            return call(net)

    def plainly(call):
        with jax.disable_jit(), jax.numpy_dtype_promotion("standard"):
            return call(net)

    def precisely(call):
        with jax.default_matmul_precision("highest"):
            return standard(call)

    ways: list[Any] = [
        functools.partial(strict, call),
        functools.partial(standard, call),
        functools.partial(plainly, call),
        functools.partial(standard, eqx.filter_jit(call)),
        functools.partial(strict, eqx.filter_jit(call)),
        functools.partial(precisely, call),
        functools.partial(standard, eqx.filter_grad(loss)),
        functools.partial(standard, functools.partial(eqx.filter_eval_shape, call)),
    ]
    expected = [way() for way in ways]
    for _ in range(2):
        jax.clear_caches()
        found = at_once(lambda i: ways[i % len(ways)]())
        for i, one in enumerate(found):
            other = expected[i % len(ways)]
            if isinstance(jtu.tree_leaves([other, 0])[0], jax.ShapeDtypeStruct):
                assert one == other
            else:
                oracle.assert_same(one, other)


@pytest.mark.slow
def test_some_threads_call_inside_of_jit(key):
    """Nothing that one thread traces is seen by another."""
    net = fresh(1)

    def call(net, key):
        return step(net, key)[0]

    ways = [call, eqx.filter_jit(call)]
    expected = [way(net, key) for way in ways]
    jax.clear_caches()
    found = at_once(lambda i: ways[i % 2](net, key))
    for i, one in enumerate(found):
        oracle.assert_same(one, expected[i % 2])


@pytest.mark.slow
def test_each_warning_is_that_threads_own():
    """In a process without the import hook of the tests, under which beartype catches
    warnings, those of other threads too."""
    command = [sys.executable, __file__]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.stderr == ""
    assert done.returncode == 0


def warn_in_threads():
    """None is lost, and each points at the line that made the call."""

    class Bare(eqx.Module):
        name: int

    source = "def call():\n    return chorax.call_all_fns(net, 'step', **options)"
    callers = []
    for i in range(THREADS):
        name = f"user_{i}"
        module = types.ModuleType(name)
        net = [Scale(1, 2), *[Bare(i)] * (i % 2), {f"at_{i}": Bare(i)}]
        options = {"fn_if_not_exist": "warn"}
        vars(module).update(chorax=chorax, net=net, options=options)
        exec(compile(source, f"{name}.py", "exec"), vars(module))
        callers.append(vars(module)["call"])
    expected = []
    for i in range(THREADS):
        places = [f"{1 + i % 2}.at_{i}", *["1"] * (i % 2)]
        expected += [(f"user_{i}.py", 2, f"Bare at `{p}` has no") for p in places]
    for _ in range(3):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            at_once(lambda i: callers[i]())
        rows = [(w.filename, w.lineno, str(w.message)) for w in found]
        rows = [(file, line, text.split(" method")[0]) for file, line, text in rows]
        assert sorted(rows) == sorted(expected)


@pytest.mark.slow
def test_functions_that_come_and_go(key):
    """What was traced with a function goes with it, whoever is reading meanwhile."""
    net = [Add(jnp.arange(3.0), jnp.ones(3))]

    def run(i):
        for n in range(4):
            by = float(i * 4 + n)
            model, _ = call_all_fns(
                net, lambda node, by=by: replace(node, x=node.x + by)
            )
            assert model[0].x.tolist() == [by, by + 1, by + 2]

    at_once(run)


def test_rules_that_come_and_go():
    """A dispatcher gets rules from one thread while others call it."""

    @functools.singledispatch
    def change(node):
        return node

    # Its own rule: to look for one of a class above, Python goes through all of them.
    @change.register(Add)
    def _(node):
        return replace(node, x=node.x + 1)

    net = [Add(jnp.arange(3.0), jnp.ones(3))]

    def run(i):
        if i == 0:
            for _ in range(20):
                kinds = [type("Kind", (), {}) for _ in range(9)]
                for kind in (*kinds, Draw):
                    change.register(kind, lambda node: node)
            return
        for _ in range(3):
            model, _ = call_all_fns(net, change)
            assert model[0].x.tolist() == [1.0, 2.0, 3.0]

    at_once(run, 3)


@pytest.mark.slow
def test_layers_are_drawn_as_in_one_thread(key):
    model = [eqx.nn.Linear(2, 2, use_bias=False, key=key) for _ in range(2)]
    keys = jax.random.split(key, THREADS)

    def run(i):
        run = chorax.reset_parameters
        return vmap_call_all_fns(model, run, axis_size=2, key=keys[i])[0]

    expected = [run(i) for i in range(THREADS)]
    jax.clear_caches()
    for one, other in zip(at_once(run), expected, strict=True):
        oracle.assert_same(one, other)


class Sized(eqx.Module):
    v: Float[Array, "n"]
    w: Float[Array, "n"]

    def grow(self, by):
        return replace(self, v=jnp.zeros(3 + by))


@pytest.mark.slow
def test_annotations_bind_in_each_thread():
    net = {"a": [Sized(jnp.ones(3), jnp.ones(3))]}

    def run(i):
        by = i % 4
        for _ in range(3):
            if by:
                found = rf"`w` .* at `a\.0` .*\n.*\n.*\n  bound: n = {3 + by} by `v`"
                with pytest.raises(chorax.AnnotationError, match=found):
                    call_all_fns(net, "grow", by)
            else:
                model, _ = call_all_fns(net, "grow", by)
                assert model["a"][0].v.tolist() == [0.0, 0.0, 0.0]
            size = 2 + i
            chorax.check_annotations([Sized(jnp.ones(size), jnp.ones(size))])

    at_once(run)


def test_lanes_are_put_together_in_each_thread():
    batched, delta = step(fresh(2))
    expected = [chorax.lanes.take(batched, delta, i % 4) for i in range(THREADS)]

    def run(i):
        parts = chorax.lanes.unstack(batched, delta)
        again, axes = chorax.lanes.stack(parts)
        return chorax.lanes.take(again, axes, i % 4)

    for one, other in zip(at_once(run), expected, strict=True):
        oracle.assert_same(one, other)


if __name__ == "__main__":
    # What does not end tells where it is, and what grows fails.
    faulthandler.dump_traceback_later(300, exit=True)
    resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30))
    sys.setswitchinterval(1e-6)
    warn_in_threads()
