"""Random models: trees of modules whose classes are made at run time.

Whatever a method computes is a small whole number, which every floating dtype holds
exactly, and sums of such are exact in any order: so results are to be equal bit for
bit, however they were computed. Classes, shapes and dtypes come from a palette, so that
kinds repeat and compilations are shared.
"""

import functools
import itertools
import types
from collections import OrderedDict
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from hypothesis import settings, strategies as st
from jax.extend.random import define_prng_impl

from chorax import call_order, lanes, replace


T = TypeVar("T")
LANES = 3
# Of an ensemble inside of a tree.
MEMBERS = 2


def mixed(x):
    """The bits of 32-bit words, thrown together: the finaliser of MurmurHash3."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = (x ^ (x >> np.uint32(shift))) * np.uint32(factor)
    return x ^ (x >> np.uint32(16))


def draw_words(key, shape):
    count = jnp.arange(int(np.prod(shape)), dtype=jnp.uint32).reshape(shape)
    return mixed(key[0] ^ mixed(key[1] + count * np.uint32(0x9E3779B9)))


def draw_bits(key, width, shape):
    if width == 64:
        halves = draw_words(key, (2, *shape)).astype(jnp.uint64)
        return (halves[0] << np.uint64(32)) | halves[1]
    return draw_words(key, shape).astype(f"uint{width}")


# As good as any for what is tested here, and compiled in a fraction of the time.
MIXED = define_prng_impl(
    key_shape=(2,),
    seed=lambda seed: jnp.stack([jnp.uint32(0), mixed(jnp.asarray(seed, jnp.uint32))]),
    split=lambda key, shape: draw_words(key, (*shape, 2)),
    random_bits=draw_bits,
    fold_in=lambda key, data: mixed(
        key + mixed(jnp.asarray(data, jnp.uint32) + key[::-1])
    ),
    name="mixed",
    tag="mix",
)


def key_of(seed):
    """A key whose draws are the same alone and in a batch, whatever the default is."""
    return jax.random.key(seed, impl=MIXED if seed else "threefry2x32")


def keys_of(seed):
    return jax.random.split(key_of(seed), LANES)


def is_key(x):
    return eqx.is_array(x) and jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


# What methods are made of.


def fresh(like, key):
    """Drawn, of the same shape and dtype; two numbers if it is no array."""
    if not eqx.is_array(like):
        like = jnp.zeros(2, jnp.float32)
    if is_key(like):
        return jax.random.split(key, like.shape)
    if like.dtype == np.bool_:
        return jax.random.bernoulli(key, 0.5, like.shape)
    drawn = jax.random.randint(key, like.shape, 0, 8)
    if jnp.issubdtype(like.dtype, np.complexfloating):
        drawn = drawn.astype(jnp.float32)
        return jax.lax.complex(drawn, drawn + 1).astype(like.dtype)
    return drawn.astype(like.dtype)


def bump(x, by=1):
    """Another array of that shape and dtype; what is none stays as it is."""
    if not eqx.is_array(x):
        return x
    if is_key(x):
        fold = functools.partial(jax.random.fold_in, data=by)
        for _ in range(x.ndim):
            fold = jax.vmap(fold)
        return fold(x)
    if x.dtype == np.bool_:
        return jnp.logical_xor(x, by % 2 == 1)
    return jnp.asarray(x) + jnp.asarray(by, x.dtype)


def total(tree):
    """The sum of all numbers in a tree."""
    found = jnp.zeros((), jnp.float32)
    for x in jax.tree.leaves(tree):
        if eqx.is_array(x) and not is_key(x):
            found = found + jnp.sum(jnp.real(x).astype(jnp.float32))
    return found


class Planted(eqx.Module):
    """A module that a call puts in the place of a leaf; it has no method."""

    x: Any


def rewrite(self, key):
    # Its own class stays, and so does the class of all that is within.
    return replace(self, below=jax.tree.map(bump, self.below))


def square(self, key):
    x = self.x
    if not eqx.is_array(x) or is_key(x) or x.dtype == np.bool_:
        return replace(self, x=total(self.w))
    return replace(self, x=jnp.asarray(x) * x)


def both(self, key):
    x = jnp.arange(3.0) + 1
    return replace(self, x=x, w=x)


def mark(self, key):
    return replace(self, n=self.n + 1)


ACTIONS = {
    "draw": lambda self, key: replace(self, x=fresh(self.w, key)),
    "read": lambda self, key: replace(self, x=total((self.below, self.w))),
    "draw and read": lambda self, key: replace(
        self, x=total((self.below, fresh(self.x, key)))
    ),
    "write": lambda self, key: replace(self, x=bump(self.x)),
    "square": square,
    "delete": lambda self, key: replace(self, x=None),
    "move": lambda self, key: replace(self, x=self.w, w=self.x),
    "copy": lambda self, key: replace(self, x=self.w),
    "retype": lambda self, key: replace(self, x=jnp.ones((), jnp.int32), n=self.n + 1),
    "a number": lambda self, key: replace(self, x=self.n + 0.5),
    "text": lambda self, key: replace(self, x="text"),
    "pass": lambda self, key: self,
    "mark": mark,
    "constant": lambda self, key: replace(self, x=jnp.arange(3)),
    "numpy": lambda self, key: replace(self, x=np.ones((2, 2), np.float32)),
    "key": lambda self, key: replace(self, x=key),
    "both": both,
    "plant": lambda self, key: replace(self, x=Planted(bump(self.w))),
    "rewrite": rewrite,
}
DRAWS = {"draw", "draw and read", "key"}
# Those that leave structure, shapes and dtypes as they are.
STEADY = ["write", "square", "pass", "rewrite", "draw"]
LEVELS = [None, 0, 3, 9, -1]
FORMS = ["plain", "positional", "wrapped", "inherited", "generic", "any arguments"]

# The labels of nodes in the order of their calls, for who asks for it.
visits: list[Any] = []


class Node(eqx.Module):
    x: Any = None
    w: Any = None
    below: Any = None
    label: Any = None
    n: int = eqx.field(static=True, default=0)

    def __call__(self, x):
        return x


class Typed(Node, Generic[T]):
    pass


def decorated(method):
    @functools.wraps(method)
    def outer(*args, **kwargs):
        return method(*args, **kwargs)

    return outer


@functools.cache
def node_class(action, level=None, form="plain"):
    """The class of nodes that do this, at that level, in a method of that form."""
    act = ACTIONS[action]

    def visited(self, key):
        if self.label is not None:
            visits.append(self.label)
        return act(self, key)

    def optional(self, *, key=None):
        return visited(self, key)

    def keyword(self, *, key):
        return visited(self, key)

    def positional(self, key):
        return visited(self, key)

    def with_others(self, *args, key, **kwargs):
        return visited(self, key)

    asks = {"positional": positional, "any arguments": with_others}
    method: Any = asks.get(form, keyword) if action in DRAWS else optional
    if form == "wrapped":
        method = decorated(method)
    if level is not None:
        method = call_order(level, check_order_boundary=False)(method)
    name = f"{action} {level} {form}".title().replace(" ", "").replace("-", "M")
    bases = (Typed[int],) if form == "generic" else (Node,)
    made = types.new_class(name, bases, {}, lambda body: body.update(step=method))
    return types.new_class(f"Sub{name}", (made,)) if form == "inherited" else made


class Plain(eqx.Module):
    """Has no method of that name."""

    child: Any
    x: Any
    table: Any = eqx.field(static=True, default=None)


class Pair(NamedTuple):
    first: Any
    second: Any


@jtu.register_pytree_node_class
class Bag:
    """A container that JAX knows by registration only."""

    def __init__(self, *items):
        self.items = items

    def tree_flatten(self):
        return self.items, None

    @classmethod
    def tree_unflatten(cls, _, items):
        return cls(*items)


def numbers(shape, dtype):
    def make(i):
        count = int(np.prod(shape))
        values = (np.arange(count) + i) % 4
        # By NumPy, so that nothing is compiled for it.
        return jnp.asarray(values.reshape(shape).astype(dtype))

    return make


ARRAYS = {
    "float32": numbers((2,), jnp.float32),
    "float32 scalar": numbers((), jnp.float32),
    "float32 empty": numbers((0,), jnp.float32),
    "float32 table": numbers((2, 3), jnp.float32),
    "float16": numbers((3,), jnp.float16),
    "bfloat16": numbers((2,), jnp.bfloat16),
    "int32": numbers((2,), jnp.int32),
    "int8 scalar": numbers((), jnp.int8),
    "uint8": numbers((1, 2), jnp.uint8),
    "bool": numbers((2,), jnp.bool_),
    "complex64": numbers((2,), jnp.complex64),
    "key": lambda i: key_of(i + 1),
    "keys": lambda i: jax.random.split(key_of(0), 2),
    "numpy": lambda i: np.arange(2, dtype=np.float32) + i % 4,
    "numpy int": lambda i: np.arange(3, dtype=np.int32) + i % 4,
}
OTHERS = {
    "none": lambda i: None,
    "text": lambda i: f"text {i % 2}",
    "number": lambda i: i % 3 + 0.5,
    "flag": lambda i: i % 2 == 0,
    "function": lambda i: jax.nn.relu if i % 2 else jnp.tanh,
    "odd": lambda i: frozenset({i % 2}),
}
LEAVES = {**ARRAYS, **OTHERS}


CONTAINERS = {
    "list": lambda below: list(below),
    "tuple": lambda below: tuple(below),
    "dict": lambda below: {f"k{j}": x for j, x in enumerate(below)},
    "dotted dict": lambda below: {f"a.{9 - j}": x for j, x in enumerate(below)},
    "empty name": lambda below: {"": below[0], "b": list(below[1:])},
    "int dict": lambda below: {3 - j: x for j, x in enumerate(below)},
    "float dict": lambda below: {j - 0.5: x for j, x in enumerate(below)},
    "tuple dict": lambda below: {(j, "k"): x for j, x in enumerate(below)},
    "bytes dict": lambda below: {bytes([j]): x for j, x in enumerate(below)},
    "numpy dict": lambda below: {np.int64(j): x for j, x in enumerate(below)},
    "ordered": lambda below: OrderedDict((f"z{-j}", x) for j, x in enumerate(below)),
    "pair": lambda below: Pair(below[0], list(below[1:])),
    "bag": lambda below: Bag(*below),
    "plain": lambda below: Plain(list(below), jnp.arange(2.0)),
    "unhashable": lambda below: Plain(list(below), None, table=[1, {"a": 2}]),
    "partial": lambda below: eqx.Partial(jnp.add, *below),
    "vmapped": lambda below: eqx.filter_vmap(eqx.Partial(jnp.add, *below)),
    "jitted": lambda below: eqx.filter_jit(eqx.Partial(jnp.add, *below)),
    "empty": lambda below: [[], {}, (), None, *below],
}


def ensemble(below, choices):
    """Two members that differ in their numbers, with their lanes along these axes."""
    batched, axes, _ = with_lanes([*below, jnp.arange(2.0)], choices, MEMBERS)
    return lanes.Ensemble(batched, axes if jtu.tree_leaves(axes) else eqx.if_array(0))


ENSEMBLES = {
    "in front": [0],
    "behind": [-1],
    "here and there": [1, 0, None, -1],
}

leaf_names = st.sampled_from(sorted(LEAVES))
array_names = st.sampled_from(sorted(ARRAYS))


def parts_of(actions):
    """A strategy of shapes: descriptions of trees, from which `build` makes them."""
    nodes = st.tuples(
        st.just("node"),
        st.sampled_from(sorted(actions)),
        st.sampled_from(LEVELS),
        st.sampled_from(FORMS),
        st.sampled_from(sorted(LEAVES)),
        array_names,
    )
    single = st.one_of(
        st.tuples(nodes, st.just(())),
        st.tuples(nodes, st.just(())),
        st.tuples(st.tuples(st.just("leaf"), leaf_names), st.just(())),
        st.tuples(st.just(("shared",)), st.just(())),
    )
    around = st.one_of(
        nodes,
        st.tuples(st.just("container"), st.sampled_from(sorted(CONTAINERS))),
        st.tuples(st.just("ensemble"), st.sampled_from(sorted(ENSEMBLES))),
    )
    return st.recursive(
        single,
        lambda inner: st.tuples(
            around, st.lists(inner, min_size=1, max_size=3).map(tuple)
        ),
        max_leaves=6 if settings.default.max_examples > 10 else 4,  # pyright: ignore[reportOptionalMemberAccess]
    )


shapes = parts_of(ACTIONS)
steady_shapes = parts_of(STEADY)


_built = itertools.count(1)


def build(shape, with_labels=False):
    """The tree of a shape; arrays are objects of their own, but for shared ones."""
    # XLA maps memory for each program, and an operating system admits so many maps.
    if next(_built) % 250 == 0:
        jax.clear_caches()
    counter = itertools.count()
    shared = jnp.arange(2.0)

    def make(part):
        what, below = part
        i = next(counter)
        if what[0] == "shared":
            return shared
        if what[0] == "leaf":
            return LEAVES[what[1]](i)
        children = [make(x) for x in below]
        if what[0] == "container":
            return CONTAINERS[what[1]](children)
        if what[0] == "ensemble":
            return ensemble(children, ENSEMBLES[what[1]])
        _, action, level, form, x, w = what
        label = f"node {i}" if with_labels else None
        cls = node_class(action, level, form)
        return cls(LEAVES[x](i), ARRAYS[w](i + 1), children or None, label)

    # A node to call, whatever was drawn.
    last = node_class("draw")(w=jnp.zeros(1), label="node" if with_labels else None)
    return [make(shape), last]


axis_choices = st.lists(st.sampled_from([None, 0, 0, 1, -1]), min_size=1, max_size=5)


def with_lanes(tree, choices, size=LANES):
    """A batched model, and the lane axis of each leaf as a tree and in a list."""
    leaves, structure = jtu.tree_flatten(tree)
    out, axes = [], []
    for x, choice in zip(leaves, itertools.cycle(choices)):
        axis = choice if eqx.is_array(x) else None
        if axis is not None and axis > x.ndim:
            axis = 0
        axes.append(axis)
        if axis is None:
            out.append(x)
        elif isinstance(x, np.ndarray):
            out.append(np.stack([x + i for i in range(size)], axis).astype(x.dtype))
        else:
            out.append(jnp.stack([bump(x, i) for i in range(size)], axis))
    return jtu.tree_unflatten(structure, out), jtu.tree_unflatten(structure, axes), axes
