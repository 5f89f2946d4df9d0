"""A thousand calls that have little in common, and what is left of them.

    python tests/stress.py [--calls 1000] [--seed 0]

Every call is on a model of another structure, with other static values, in another
number of lanes, by a method or a function of another kind, with filters and arguments
that close over arrays of their own. Half of them are on classes that no other call has
met, a sixth inside of a `jax.jit`, and a quarter fail. It prints what is alive, and
exits with 1 if that is more than it should be:

- Nothing that a call was given outlives it: models, arrays, functions, objects. Static
  closures, and what a closure made by a method holds, do until chorax's memories are
  emptied, and what a `jax.jit` around the call was given until JAX's caches are.
- No memory has more entries than it is bounded by. As many computations are alive as
  these entries hold, with what JAX has compiled for them, some MB each.
- With both emptied there are no more arrays, objects of chorax, traces and compiled
  functions of JAX than at the start; and no tracers ever. Nor is there more resident
  memory, but for what as many compiled functions without chorax leave behind, and as
  many classes, which Equinox and JAX keep for good; twice that and 64 MB are let pass.

It takes some minutes, and some GB.
"""

import argparse
import collections
import ctypes
import functools
import gc
import random
import sys
import time
import warnings
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.core
import jax.extend.core as jec
import jax.numpy as jnp
import psutil

import chorax
from chorax import call_order, replace


def memories():
    """chorax's memories, all that outlives a call, by name."""
    modules = [m for name, m in sys.modules.items() if name.split(".")[0] == "chorax"]
    return {
        f"{module.__name__}.{name}": value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, functools._lru_cache_wrapper)
        and value.__module__ == module.__name__
    }


def empty():
    for memory in memories().values():
        memory.cache_clear()
    gc.collect()


# Models.


class Parent(eqx.Module):
    """Reads what its children became; its own class is one of many calls."""

    below: Any
    n: int = eqx.field(static=True)
    x: Any = None

    @call_order(1)
    def step(self, *args, key=None):
        leaves = [x for x in jax.tree.leaves(self.below) if eqx.is_inexact_array(x)]
        return replace(self, x=sum((jnp.sum(x) for x in leaves), jnp.zeros(())))

    def fail(self, *args, key=None):
        raise RuntimeError(f"number {self.n}")


def new_class(scale):
    class Node(eqx.Module):
        x: jax.Array
        act: Any
        n: Any = eqx.field(static=True)

        def step(self, *args, key=None):
            x = self.act(self.x * scale) + sum(args)
            return replace(self, x=x if key is None else x + jax.random.uniform(key))

        def wrap(self, *args, key=None):
            act = self.act
            return replace(self, act=lambda x: act(x) + scale)

        def fail(self, *args, key=None):
            return None if self.x.ndim else self

    return Node


class Holder:
    """An object that holds an array, with methods to be called and to filter."""

    def __init__(self, size):
        self.array = jnp.arange(float(size))

    def __call__(self, node, *args, key=None):
        return self.change(node, *args, key=key)

    def change(self, node, *args, key=None):
        return replace(node, x=jnp.sum(self.array))

    def fail(self, node, *args, key=None):
        raise RuntimeError(f"{self.array.shape}")

    def keeps(self, path, _):
        return self.array.size == len(path)

    def refuses(self, path, _):
        raise LookupError(f"{self.array.shape} at {path}")


class Calls:
    """Random calls, and weak references to what they were given."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.classes = [new_class(scale) for scale in range(8)]
        self.made = collections.Counter()
        # By who may hold it for a while: nobody, chorax's memories, JAX's caches.
        self.given: list[Any] = []
        self.held: list[Any] = []
        self.jitted: list[Any] = []
        self.new: list[Any] = []
        self.new_static: list[Any] = []

    def one(self):
        """Makes a call; counts what became of it."""
        choose = self.random.choice
        if choose([True, False]):
            self.classes[self.random.randrange(8)] = new_class(
                self.random.randrange(99)
            )
            self.made["classes"] += 1
        fails = choose([True, False, False, False])
        net = self.tree(self.random.randint(1, 3))
        fn = choose([self.named, self.function])(fails)
        run = choose([self.plainly, self.with_lanes, self.with_lanes, self.in_jit])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run(net, fn, fails)
        except (RuntimeError, TypeError, ValueError, LookupError):
            self.made["failed"] += 1
        else:
            self.made["returned"] += 1
        if run == self.in_jit:
            self.jitted += self.new + self.new_static
        else:
            whose = self.held if fn == "wrap" else self.given
            whose += self.new
            self.held += self.new_static
        self.new, self.new_static = [], []

    def track(self, x):
        self.new.append(weakref.ref(x))
        return x

    def array(self):
        return self.track(jnp.arange(float(self.random.randint(1, 9))))

    def holder(self):
        holder = self.track(Holder(self.random.randint(1, 9)))
        self.track(holder.array)
        return holder

    def act(self):
        array = self.array()
        return self.track(lambda x: x + array.sum())

    def static(self):
        """A value new in every call; sometimes a closure, or what can't be hashed."""
        number = self.random.random()
        array = jnp.zeros(3)
        closure = lambda x: x + array  # noqa: E731
        value = self.random.choice([number, str(number), [number], (number, closure)])
        if isinstance(value, tuple):
            self.new_static += [weakref.ref(closure), weakref.ref(array)]
        return value

    def tree(self, depth):
        choose = self.random.choice
        if depth == 0:
            cls = choose(self.classes)
            return self.track(cls(self.array(), self.act(), self.static()))
        parts = [self.tree(depth - 1) for _ in range(self.random.randint(1, 3))]
        names = [f"{choose('abc')}{i}" for i in range(len(parts))]
        number = self.random.randrange(1000)
        made = [parts, tuple(parts), dict(zip(names, parts, strict=True))]
        return choose([*made, self.track(Parent(parts, number))])

    def named(self, fails):
        return "fail" if fails else self.random.choice(["step", "step", "step", "wrap"])

    def function(self, fails):
        holder = self.holder()
        if fails:
            return holder.fail
        array = self.array()

        def change(node, *args, key=None):
            return replace(node, x=array * len(args))

        return self.random.choice(
            [
                self.track(change),
                self.track(functools.partial(Holder.change, holder)),
                holder.change,
                holder,
                self.track(jax.jit(lambda node, *args, key=None: change(node, *args))),
            ]
        )

    def options(self, fails):
        choose = self.random.choice
        keys = [None, jax.random.key(self.random.randrange(99))]
        refuse = fails and choose([True, False])
        nodes = self.holder().refuses if refuse else choose([None, self.holder().keeps])
        return {
            "args": (jnp.ones(()),) * self.random.randint(0, 2),
            "fn_if_not_exist": "pass",
            "key": choose(keys),
            "node_to_exclude": nodes,
            "state_tag": choose([None, f"tag {self.random.random()}"]),
        }

    def plainly(self, net, fn, fails):
        return chorax.call_all_fns(net, fn, **self.options(fails))

    def with_lanes(self, net, fn, fails):
        options = self.options(fails)
        options["state_to_exclude"] = self.holder().keeps
        options["chunk_size"] = self.random.choice([None, None, 2])
        size = self.random.randint(1, 6)
        return chorax.vmap_call_all_fns(net, fn, axis_size=size, **options)

    def in_jit(self, net, fn, fails):
        arrays, rest = eqx.partition(net, eqx.is_array)

        @self.track
        def run(arrays):
            model, _ = self.plainly(eqx.combine(arrays, rest), fn, fails)
            return eqx.filter(model, eqx.is_array)

        return jax.jit(run)(arrays)


# What is alive.


def alive(references):
    gc.collect()
    return sum(reference() is not None for reference in references)


def objects():
    """How many objects there are, by type."""
    gc.collect()
    return collections.Counter(
        f"{type(x).__module__}.{type(x).__qualname__}" for x in gc.get_objects()
    )


def counted(objects):
    """Of those, how many that only a call can have made."""
    kinds = [jec.Jaxpr, jec.ClosedJaxpr, type(jax.jit(len))]
    names = {f"{kind.__module__}.{kind.__qualname__}" for kind in kinds}
    return collections.Counter(
        {
            name: count
            for name, count in objects.items()
            if name in names or name.startswith("chorax.")
        }
    )


def tracers():
    return sum(isinstance(x, jax.core.Tracer) for x in gc.get_objects())


def resident():
    """Resident memory in MB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return psutil.Process().memory_info().rss / 2**20


def compile_by_hand(count):
    for i in range(count):
        jax.jit(lambda x, i=i: x * i + jnp.sum(jnp.arange(i)))(jnp.ones(3))


def left_by(make, count):
    """How many MB one of these leaves behind, with JAX's caches emptied."""
    make(count // 4)
    jax.clear_caches()
    before = resident()
    make(count)
    jax.clear_caches()
    return max(resident() - before, 0.0) / count


def main():
    parser = argparse.ArgumentParser(description="See the top of the file.")
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    compiled: list[str] = []

    def listen(event, duration_secs, **_):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    per_program = left_by(compile_by_hand, 100)
    per_class = left_by(lambda count: [new_class(i) for i in range(count)], 100)
    calls = Calls(options.seed)
    for _ in range(20):
        calls.one()
    jax.clear_caches()
    empty()
    start, arrays, types = resident(), len(jax.live_arrays()), counted(objects())
    compiled.clear()
    calls.made.clear()
    print(f"at the start: {start:.0f} MB, {arrays} arrays")

    problems: list[str] = []
    for half in ("first", "second"):
        begun = time.process_time()
        for _ in range(options.calls // 2):
            calls.one()
        seconds = time.process_time() - begun
        left, held = alive(calls.given), alive(calls.held)
        print(
            f"after the {half} half: {resident():.0f} MB, {len(jax.live_arrays())} "
            f"arrays, {dict(calls.made)}, {len(compiled)} programs compiled, "
            f"{seconds:.0f} s of CPU"
        )
        print(f"  given and alive: {left} of {len(calls.given)}")
        print(f"  held by chorax's memories: {held} of {len(calls.held)}")
        if left:
            problems.append(f"{left} objects outlive their call")
        if tracers():
            problems.append(f"{tracers()} tracers are alive")
        for name, memory in memories().items():
            info = memory.cache_info()
            print(f"  {name}: {info.currsize} of {info.maxsize}")
            if info.maxsize is None or info.currsize > info.maxsize:
                problems.append(f"{name} is not bounded")
    print("objects by type:")
    for name, count in objects().most_common(12):
        print(f"  {count:8d} {name}")

    empty()
    more = counted(objects()) - types
    print(f"with chorax's memories emptied: {resident():.0f} MB")
    print(f"  {len(jax.live_arrays())} arrays, {dict(more)} more than at the start")
    print(f"  held by JAX: {alive(calls.jitted)} of {len(calls.jitted)}")
    if alive(calls.held):
        problems.append(f"{alive(calls.held)} objects outlive the memories")
    jax.clear_caches()
    end = resident()
    more = counted(objects()) - types
    print(f"with JAX's caches emptied: {end:.0f} MB, {dict(more)} more objects")
    if len(jax.live_arrays()) > arrays or alive(calls.jitted):
        problems.append(f"{len(jax.live_arrays())} arrays outlive all of it")
    if more:
        problems.append(f"objects outlive the memories: {dict(more)}")
    usual = per_program * len(compiled) + per_class * calls.made["classes"]
    print(
        f"without chorax, as many programs ({1000 * per_program:.0f} kB each) and "
        f"classes ({1000 * per_class:.0f} kB each) leave {usual:.0f} MB"
    )
    if end - start > 2 * usual + 64:
        problems.append(f"{end - start:.0f} MB are left")
    print("\n".join(problems) or "nothing is left that should not be")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
