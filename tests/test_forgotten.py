"""What a call was given dies when its user lets go of it; what is remembered of a call
keeps nothing alive, or not for long."""

import functools
import gc
import weakref
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

import chorax
from chorax import call_all_fns, replace, vmap_call_all_fns
from counts import compiled
from stress import memories


class Node(eqx.Module):
    x: Any
    f: Any = None
    g: Any = None

    def step(self):
        return replace(self, x=self.x * 2)

    def use(self, f=None):
        return replace(self, x=(f or self.f)(self.x))

    def swap(self):
        return replace(self, f=self.g, g=self.f)

    def wrap(self):
        f = self.f
        return replace(self, f=lambda x: 2 * f(x))

    def exchanged(self):
        return self


class Frozen(eqx.Module):
    x: Any
    f: Any = eqx.field(static=True)

    def use(self):
        return replace(self, x=jnp.ones(2))


class Holder:
    """Anybody's object: it can be called, and holds an array."""

    def __init__(self):
        self.array = jnp.arange(2.0)

    def __call__(self, x):
        return x + self.array

    def change(self, node):
        return replace(node, x=node.x + self.array)

    def keeps(self, _):
        return self.array.shape == ()


class Keeps(chorax.filters.Predicate):
    def __init__(self):
        self.array = jnp.arange(2.0)

    def __call__(self, path, x, tags=frozenset()):
        return self.array.shape == ()


def closure():
    """A function that closes over an array, and the array."""
    array = jnp.arange(2.0)
    return (lambda x: x + array), array


def of_node(f):
    return lambda node: replace(node, x=f(node.x))


def node(f=None, g=None):
    return Node(jnp.ones(2), f, g)


def use_models():
    net = [node(), node()]
    model, delta = vmap_call_all_fns(net, "step", axis_size=3)
    return [*net, *model, delta, model[0].x, delta.values[0].x]


def use_closure():
    f, array = closure()
    g = of_node(f)
    call_all_fns([node()], g)
    return [f, g, array]


def use_closure_in_jit():
    f, array = closure()
    g = of_node(f)
    jax.jit(lambda net: call_all_fns(net, g)[0])([node()])
    return [f, g, array]


def use_partial():
    f, array = closure()
    g = functools.partial(lambda f, node: replace(node, x=f(node.x)), f)
    call_all_fns([node()], g)
    return [f, g, array]


def use_jitted():
    f, array = closure()
    g = jax.jit(of_node(f))
    call_all_fns([node()], g)
    return [f, g, array]


def use_bound_method():
    holder = Holder()
    call_all_fns([node()], holder.change)
    return [holder, holder.array]


def use_object():
    class Own(Holder):
        def __call__(self, x):
            return self.change(x)

    holder = Own()
    call_all_fns([node()], holder)
    return [holder, holder.array, Own]


def use_function_that_fails():
    f, array = closure()

    def fails(node):
        raise RuntimeError(f"of a {type(node).__name__}, {f}")

    with pytest.raises(RuntimeError, match="of a Node"):
        vmap_call_all_fns([node()], fails, axis_size=3)
    return [f, array, fails]


def use_rule():
    f, array = closure()
    rule = of_node(f)
    dispatcher = functools.singledispatch(lambda node: node)
    dispatcher.register(Node, rule)
    call_all_fns([node()], dispatcher)
    return [f, array, rule, dispatcher]


def use_leaf(f):
    call_all_fns([node(f)], "use")
    return [f]


def use_argument(f):
    call_all_fns([node()], "use", args=(f,))
    return [f]


def use_moved_leaves():
    (f, one), (g, other) = closure(), closure()
    for _ in range(2):
        call_all_fns([node(f, g)], "swap")
    return [f, g, one, other]


def use_filter(f):
    options: dict[str, Any] = {"state_to_exclude": f, "node_to_exclude": f}
    vmap_call_all_fns([node()], "step", axis_size=3, **options)
    return [f]


def use_closed_filter():
    _, array = closure()
    return [*use_filter(lambda path, x: array.shape == ()), array]


def use_held_filter():
    holder = Holder()
    use_filter(holder.keeps)
    return [holder]


def use_callback():
    callback, array = closure()
    use_argument(lambda x: jax.pure_callback(callback, x, x))
    return [callback, array]


def use_exchanged_method():
    f, array = closure()
    before, method = Node.exchanged, of_node(f)
    type.__setattr__(Node, "exchanged", method)
    call_all_fns([node()], "exchanged")
    call_all_fns({"a": node()}, "exchanged")
    type.__setattr__(Node, "exchanged", before)
    return [f, array, method]


def use_unhashable():
    holder = Holder()
    call_all_fns([Frozen(jnp.ones(2), [holder])], "use")
    return [holder]


FORGOTTEN: dict[str, Any] = {
    "models": use_models,
    "closure": use_closure,
    "closure in jit": use_closure_in_jit,
    "partial": use_partial,
    "jitted": use_jitted,
    "bound method": use_bound_method,
    "object": use_object,
    "function that fails": use_function_that_fails,
    "rule": use_rule,
    "leaf": lambda: use_leaf(closure()[0]),
    "jitted leaf": lambda: use_leaf(jax.jit(closure()[0])),
    "object as leaf": lambda: use_leaf(Holder()),
    "moved leaves": use_moved_leaves,
    "argument": lambda: use_argument(closure()[0]),
    "object as argument": lambda: use_argument(Holder()),
    "filter": use_closed_filter,
    "bound filter": use_held_filter,
    "predicate": lambda: use_filter(Keeps()),
    "callback": use_callback,
    "exchanged method": use_exchanged_method,
    "unhashable": use_unhashable,
}


def dead(references):
    gc.collect()
    return [reference() is None for reference in references]


@pytest.mark.parametrize("name", FORGOTTEN)
def test_what_is_forgotten(name, request):
    """What a call was given dies when its user lets go of it."""
    if name == "callback":  # JAX itself keeps one that runs without jit.
        request.getfixturevalue("needs_jit")
    found = [weakref.ref(x) for x in FORGOTTEN[name]()]
    assert dead(found) == [True] * len(found)


def test_a_function_made_anew_is_not_compiled_anew():
    """It is traced again, but what comes of it is compiled already."""
    counts = []
    with compiled() as programs:
        for _ in range(3):
            call_all_fns([node()], lambda node: replace(node, x=node.x * 3 - 1))
            gc.collect()
            counts.append(len(programs))
    assert counts[0] > 0
    assert counts == counts[:1] * 3


def use_static():
    f, array = closure()
    call_all_fns([Frozen(jnp.ones(2), f)], "use")
    return [f, array]


def use_wrapped():
    f, array = closure()
    call_all_fns([node(f)], "wrap")
    return [f, array]


@pytest.mark.usefixtures("needs_jit")
@pytest.mark.parametrize("use", [use_static, use_wrapped])
def test_what_stays_for_a_while(use):
    """What is static, and what methods make, is held by nothing but bounded memories:
    the ones that the stress command fills up."""
    found = [weakref.ref(x) for x in use()]
    assert dead(found) == [False] * len(found)
    for memory in memories().values():
        memory.cache_clear()
    assert dead(found) == [True] * len(found)


def test_memories_are_bounded():
    use_models()
    found = memories().values()
    assert len(found) > 5
    for memory in found:
        assert memory.cache_info().maxsize is not None


@pytest.mark.parametrize("value", [[1], {1: 1}, {1}])
def test_static_values_that_change_in_place(value):
    """They can't be hashed, so nothing is remembered of them, as the README says."""

    class Table(eqx.Module):
        table: Any = eqx.field(static=True)
        x: Any = None

        def step(self):
            return replace(self, x=jnp.asarray(sum(self.table)))

    one, other = Table(value), Table(type(value)(value))
    first, second = call_all_fns([one, other], "step")[0]
    assert first.table is one.table
    assert second.table is other.table
    assert [first.x.tolist(), second.x.tolist()] == [1, 1]
    value.clear()
    first, second = call_all_fns([one, other], "step")[0]
    assert [first.x.tolist(), second.x.tolist()] == [0, 1]
