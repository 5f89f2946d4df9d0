"""What is told of bad use, beyond the tables of mistakes (see `test_misuse.py`)."""

import dataclasses
import re
import warnings
from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
import pytest

import chorax
from chorax import call_all_fns, call_order, replace, vmap_call_all_fns
from models import Plain


KEY = jax.random.key(0)


class Count(eqx.Module):
    """Tells whether it was ever called."""

    x: Any = None

    def step(self):
        RUNS.append(1)
        return replace(self, x=jnp.zeros(2))

    def add(self, other):
        return replace(self, x=jnp.zeros(2) + other)


RUNS: list[int] = []
NET = {"a": [Count(), Plain(Count(), jnp.ones(3))]}


def call(target=NET, name: Any = "step", **options):
    options.setdefault("fn_if_not_exist", "pass")
    return vmap_call_all_fns(target, name, **{"axis_size": 4, **options})


def test_a_subclass_is_another_class():
    class Becomes(Count):
        def step(self):
            return Sub(self.x)

    class Sub(Becomes):
        pass

    with pytest.raises(TypeError, match="must return a Becomes, but returned a Sub"):
        call_all_fns(Becomes(), "step")


def test_a_missing_method_is_warned_of():
    with pytest.warns(UserWarning, match=r"^Plain at `a\.1` has no method `step`") as w:
        model, _ = call(fn_if_not_exist="warn")
    assert [x.filename for x in w] == [__file__]
    assert model["a"][1].child.x.shape == (4, 2)


class Last(eqx.Module):
    @call_order(1)
    def step(self):
        return self


def test_a_node_that_an_outer_call_removed_names_the_outer():
    class Outer(eqx.Module):
        child: Any

        def step(self):
            return replace(self, child=[])

    with pytest.raises(ValueError, match="earlier call on the node at the root"):
        call_all_fns(Outer([Plain(Last(), 1)]), "step", fn_if_not_exist="pass")


def test_nothing_written_is_warned_of():
    with pytest.warns(UserWarning, match="`step` wrote nothing at all") as w:
        model, delta = call_all_fns(Last(), "step")
    assert [x.filename for x in w] == [__file__]
    assert delta.paths == ()
    with pytest.warns(
        UserWarning, match="`nothing` wrote nothing at all: it was .* no node"
    ):
        chorax.call_all_fns(Last(), "nothing", fn_if_not_exist="pass")
    with pytest.warns(UserWarning, match="`init_state` wrote nothing at all") as w:
        chorax.vmap_init_all_states(Last(), axis_size=2)
    assert [x.filename for x in w] == [__file__]


def test_states_that_were_never_made_are_told_of():
    class Neuron(eqx.Module):
        v: Any = None

        def init_state(self):
            return replace(self, v=jnp.zeros(2))

        def reset_state(self, by):
            return replace(self, v=self.v * by)

    with pytest.raises(TypeError, match="NoneType") as info:
        chorax.vmap_reset_all_states([Neuron()], 0.0, axis_size=2)
    assert "make the states first, by `init_all_states`" in " ".join(
        info.value.__notes__
    )
    made, _ = chorax.init_all_states([Neuron()])
    with pytest.raises(TypeError, match="scalar") as info:
        chorax.reset_all_states(made, "text")
    assert "make the states first" not in " ".join(info.value.__notes__)


def test_a_change_of_structure_alone_is_no_reason_to_warn():
    class Structure(eqx.Module):
        x: Any
        n: int = eqx.field(static=True, default=0)

        def step(self):
            return replace(self, n=1)

        def drop(self):
            return replace(self, x=None)

    model, delta = call_all_fns(Structure(jnp.ones(1)), "step")
    assert model.n == 1
    assert delta.paths == ()
    model, delta = call_all_fns(Structure(jnp.ones(1)), "drop")
    assert model.x is None


class Box(eqx.Module):
    x: Any
    y: Any = None

    def step(self):
        return replace(self, x=self.x + 1)

    def fill(self):
        return replace(self, y=jnp.zeros(1))


def shared_warnings(target, name="step"):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call_all_fns(target, name)
    assert {w.filename for w in caught} <= {__file__}
    return [str(w.message) for w in caught]


def test_a_shared_array_that_was_written_is_warned_of():
    x = jnp.ones(2)
    [message] = shared_warnings([Box(x), Box(x), Box(x)])
    assert "same object stands at `0.x` and at `1.x`, and was written" in message
    assert "`eqx.nn.Shared`" in message


def test_a_shared_module_that_was_written_is_warned_of_once():
    box = Box(jnp.ones(2))
    [message] = shared_warnings({"a": box, "b": [box]})
    assert "same object stands at `a` and at `b.0`, and was written" in message


def test_a_shared_module_without_arrays():
    box = Box(None)
    [message] = shared_warnings([box, box], "fill")
    assert "stands at `0` and at `1`" in message


def test_what_is_shared_and_not_written_is_fine():
    x = jnp.ones(2)
    assert shared_warnings([Box(jnp.zeros(2), x), Box(jnp.zeros(2), x)]) == []
    assert shared_warnings([Box(0.5), Box(0.5)]) == []


def test_a_note_on_what_the_call_itself_gets_wrong():
    with pytest.raises(TypeError, match="unexpected keyword argument 'by'") as info:
        call(Count(), kwargs={"by": 1})
    assert "`step` of Count at the root `()`" in info.value.__notes__[0]


def test_a_note_on_what_fails_while_running(key):
    class Checked(eqx.Module):
        x: jax.Array

        def step(self):
            x = eqx.error_if(self.x, self.x < 0, "negative!")
            return replace(self, x=x + 1)

    model, _ = call_all_fns(Checked(jnp.ones(())), "step")
    assert model.x == 2
    with pytest.raises(Exception, match="negative!"):
        jax.block_until_ready(call_all_fns(Checked(-jnp.ones(())), "step"))


def test_the_first_to_fail_is_the_one_that_is_told():
    class Fails(eqx.Module):
        name: str
        child: Any = None

        def step(self):
            raise RuntimeError(self.name)

    # `first` comes after its child, and so in a later wave than `second`.
    tree = [Fails("first", Count()), Fails("second")]
    with pytest.raises(RuntimeError, match="first"):
        call_all_fns(tree, "step")
    tree = [Count(), Fails("outer", Fails("inner")), Fails("later")]
    with pytest.raises(RuntimeError, match="inner"):
        call_all_fns(tree, "step")

    class Marked(Fails):
        @call_order(0)
        def step(self):
            raise RuntimeError(self.name)

    with pytest.raises(RuntimeError, match="unmarked"):
        call_all_fns([Marked("marked"), Fails("unmarked")], "step")


WHERE = {
    "was None": (lambda: Box(jnp.ones(2)), "fill", "`0.y` has nothing to keep"),
    "other shape": (
        lambda: dataclasses.replace(Box(jnp.ones(2)), y=jnp.ones(3)),
        "fill",
        "`0.y` has nothing to keep: a lane had float32[3] there, and float32[1] was "
        "written",
    ),
    "other dtype": (
        lambda: dataclasses.replace(Box(jnp.ones(2)), y=jnp.ones(1, jnp.int32)),
        "fill",
        "`0.y` has nothing to keep: a lane had int32[1] there, and float32[1] was",
    ),
    "no array before": (
        lambda: dataclasses.replace(Box(jnp.ones(2)), y=0.5),
        "fill",
        "`0.y` has nothing to keep: there was no array before, but 0.5",
    ),
    "no array after": (
        lambda: Box(0.5),
        "step",
        "`0.x` has nothing to keep: what was written is not an array",
    ),
}


@pytest.mark.usefixtures("in_32_bits")
@pytest.mark.parametrize("name", sorted(WHERE))
def test_where_needs_something_to_keep(name):
    make, method, message = WHERE[name]
    with pytest.raises(ValueError, match=re.escape(message)):
        call([make()], method, where=jnp.ones(4, bool))


def test_where_can_not_keep_an_excluded_leaf_or_a_structure():
    where = jnp.ones(4, bool)
    with pytest.raises(ValueError, match=r"makes it the same .* Do not exclude it"):
        call(
            dataclasses.replace(Box(jnp.ones(2)), y=jnp.ones(1)),
            "fill",
            where=where,
            state_to_exclude=True,
        )

    class Drops(eqx.Module):
        x: Any

        def step(self):
            return replace(self, x=None)

    with pytest.raises(ValueError, match="the call changed the structure at `x`"):
        call(Drops(jnp.ones(2)), where=where)


def test_a_property_that_raises_is_not_a_missing_method():
    class Broken(eqx.Module):
        @property
        def step(self):
            return cast(Any, self).nothing

    with pytest.raises(AttributeError, match="nothing") as info:
        call({"a": Broken()})
    assert "property `step` of Broken at `a`" in info.value.__notes__[0]


@pytest.mark.usefixtures("needs_jit")
def test_a_traced_value_in_a_static_dictionary_is_refused():
    class Static(eqx.Module):
        x: jax.Array
        n: Any = eqx.field(static=True, default=0)

        def step(self):
            return replace(self, n={"a": [self.x + 1]})

    with pytest.raises(TypeError, match="put a traced array into the static field `n`"):
        call_all_fns(Static(jnp.ones(())), "step")


def test_warnings_under_a_wrapper_of_equinox_are_the_callers():
    with pytest.warns(UserWarning, match="wrote nothing") as w:
        eqx.filter_jit(call_all_fns)(Last(), "step")
    assert [x.filename for x in w] == [__file__]


def test_a_field_may_be_called_module():
    class Wraps(eqx.Module):
        module: Any

    assert replace(Wraps(1), module=2).module == 2


def test_two_children_of_one_key():
    tree = jtu.tree_map(lambda x: x, __import__("collections").OrderedDict())
    tree[1.5], tree["1.5"] = Count(), Count()
    with pytest.raises(ValueError, match="have the same key in a path"):
        call_all_fns(tree, "step")


def test_numpy_arrays_of_strings_are_no_arrays():
    model, _ = call_all_fns(Box(1, np.array(["a", "b"])), "step")
    assert model.x == 2
    assert model.y.tolist() == ["a", "b"]
