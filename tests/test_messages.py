"""What is said of odd names and of states made apart, and where nothing is said."""

import re
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import pytest

from chorax import (
    call_all_fns,
    diff,
    explain,
    lanes,
    replace,
    reset_parameters,
    vmap_call_all_fns,
)


class Told(eqx.Module):
    x: Any

    def step(self):
        return replace(self, x=self.x + 1)

    def tell(self):
        return self, 3

    def fail(self):
        raise ZeroDivisionError("inside")


@pytest.mark.parametrize("size", [{}, {"axis_size": 2}])
def test_a_call_that_only_reads_is_silent(size):
    call: Any = vmap_call_all_fns if size else call_all_fns
    net, options = [Told(jnp.ones(2))], {"has_aux": True, **size}
    for _ in range(2):  # A call that is remembered, too.
        model, delta, aux = call(net, "tell", **options)
        assert model[0].x is net[0].x
        assert delta.paths == ()
        assert list(aux) == ["0"]
    with pytest.warns(UserWarning, match="`other` wrote nothing at all: .* on no node"):
        call(net, "other", fn_if_not_exist="pass", **options)


class Keyed(Told):
    def among_others(self, *args, key, **rest):
        return replace(self, x=jnp.shape(key))

    def without(self, *key):
        return replace(self, x=key)

    def anything(self, **key):
        return replace(self, x=jnp.shape(key.get("key", 0)))


def test_a_key_that_is_told_or_not_wanted_is_silent(key):
    def written(name, **options):
        return call_all_fns([Keyed(None)], name, **options)[0][0].x

    assert written("among_others", args=1, kwargs={"by": 2}, key=key) == ()
    assert written("without", key=key) == ()
    assert written("without", args=(1,), key=key) == (1,)
    assert written("anything") == ()
    assert written("anything", kwargs={"key": jnp.ones(3)}) == (3,)


# A name that would end its line, or colour it, or turn it around.
ODD, PLAIN = "a\n\x1b[31mb\u202e é", r"a\n\x1b[31mb\u202e é"
Odd: Any = type(f"C{ODD}", (Told,), {"__annotations__": {}})


def odd_net():
    return {ODD: Odd(jnp.ones(2))}


def odd_ensemble():
    batched, delta = vmap_call_all_fns(odd_net(), "step", axis_size=3)
    return lanes.Ensemble(batched[ODD], delta.in_axes[ODD])


# Tables, and how often the name is in each.
ODD_TABLES: dict[str, tuple[Any, int]] = {
    "a delta": (lambda: call_all_fns(odd_net(), "step", state_tag=ODD)[1], 2),
    "a delta of a module": (lambda: diff({ODD: 0}, {ODD: odd_net()}), 2),
    "an ensemble": (odd_ensemble, 1),
    "a call": (lambda: explain(odd_net(), "step"), 2),
    "a skipped node": (lambda: explain(odd_net(), "step", node_to_exclude=...), 2),
}


@pytest.mark.parametrize("form", ["__repr__", "_repr_html_"])
@pytest.mark.parametrize("name", ODD_TABLES)
def test_tables_show_odd_names_escaped(name, form):
    make, count = ODD_TABLES[name]
    text = getattr(make(), form)()
    assert text.count(PLAIN) == count
    assert text.replace("\n", "").isprintable()


def test_paths_and_tags_are_the_exact_strings():
    _, delta = call_all_fns(odd_net(), "step", state_tag=ODD)
    assert delta.paths == (f"{ODD}.x",)
    assert list(delta.to_dict()) == [f"{ODD}.x"]
    assert delta.select(ODD).tags == {f"{ODD}.x": {ODD}}


def test_errors_show_odd_keys_escaped():
    net = {ODD: Told(1)}
    with pytest.raises(AttributeError, match=re.escape(f"Told at `{PLAIN}` has no")):
        call_all_fns(net, "other")
    with pytest.raises(ZeroDivisionError, match="inside") as info:
        call_all_fns(net, "fail")
    assert any(f"at `{PLAIN}`, in a" in note for note in info.value.__notes__)
    both = {f"{ODD}.b": Told(1), ODD: {"b": Told(1)}}
    with pytest.raises(ValueError, match=re.escape(f"dotted path `{PLAIN}.b`, under")):
        call_all_fns(both, "tell", has_aux=True)


def test_one_long_name_pads_no_other_row():
    def lines(*names):
        net = {name: jnp.ones(3, jnp.float32) for name in names}
        return repr(diff(dict.fromkeys(names), net)).splitlines()[1:]

    head, longest, short = lines("k" * 61, "short")
    assert [head, short] == [lines("short")[0], lines("short")[1]]
    assert longest == short.replace("short", "k" * 61)
    assert len(set(map(len, lines("k" * 60, "short")))) == 1


MADE_APART: dict[str, Any] = {
    "a batch norm": lambda key: eqx.nn.BatchNorm(3, "batch", mode="ema"),
    "deep": lambda key: {"a": [eqx.nn.BatchNorm(3, "batch", mode="batch")]},
    "a spectral norm": lambda key: eqx.nn.SpectralNorm(
        eqx.nn.Linear(2, 2, key=key), "weight", key=key
    ),
}


@pytest.mark.parametrize("name", MADE_APART)
def test_states_made_apart_name_make_with_state(name, key):
    make, text = MADE_APART[name], "marker`: each `StateIndex` has a marker of its own"
    with pytest.raises(ValueError, match=text) as info:
        lanes.stack([make(key), make(key)])
    assert "object" not in str(info.value)
    # The cures that it names.
    assert "Create each model with `eqx.nn.make_with_state`" in str(info.value)
    pairs = [eqx.nn.make_with_state(make)(key) for _ in range(2)]
    assert len(lanes.unstack(*lanes.stack(pairs))) == 2
    assert "draw the others with `vmap_call_all_fns(model, reset_" in str(info.value)
    _, delta = vmap_call_all_fns(make(key), reset_parameters, axis_size=2, key=key)
    assert delta.axis_size == 2
