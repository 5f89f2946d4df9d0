"""Which classes a rule of `reset_parameters` holds for."""

import abc
import collections.abc
import functools
import inspect
import pickle
from typing import Any, cast, Protocol, runtime_checkable

import beartype
import equinox as eqx
import jax
import jax.numpy as jnp
import jaxtyping
import pytest

import chorax
import oracle
from chorax import reset_parameters


default: Any = reset_parameters.dispatch(object)


@pytest.fixture(autouse=True)
def own_rules():
    """Removes what a test has registered."""
    registry = inspect.getclosurevars(reset_parameters.register).nonlocals["registry"]
    before = dict(registry)
    yield
    registry.clear()
    registry.update(before)
    reset_parameters.register(
        object, default
    )  # This clears the cache of the dispatcher.


class Zeros(eqx.nn.Linear):
    """With its own constructor."""

    def __init__(self, in_features, out_features, *, key):
        super().__init__(in_features, out_features, key=key)
        self.weight = jnp.zeros_like(self.weight)


class Bigger(eqx.nn.Conv2d):
    """With one more argument."""

    gain: float

    def __init__(self, gain, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.gain = gain


class Named(eqx.nn.Linear):
    """With one more field and a method, but its base's constructor."""

    name: str = "of no say"

    def size(self):
        return self.weight.size


with pytest.warns(UserWarning, match="will not be"):

    class NotRun(eqx.nn.Linear):
        def __post_init__(self):
            raise AssertionError


# Decorated as the import hook of a type checker does it.
@jaxtyping.jaxtyped(typechecker=beartype.beartype)
class Typed(eqx.nn.Linear):
    pass


@jaxtyping.jaxtyped(typechecker=beartype.beartype)
class TypedZeros(Zeros):
    pass


def test_subclasses_that_inherit_the_constructor_are_drawn(key):
    old, new = jax.random.split(key)
    built = eqx.nn.Linear(2, 3, key=new)
    kinds: Any = (Named, NotRun, Typed)
    for kind in kinds:
        layer: Any = kind(2, 3, key=old)
        fresh = reset_parameters(layer, key=new)
        assert type(fresh) is type(layer)
        oracle.assert_same((fresh.weight, fresh.bias), (built.weight, built.bias))


@pytest.mark.parametrize("kind", [Zeros, TypedZeros])
def test_subclasses_with_a_constructor_of_their_own_are_left_alone(kind, key):
    layer = kind(2, 3, key=key)
    assert reset_parameters(layer, key=key) is layer
    assert reset_parameters.dispatch(kind) is default
    model = [layer, eqx.nn.Linear(2, 3, key=key)]
    options: Any = {"axis_size": 2, "key": key}
    with pytest.warns(UserWarning, match=f"There is no rule for {kind.__name__}"):
        fresh, delta = chorax.vmap_call_all_fns(model, reset_parameters, **options)
    assert delta.paths == ("1.weight", "1.bias")
    assert fresh[0].weight is layer.weight
    found = chorax.explain(model, reset_parameters, **options)
    reasons = [f"no rule for {kind.__name__}, holds 2 arrays of its own", ""]
    assert [call.reason for call in found.calls] == reasons


def test_a_constructor_with_more_parameters_is_one_of_its_own(key):
    layer = Bigger(2.0, 1, 2, 3, key=key)
    assert reset_parameters(layer, key=key) is layer
    assert reset_parameters.dispatch(eqx.nn.Conv2d) is not default


def of_package(name: str, cls: Any) -> Any:
    cls.__module__ = name
    return cls


def other(node, *, key):
    return chorax.replace(node, weight=node.weight + 1)


def test_the_rule_of_a_package_holds_in_all_of_it(key):
    class Base(Zeros):
        def __init__(self, key):
            super().__init__(2, 3, key=key)

    class Mine(Base):
        def __init__(self, key):
            super().__init__(key)

    class Theirs(Base):
        def __init__(self, key):
            super().__init__(key)

    reset_parameters.register(of_package("mine.layers", Base), other)
    of_package("mine.models.deep", Mine)
    of_package("minerva", Theirs)
    assert reset_parameters.dispatch(Mine) is other
    assert reset_parameters.dispatch(Theirs) is default
    assert (reset_parameters(Mine(key), key=key).weight == 1).all()
    assert (reset_parameters(Theirs(key), key=key).weight == 0).all()


def test_the_next_rule_that_holds_is_taken():
    class Theirs(Zeros):
        def __init__(self):
            super().__init__(2, 3, key=jax.random.key(0))

    class Mine(Theirs):
        def __init__(self):
            super().__init__()

    of_package("theirs", Theirs)
    for kind, rule in [(Theirs, chorax.replace), (Zeros, other), (object, print)]:
        reset_parameters.register(kind, rule)
    assert reset_parameters.dispatch(Theirs) is chorax.replace
    assert reset_parameters.dispatch(Mine) is other
    assert reset_parameters.dispatch(Bigger) is print


class Point(eqx.Module):
    x: Any
    y: Any = 0


def subclasses_of_point():
    class Same(Point):
        def norm(self):
            return self.x + self.y

    class Later(Point):
        y: Any = 1

    class More(Point):
        z: Any = 0

    class Checked(Point):
        def __post_init__(self):
            self.x = jnp.asarray(self.x)

    class CheckedAgain(Checked):
        def __post_init__(self):
            self.x = jnp.zeros(())

    class Own(Point):
        def __init__(self):
            self.x, self.y = 0, 0

    @jaxtyping.jaxtyped(typechecker=beartype.beartype)
    class Hooked(Point):
        pass

    return (Same, Later, Hooked), (More, Checked, CheckedAgain, Own)


def test_constructors_that_dataclasses_make():
    reset_parameters.register(Point, other)
    inheriting, others = subclasses_of_point()
    for kind in (*inheriting, *others):
        assert reset_parameters.dispatch(kind) is other  # They are in one package.
        of_package("theirs", kind)
    assert {reset_parameters.dispatch(kind) for kind in inheriting} == {other}
    assert {reset_parameters.dispatch(kind) for kind in others} == {default}
    reset_parameters.register(of_package("others", others[1]), other)
    assert reset_parameters.dispatch(others[2]) is default


class Abstract(eqx.Module):
    x: eqx.AbstractVar[Any]

    @abc.abstractmethod
    def size(self): ...


class Mark(abc.ABC):  # noqa: B024
    pass


@runtime_checkable
class Sized(Protocol):
    def size(self) -> int: ...


@pytest.mark.parametrize(
    "kind", [object, eqx.Module, Abstract, Mark, Sized, collections.abc.Callable]
)
def test_a_rule_for_what_has_no_constructor_holds_for_all(kind):
    class Concrete(Abstract, Mark):
        x: Any

        def __init__(self, x):
            self.x = x

        def size(self):
            return 1

        def __call__(self):
            return self.x

    of_package("theirs", Concrete)
    reset_parameters.register(kind, other)
    assert reset_parameters.dispatch(Concrete) is other
    # A rule for the class itself takes precedence.
    assert reset_parameters.dispatch(eqx.nn.Linear) is not other


def test_it_has_the_face_of_a_singledispatch_function(key):
    plain: Any = functools.singledispatch(lambda node, *, key: node)
    assert vars(plain).keys() <= vars(reset_parameters).keys()

    class One(eqx.Module):
        weight: Any = 0.0

    class Two(One):
        pass

    class Three(eqx.Module):
        weight: Any = 0.0

    class Four(Three):
        pass

    @reset_parameters.register(One)
    def of_one(node, *, key):
        return chorax.replace(node, weight=1.0)

    @reset_parameters.register
    def of_two(node: Two, *, key):
        return chorax.replace(node, weight=2.0)

    @reset_parameters.register
    def of_more(node: Three | Four, *, key):
        return chorax.replace(node, weight=3.0)

    for kind, rule in [(One, of_one), (Two, of_two), (Four, of_more)]:
        assert reset_parameters.registry[kind] is rule
        assert reset_parameters.dispatch(kind) is rule
    weights = [reset_parameters(x(), key=key).weight for x in (One, Two, Three, Four)]
    assert weights == [1.0, 2.0, 3.0, 3.0]
    with pytest.raises(TypeError, match="Invalid"):
        reset_parameters.register(3, of_one)


def test_it_is_a_function_like_any_other():
    assert pickle.loads(pickle.dumps(reset_parameters)) is reset_parameters
    assert list(inspect.signature(reset_parameters).parameters) == ["node", "key"]
    assert inspect.isfunction(reset_parameters)
    assert reset_parameters.__name__ == "reset_parameters"
    assert reset_parameters.__doc__.startswith("Draws a layer's parameters afresh")
    with pytest.raises(TypeError, match="argument: 'node'"):
        cast(Any, reset_parameters)()
