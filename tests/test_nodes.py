"""Which modules are nodes: every container, and Equinox's own plumbing."""

import collections
import dataclasses
import functools
from typing import Any, Generic, NamedTuple, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import chorax
from chorax import call_all_fns, replace, vmap_call_all_fns
from models import Constant, Pair


T = TypeVar("T")


class Mark(eqx.Module):
    x: Any = None

    def step(self):
        return replace(self, x=jnp.ones(()))


def called(tree, **options):
    """The dotted paths of the nodes that a function is applied to, in order."""
    names = []

    def see(node):
        return node, None

    _, _, aux = call_all_fns(tree, see, has_aux=True, **options)
    names.extend(aux)
    return names


@pytest.fixture(autouse=True)
def quiet(recwarn):
    """Looking writes nothing, and that is warned of; elsewhere warnings are errors."""
    import warnings

    warnings.filterwarnings("ignore", message=".*wrote nothing at all")


@jtu.register_pytree_node_class
class Custom:
    def __init__(self, *parts):
        self.parts = parts

    def tree_flatten(self):
        return self.parts, None

    @classmethod
    def tree_unflatten(cls, aux, parts):
        return cls(*parts)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["a", "b"], meta_fields=["n"]
)
@dataclasses.dataclass
class Data:
    a: Any
    b: Any
    n: int = 0


def test_containers():
    tree = {
        "list": [Mark(), [Mark()]],
        "tuple": (Mark(), (Mark(),)),
        "dict": {"b": Mark(), "a": Mark(), "a b.c": Mark()},
        "named": Pair(Mark(), Mark()),
        "ordered": collections.OrderedDict(z=Mark(), a=Mark()),
        "default": collections.defaultdict(list, k=Mark()),
        "custom": Custom(Mark(), Mark()),
        "data": Data(Mark(), Mark()),
        "none": None,
        "leaf": 3,
    }
    assert called(tree) == [
        "custom.0",
        "custom.1",
        "data.a",
        "data.b",
        "default.k",
        "dict.a",
        "dict.a b.c",
        "dict.b",
        "list.0",
        "list.1.0",
        "named.first",
        "named.second",
        "ordered.z",
        "ordered.a",
        "tuple.0",
        "tuple.1.0",
    ]
    model, delta = vmap_call_all_fns(tree, "step", axis_size=2)
    assert len(delta.paths) == 16
    assert type(model["custom"]) is Custom
    assert type(model["named"]) is Pair
    assert list(model["ordered"]) == ["z", "a"]
    assert model["default"].default_factory is list
    assert model["data"].b.x.shape == (2,)


@pytest.mark.parametrize(
    "keys",
    [[1, 2], [True], [(0, "a"), (1, "b")], [0.5], [frozenset({1})], ["a", "b"]],
)
def test_keys_of_dictionaries(keys):
    class Draw(eqx.Module):
        x: Any = None

        def step(self, *, key):
            return replace(self, x=jax.random.normal(key, ()))

    tree = {k: Draw() for k in keys}
    model, delta = vmap_call_all_fns(tree, "step", axis_size=2, key=jax.random.key(0))
    assert list(model) == keys
    assert delta.paths == tuple(f"{k}.x" for k in keys)
    assert len({float(node.x[0]) for node in model.values()}) == len(keys)


def test_static_fields_are_not_walked():
    class Holder(eqx.Module):
        child: Any
        static: Any = eqx.field(static=True)

    assert called(Holder(Mark(), Mark())) == ["child", ""]


def test_plumbing_is_walked_through_and_never_called():
    key = jax.random.key(0)
    linear = eqx.nn.Linear(2, 2, key=key)

    class Model(eqx.Module):
        jit: Any
        vmap: Any
        partial: Any
        method: Any
        index: Any
        grad: Any

        def __init__(self):
            self.jit = eqx.filter_jit(linear)
            self.vmap = eqx.filter_vmap(linear)
            self.partial = eqx.Partial(linear, Mark())
            self.method = Mark().step
            self.index = eqx.nn.StateIndex({"a": Mark()})
            self.grad = eqx.filter_checkpoint(linear)

    names = called(Model())
    assert "" in names
    assert "index" not in names
    assert "jit" not in names
    assert "vmap" not in names
    assert "partial" not in names
    assert "method" not in names
    assert [x for x in names if x.startswith("index")] == ["index.init.a"]
    assert [x for x in names if x.startswith("method")] == ["method.__self__"]
    assert [x for x in names if x.startswith("partial")] == [
        "partial.func",
        "partial.args.0",
    ]
    assert "vmap._fun" in names
    # `eqx.filter_jit` keeps the leaves of what it wraps, and no module.
    assert not [x for x in names if x.startswith("jit")]
    model, _ = vmap_call_all_fns(
        Model(), chorax.reset_parameters, axis_size=3, key=key, node_to_exclude=Mark
    )
    weights = [x for x in jtu.tree_leaves(model) if eqx.is_array(x) and x.ndim == 3]
    assert len(weights) == 3


def test_deleted_state_is_walked_through():
    norm, _ = eqx.nn.make_with_state(eqx.nn.BatchNorm)(3, "batch", mode="batch")
    assert called({"norm": norm}) == ["norm"]


def test_layers_of_equinox_are_nodes():
    key = jax.random.key(0)
    mlp = eqx.nn.MLP(2, 2, 2, 1, key=key)
    assert called(mlp) == ["layers.0", "layers.1", ""]
    names = called(eqx.nn.Sequential([mlp, eqx.nn.Lambda(jnp.tanh)]))
    assert names[-2:] == ["layers.1", ""]
    assert called([eqx.nn.Identity(), eqx.nn.Dropout()]) == ["0", "1"]


def test_users_subclasses_of_anything_are_nodes():
    class MyLinear(eqx.nn.Linear):
        pass

    class MyPartial(eqx.Partial):
        pass

    linear: Any = MyLinear
    linear = linear(1, 1, key=jax.random.key(0))
    partial: Any = MyPartial
    assert called([linear, partial(len)]) == ["0", "1"]


def test_generic_modules():
    class Box(eqx.Module, Generic[T]):
        x: T

        def step(self):
            return replace(self, x=jnp.zeros(2))

    boxes: list[Any] = [Box[int](3), Box(4)]
    model, _ = vmap_call_all_fns(boxes, "step", axis_size=2)
    assert [box.x.shape for box in model] == [(2, 2)] * 2


def test_a_node_without_leaves_is_called():
    class Empty(eqx.Module):
        n: int = eqx.field(static=True, default=0)

        def step(self):
            return replace(self, n=self.n + 1)

    model, delta = call_all_fns({"a": [Empty(), ()]}, "step")
    assert model["a"][0].n == 1
    assert delta.paths == ()
    assert chorax.apply_delta({"a": [Empty(), ()]}, delta)["a"][0].n == 1


def test_wrapped_methods():
    def noisy(method):
        @functools.wraps(method)
        def wrapper(self, *args, **kwargs):
            return method(self, *args, **kwargs)

        return wrapper

    class Node(eqx.Module):
        x: Any
        y: Any

        @eqx.filter_jit
        def jitted(self, *, key):
            return replace(self, x=jax.random.normal(key, ()))

        @noisy
        def wrapped(self, *, key):
            return replace(self, x=jax.random.normal(key, ()))

        @chorax.call_order(1)
        @eqx.filter_jit
        def marked(self, *, key):
            return replace(self, x=jax.random.normal(key, ()))

        @eqx.filter_jit
        @chorax.call_order(1)
        def inner(self, *, key):
            return replace(self, x=jax.random.normal(key, ()))

        @chorax.call_order(1)
        @noisy
        def wrapped_mark(self, *, key):
            return replace(self, x=jax.random.normal(key, ()))

        @property
        def made(self):
            return lambda: replace(self, x=jnp.zeros(()))

    key = jax.random.key(0)
    node = Node(jnp.ones(()), jnp.ones(()))
    expected, _ = vmap_call_all_fns(node, "wrapped", axis_size=2, key=key)
    for name in ("jitted", "marked", "inner", "wrapped_mark"):
        model, delta = vmap_call_all_fns(node, name, axis_size=2, key=key)
        assert model.x.tolist() == expected.x.tolist()
        # What passes through an inner `jit` comes out as another object.
        has_jit = not jax.config.jax_disable_jit  # pyright: ignore[reportAttributeAccessIssue]
        is_jitted = name != "wrapped_mark" and has_jit
        assert delta.paths == (("x", "y") if is_jitted else ("x",))
        assert model.y.shape == ((2,) if is_jitted else ())
    assert call_all_fns(node, "made")[0].x == 0


@pytest.mark.parametrize("name", ["marked", "inner"])
def test_marks_are_seen_through_wrappers(name):
    class Marked(eqx.Module):
        x: Any

        @chorax.call_order(1)
        @eqx.filter_jit
        def marked(self):
            return replace(self, x=self.x + 1)

        @eqx.filter_jit
        @chorax.call_order(1)
        def inner(self):
            return replace(self, x=self.x + 1)

    class Outer(eqx.Module):
        child: Marked

        def marked(self):
            return replace(self, child=replace(self.child, x=self.child.x * 10))

        inner = marked

    model, _ = call_all_fns(Outer(Marked(jnp.ones(()))), name)
    assert model.child.x == 11


def test_inherited_and_overridden_methods():
    class Base(eqx.Module):
        x: Any = None

        @chorax.call_order(5)
        def step(self):
            return replace(self, x=jnp.ones(()))

    class Inherits(Base):
        pass

    class Overrides(Base):
        def step(self):
            return replace(super().step(), x=jnp.zeros(()))

    model, _ = call_all_fns([Inherits(), Overrides()], "step")
    assert [node.x for node in model] == [1, 0]


def test_a_field_that_holds_a_callable():
    class Field(eqx.Module):
        step: Any
        x: Any = 1

    node = Field(lambda: Field(None, jnp.zeros(())))
    model, _ = call_all_fns(node, "step")
    assert model.x == 0


def test_fields_that_were_never_set():
    class Half(eqx.Module):
        x: Any
        y: Any

        def step(self):
            return replace(self, x=jnp.zeros(2))

    half = object.__new__(Half)
    object.__setattr__(half, "x", jnp.ones(2))
    model, delta = vmap_call_all_fns([half], "step", axis_size=2)
    assert delta.paths == ("0.x",)
    assert model[0].x.shape == (2, 2)
    assert not hasattr(model[0], "y")


def test_no_constructor_runs():
    class Strict(eqx.Module):
        x: Any

        def __init__(self, x):
            assert x is not None
            self.x = x

        def __check_init__(self):
            assert eqx.is_array(self.x)

        def step(self):
            return replace(self, x=None)

    model, _ = call_all_fns(Strict(jnp.ones(1)), "step")
    assert model.x is None


class Scalars(NamedTuple):
    a: Any
    b: Any


def test_the_target_may_be_any_tree():
    pair, delta = vmap_call_all_fns(Scalars(Constant(), 5), "step", axis_size=2)
    assert type(pair) is Scalars
    assert pair.b == 5
    assert delta.paths == ("a.x", "a.n")
