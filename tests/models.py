"""Modules that the tests call methods on; each does one thing that is easy to miss."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from chorax import call_order, replace


class Draw(eqx.Module):
    """Draws: `None` becomes an array."""

    size: int = eqx.field(static=True)
    x: Any = None

    def step(self, *, key):
        return replace(self, x=jax.random.normal(key, (self.size,)))


class Constant(eqx.Module):
    """Writes what is the same in all lanes, of more than one type."""

    x: Any = None
    n: int = 3

    def step(self, *, key=None):
        return replace(self, x=jnp.arange(3), n=self.n + 1)


class Add(eqx.Module):
    """Reads and writes its own array, and reads one that it leaves alone."""

    x: Any
    w: jax.Array

    def step(self, *, key):
        return replace(self, x=self.x + self.w + jax.random.normal(key, ()))


class Numpy(eqx.Module):
    """Returns a NumPy array; keeps a NumPy leaf."""

    kept: np.ndarray
    x: Any = None

    def step(self, *, key=None):
        return replace(self, x=np.ones((2, 2), np.float32))


class Swap(eqx.Module):
    """Moves its leaves; makes no new value at all."""

    a: jax.Array
    b: jax.Array

    def step(self, *, key=None):
        return replace(self, a=self.b, b=self.a)


class Drop(eqx.Module):
    """An array becomes `None`."""

    x: Any
    y: jax.Array

    def step(self, *, key=None):
        return replace(self, x=None)


class Retype(eqx.Module):
    """A float becomes an array; a static field changes."""

    x: Any
    n: int = eqx.field(static=True, default=0)

    def step(self, *, key=None):
        return replace(self, x=jnp.ones((), jnp.int32), n=self.n + 1)


class Pass(eqx.Module):
    """Changes nothing."""

    x: Any
    f: Callable = jax.nn.relu

    def step(self, *, key=None):
        return self


class Keys(eqx.Module):
    """Its state is a key."""

    k: Any = None

    def step(self, *, key):
        return replace(self, k=jax.random.fold_in(key, 7))


class Parent(eqx.Module):
    """Reads what its children became, and draws."""

    children: Any
    total: Any = None

    def step(self, *, key):
        leaves = [x for x in jax.tree.leaves(self.children) if eqx.is_inexact_array(x)]
        total = jax.random.normal(key, ())
        for leaf in leaves:
            total = total + jnp.sum(leaf)
        return replace(self, total=total)


class Late(eqx.Module):
    """Comes after everything unmarked, and writes below itself."""

    child: Any
    seen: Any = None

    @call_order(1)
    def step(self, *, key):
        seen = jnp.zeros(())
        for leaf in jax.tree.leaves(self.child):
            if eqx.is_inexact_array(leaf):
                seen = seen + jnp.sum(leaf)
        return replace(self, seen=seen + jax.random.normal(key, ()))


class Early(eqx.Module):
    """Marked with the lowest level."""

    x: Any
    child: Any = None

    @call_order(0)
    def step(self, *, key=None):
        return replace(self, x=self.x + 1)


class Rewrite(eqx.Module):
    """Overwrites an array of its child."""

    child: Add

    def step(self, *, key=None):
        return replace(self, child=replace(self.child, x=self.child.x * 2))


class Plain(eqx.Module):
    """Has no method of that name."""

    child: Any
    x: Any


class Pair(NamedTuple):
    first: Any
    second: Any
