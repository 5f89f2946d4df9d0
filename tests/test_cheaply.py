"""What is compiled cheaply comes to the same bits, and where it can't be it is not."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
from chorax import call_all_fns, replace, vmap_call_all_fns
from chorax._plan._work import is_simple, work_of
from chorax._run._compile import Compiled
from layers import LAYERS
from rows import quick


pytestmark = pytest.mark.usefixtures("needs_jit")
# XLA's own, whatever the flags of this process are.
DEFAULT = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
}
SHAPE = (17, 13)


def drawn(key, shape=SHAPE):
    return jax.random.normal(key, shape)


OPERATIONS: dict[str, Any] = {
    "normal": drawn,
    "uniform": lambda k: jax.random.uniform(k, SHAPE, minval=-0.3, maxval=0.7),
    "bernoulli": lambda k: jax.random.bernoulli(k, 0.3, SHAPE),
    "categorical": lambda k: jax.random.categorical(k, jnp.arange(9.0)),
    "permutation": lambda k: jax.random.permutation(k, 40),
    "truncated": lambda k: jax.random.truncated_normal(k, -2.0, 2.0, SHAPE),
    "exponential": lambda k: jax.random.exponential(k, SHAPE),
    "beta": lambda k: jax.random.beta(k, 2.0, 3.0, (5,)),
    "poisson": lambda k: jax.random.poisson(k, 3.0, (6,)),
    "gumbel": lambda k: jax.random.gumbel(k, SHAPE),
    "orthogonal": lambda k: jax.nn.initializers.orthogonal()(k, (9, 9)),
    "glorot": lambda k: jax.nn.initializers.glorot_normal()(k, SHAPE),
    "half": lambda k: jax.random.normal(k, SHAPE, jnp.bfloat16),
    "scaled": lambda k: drawn(k) * 0.3 + 1.7,
    "sum": lambda k: drawn(k).sum(0),
    "variance": lambda k: drawn(k).var(0),
    "softmax": lambda k: jax.nn.softmax(drawn(k)),
    "gelu": lambda k: jax.nn.gelu(drawn(k)),
    "product": lambda k: jnp.einsum("ij,kj->ik", drawn(k), drawn(k)),
    "convolution": lambda k: jax.lax.conv(
        drawn(k, (1, 3, 12, 12)), drawn(k, (4, 3, 3, 3)), (1, 1), "SAME"
    ),
    "fft": lambda k: jnp.abs(jnp.fft.fft(drawn(k))),
    "solve": lambda k: jnp.linalg.solve(drawn(k, (6, 6)) + 6 * jnp.eye(6), jnp.ones(6)),
    "singular values": lambda k: jnp.linalg.svd(drawn(k, (6, 5)))[1],
    "sort": lambda k: jnp.sort(drawn(k), 0),
    "loop": lambda k: jax.lax.fori_loop(
        0, 9, lambda i, x: x * 0.9 + jnp.sin(x), drawn(k)
    ),
}


def compared(function, *args):
    """The bits of a function compiled cheaply, and by XLA's own options."""
    jit: Any = jax.jit
    cheap = Compiled(function)(True, *args)
    return [
        [np.asarray(x).tobytes() for x in jax.tree_util.tree_leaves(made)]
        for made in (cheap, jit(function, compiler_options=DEFAULT)(*args))
    ]


@pytest.mark.parametrize(
    "name", quick(OPERATIONS, ["normal", "scaled", "product", "loop"])
)
def test_operations(name):
    keys = jax.random.split(jax.random.key(0, impl="threefry2x32"), 24)
    cheap, default = compared(jax.vmap(OPERATIONS[name]), keys)
    assert cheap == default


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers(name):
    key = jax.random.key(0, impl="threefry2x32")
    layer = LAYERS[name](key)
    if isinstance(layer, tuple):
        layer = layer[0]
    arrays, static = eqx.partition(layer, eqx.is_array)

    def draw(keys):
        def one(key):
            new = chorax.reset_parameters(eqx.combine(arrays, static), key=key)
            return eqx.filter(new, eqx.is_array)

        return jax.vmap(one)(keys)

    cheap, default = compared(draw, jax.random.split(key, 5))
    assert cheap == default


class Cell(eqx.Module):
    w: jax.Array
    x: Any = None

    def step(self, *, key):
        return replace(self, x=jax.random.normal(key, (3,)) * self.w)


def test_under_transformations_of_calls_outside_of_a_jit(lane_key):
    """JAX takes no compiler options where tracers go in, or inside of a trace."""

    def total(w: Any) -> Any:
        net = [Cell(w), Cell(w * 2)]
        model, _ = vmap_call_all_fns(net, "step", axis_size=2, key=lane_key)
        return sum(node.x.sum() for node in model)

    w: Any = jnp.ones(3)
    value = total(w)
    found: list[Any] = [
        jax.grad(total)(w).sum(),
        jax.linearize(total, w)[1](w),
        jax.jvp(total, (w,), (w,))[1],
        jax.vmap(total)(w[None])[0],
        jax.lax.scan(lambda c, _: (total(c) * w, None), w, None, length=1)[0][0],
        jax.checkpoint(total)(w),
        jax.jit(total)(w),
    ]
    assert np.allclose(found, float(value), rtol=1e-5)


def test_methods_that_close_over_what_is_differentiated(lane_key):
    """There tracers go in that are no leaf, no argument and no key."""

    def total(w: Any) -> Any:
        def shift(node: Cell, *, key: Any) -> Cell:
            return replace(node, x=jax.random.normal(key, (3,)) * w)

        net = [Cell(jnp.ones(3)), Cell(jnp.zeros(3))]
        model, _ = vmap_call_all_fns(net, shift, axis_size=2, key=lane_key)
        return sum(node.x.sum() for node in model)

    w: Any = jnp.full(3, 2.0)
    slope = jax.grad(total)(w)
    assert np.allclose((slope * w).sum(), total(w), rtol=1e-5)
    assert np.allclose(jax.linearize(total, w)[1](w), total(w), rtol=1e-5)
    assert np.allclose(jax.vmap(total)(w[None]), total(w), rtol=1e-5)


def test_in_a_key_that_is_traced():
    def draw(words):
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        return call_all_fns(Cell(jnp.ones(3)), "step", key=key)[0].x

    words = jnp.zeros((4, 2), jnp.uint32)
    assert jax.vmap(draw)(words).shape == (4, 3)


def test_what_is_little_and_what_is_simple():
    def trace(function, *shapes):
        return jax.make_jaxpr(function)(*map(jnp.ones, shapes))

    assert work_of(trace(lambda x: x + 1, (8,))) == 8
    assert work_of(trace(jnp.matmul, (4, 5), (5, 6))) >= 4 * 5 * 6
    loop = trace(lambda x: jax.lax.fori_loop(0, 100, lambda i, x: x * 2, x), (8,))
    assert work_of(loop) >= 800
    assert is_simple(trace(lambda x: jax.nn.relu(x) + jnp.zeros(8), (8,)))
    assert not is_simple(trace(jnp.matmul, (4, 5), (5, 6)))
    assert not is_simple(loop)
    assert not is_simple(jax.make_jaxpr(jax.random.normal)(jax.random.key(0)))
