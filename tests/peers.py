"""Trees of nodes, the same here, in brainstate and in Flax NNX."""

import contextlib
import functools
import importlib
import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np

from chorax import call_order, replace


with warnings.catch_warnings():
    # Of what newer releases of JAX have moved.
    warnings.simplefilter("ignore")
    brainstate: Any = importlib.import_module("brainstate")
    nnx: Any = importlib.import_module("flax.nnx")

# Newer releases of NNX ask for these in place of plain containers.
as_list: Any = getattr(nnx, "List", list)
as_dict: Any = getattr(nnx, "Dict", dict)


@contextlib.contextmanager
def lenient() -> Iterator[None]:
    """The peers' own layers are written for JAX's defaults, and objects of brainstate
    hold tracers while it traces."""
    with (
        warnings.catch_warnings(),
        jax.check_tracer_leaks(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        warnings.simplefilter("ignore")
        yield


def nnx_modules(net):
    # Older releases have it as a method only.
    return nnx.iter_modules(net) if hasattr(nnx, "iter_modules") else net.iter_modules()


def nnx_values(net, *filters) -> dict[str, Any]:
    """A state dict."""
    rows = nnx.to_flat_state(nnx.state(net, *filters))
    return {dotted(path): variable[...] for path, variable in rows}


def brainstate_values(net) -> dict[str, Any]:
    """A state dict."""
    return {dotted(path): state.value for path, state in net.states().items()}


def dotted(path) -> str:
    return ".".join(map(str, path))


def normals(*shapes, seed=0):
    """Weights and inputs that no library draws."""
    draw = np.random.default_rng(seed)
    return [jnp.asarray(draw.normal(size=shape), jnp.float32) for shape in shapes]


class Spec(NamedTuple):
    """A node: its number, the level of its methods (`"absent"`: it has none), and what
    is below it, in a list or a dictionary."""

    number: int
    level: Any = None
    below: Any = None


def random_spec(seed, levels=(None, 0, 1, 4), children_first=False) -> Spec:
    """A tree of up to 13 nodes. With `children_first` no node is of a later level than
    the one around it."""
    draw = random.Random(seed)
    numbers = iter(range(100))

    def make(depth: int, allowed: tuple) -> Spec:
        number = next(numbers)
        is_plain = number > 0 and draw.random() < 0.15
        level = "absent" if is_plain else draw.choice(allowed)
        if children_first and not is_plain:
            allowed = allowed[: allowed.index(level) + 1]
        count = draw.randint(1, 3) if depth else 0
        below: Any = [make(depth - 1, allowed) for _ in range(count)]
        if draw.random() < 0.5:
            names = draw.sample(["a", "b", "c", "d"], count)
            below = dict(zip(names, below, strict=True))
        return Spec(number, level, below or None)

    return make(2, levels)


def _built(below, build, a_list: Any = list, a_dict: Any = dict):
    if isinstance(below, dict):
        return a_dict({name: build(child) for name, child in below.items()})
    return a_list([build(child) for child in below]) if below else None


def _state_of(number, by, below, kind, value):
    """What a node writes: its number, and the sum of what those below have by now."""
    x = jnp.arange(1 + number % 3, dtype=jnp.int32) + number * by
    for node in jtu.tree_leaves(below, is_leaf=lambda node: isinstance(node, kind)):
        if getattr(node, "x", None) is not None:
            x = x + jnp.sum(value(node.x), dtype=jnp.int32)
    return x


def drawn(key, shape):
    """Draws that are whole numbers, so that sums of them are exact."""
    return jax.random.bits(key, shape, jnp.uint8).astype(jnp.int32)


class Ours(eqx.Module):
    """A node without methods."""

    number: int = eqx.field(static=True)
    visit: Callable = eqx.field(static=True)
    below: Any
    x: Any = None
    odd = 0.5

    @property
    def tag(self):
        return f"{self.number % 3}"


class Theirs(brainstate.nn.Module):
    """A node without methods."""

    def __init__(self, number, visit, below):
        super().__init__()
        self.number, self.visit, self.below = number, visit, below
        self.odd, self.tag = 0.5, f"{number % 3}"


class NnxPlain(nnx.Module):
    """A node without methods."""

    def __init__(self, below):
        self.below = below


class Nnx(NnxPlain):
    """A node that draws."""

    def __init__(self, number, below):
        super().__init__(below)
        self.number = number
        self.x = nnx.Variable(jnp.zeros(1 + number % 3, jnp.int32))

    def draw(self, key):
        x = _state_of(self.number, 1, self.below, NnxPlain, lambda x: x[...])
        self.x[...] = x + drawn(key, x.shape)


@functools.cache
def our_class(level):
    def make(self, by=1):
        self.visit(self.number)
        x = _state_of(self.number, by, self.below, Ours, lambda x: x)
        return replace(self, x=x)

    def draw(self, *, key):
        made = make(self)
        return replace(made, x=made.x + drawn(key, made.x.shape))

    methods = {"make": make, "draw": draw}
    return type("Node", (Ours,), _marked(call_order, level, methods))


@functools.cache
def their_class(level):
    def make(self, by=1):
        self.visit(self.number)
        x = _state_of(self.number, by, self.below, Theirs, lambda state: state.value)
        self.x = brainstate.ShortTermState(x)

    mark = brainstate.nn.call_order
    return type("Node", (Theirs,), _marked(mark, level, {"make": make}))


def _marked(mark, level, methods):
    if level is None:
        return methods
    levels = {} if level == "absent" else methods
    return {name: mark(level)(method) for name, method in levels.items()}


def make_ours(spec: Spec, visit: Callable = id) -> Any:
    below = _built(spec.below, lambda child: make_ours(child, visit))
    return our_class(spec.level)(spec.number, visit, below)


def make_theirs(spec: Spec, visit: Callable = id) -> Any:
    below = _built(spec.below, lambda child: make_theirs(child, visit))
    return their_class(spec.level)(spec.number, visit, below)


def make_nnx(spec: Spec) -> Any:
    below = _built(spec.below, make_nnx, as_list, as_dict)
    return NnxPlain(below) if spec.level == "absent" else Nnx(spec.number, below)
