"""Annotation errors, each compared as a whole text."""

import importlib
import re
from typing import NamedTuple

import equinox as eqx
import jax.numpy as jnp
import pytest
from jax import Array
from jaxtyping import Float, Int, Key, PyTree

import chorax
from annotated import f, i


class LIF(eqx.Module):
    w: Float[Array, "in out"]
    v: Float[Array, "out"] | None = None

    def init_state(self, size):
        return chorax.replace(self, v=jnp.zeros(size, jnp.float32))


class Adaptive(LIF):
    a: Float[Array, "*batch out"] | None = None


class Rates(NamedTuple):
    rise: Float[Array, "n"]
    fall: Float[Array, "n"]


class Synapses(eqx.Module):
    delays: list[Int[Array, "n"]]
    traces: PyTree[Float[Array, "n"], "T"]  # pyright: ignore[reportUndefinedVariable]
    rates: Rates | None = None


class Noisy(eqx.Module):
    key: Key[Array, ""]


class Long(eqx.Module):
    state: tuple[
        Float[Array, "n"],
        Int[Array, "n"],
    ]


class Spread(eqx.Module):
    v: Float[Array, "*batch n"]
    mean: Float[Array, "*batch"]


class Around(eqx.Module):
    lif: LIF

    def init_state(self, size):
        return eqx.tree_at(lambda s: s.lif.v, self, jnp.zeros(size + 1, jnp.float32))


def lif(**fields):
    return LIF(f(2, 3), **fields)


def synapses(**fields):
    given = {"delays": [i(3)], "traces": {"a": f(3)}, **fields}
    return Synapses(**given)


MESSAGES = {
    "a state of the wrong size": (
        lambda: chorax.vmap_init_all_states({"layers": [lif()]}, 4, axis_size=8),
        """
The field `v` of the LIF at `layers.0` does not fit its annotation after `init_state`, as one lane sees it.
  annotated: v: Float[Array, "out"] | None
  found: float32 of shape (4,)
  bound: in = 2 by `w`, out = 3 by `w`
""",
    ),
    "without lanes": (
        lambda: chorax.init_all_states(lif(), (3, 1)),
        """
The field `v` of the LIF at the root `()` does not fit its annotation after `init_state`.
  annotated: v: Float[Array, "out"] | None
  found: float32 of shape (3, 1)
  bound: in = 2 by `w`, out = 3 by `w`
""",
    ),
    "a lane axis that was not declared": (
        lambda: chorax.vmap_init_all_states(LIF(f(8, 2, 3)), 3, axis_size=8),
        """
The field `w` of the LIF at the root `()` does not fit its annotation after `init_state`, as one lane sees it.
  annotated: w: Float[Array, "in out"]
  found: float32 of shape (8, 2, 3)
Without the first axis of `axis_size` = 8 it would fit. If that is a lane axis, declare it with `in_axes`.
""",
    ),
    "an axis that is no lane axis": (
        lambda: chorax.vmap_init_all_states(LIF(f(5, 2, 3)), 3, axis_size=8),
        """
The field `w` of the LIF at the root `()` does not fit its annotation after `init_state`, as one lane sees it.
  annotated: w: Float[Array, "in out"]
  found: float32 of shape (5, 2, 3)
""",
    ),
    "a batched model called without lanes": (
        lambda: chorax.init_all_states(LIF(f(8, 2, 3)), 3),
        """
The field `w` of the LIF at the root `()` does not fit its annotation after `init_state`.
  annotated: w: Float[Array, "in out"]
  found: float32 of shape (8, 2, 3)
Without the first axis it would fit. If that is a lane axis, call `vmap_call_all_fns` with `in_axes`.
""",
    ),
    "a batched model that is only checked": (
        lambda: chorax.check_annotations([lif(v=f(8, 3))]),
        """
The field `v` of the LIF at `0` does not fit its annotation.
  annotated: v: Float[Array, "out"] | None
  found: float32 of shape (8, 3)
  bound: in = 2 by `w`, out = 3 by `w`
Without the first axis it would fit. If that is a lane axis, declare it with `in_axes`.
""",
    ),
    "another dtype": (
        lambda: chorax.check_annotations(lif(v=i(3))),
        """
The field `v` of the LIF at the root `()` does not fit its annotation.
  annotated: v: Float[Array, "out"] | None
  found: int32 of shape (3,)
  bound: in = 2 by `w`, out = 3 by `w`
""",
    ),
    "no array": (
        lambda: chorax.check_annotations(LIF(0.5)),  # pyright: ignore[reportArgumentType]
        """
The field `w` of the LIF at the root `()` does not fit its annotation.
  annotated: w: Float[Array, "in out"]
  found: a float, 0.5
""",
    ),
    "nothing": (
        lambda: chorax.check_annotations(Noisy(None)),  # pyright: ignore[reportArgumentType]
        """
The field `key` of the Noisy at the root `()` does not fit its annotation.
  annotated: key: Key[Array, ""]
  found: None
""",
    ),
    "a field of a base class": (
        lambda: chorax.check_annotations(Adaptive(f(2, 3), f(4), f(5, 5, 3))),
        """
The field `v` of the Adaptive at the root `()` does not fit its annotation.
  annotated: v: Float[Array, "out"] | None (in LIF)
  found: float32 of shape (4,)
  bound: in = 2 by `w`, out = 3 by `w`
""",
    ),
    "an element of a list": (
        lambda: chorax.check_annotations({"s": synapses(delays=[i(3), i(4)])}),
        """
The field `delays` of the Synapses at `s` does not fit its annotation.
  annotated: delays: list[Int[Array, "n"]]
  found: int32 of shape (4,), at `s.delays.1`
  bound: n = 3 by `delays.0`
""",
    ),
    "a leaf of a tree": (
        lambda: chorax.check_annotations(synapses(traces={"a": f(3), "b": i(3)})),
        """
The field `traces` of the Synapses at the root `()` does not fit its annotation.
  annotated: traces: PyTree[Float[Array, "n"], "T"]
  found: int32 of shape (3,), at `traces.b`
  bound: n = 3 by `delays.0`
""",
    ),
    "a field of a record": (
        lambda: chorax.check_annotations(synapses(rates=Rates(f(7), f(8)))),
        """
The field `rates` of the Synapses at the root `()` does not fit its annotation.
  annotated: fall: Float[Array, "n"] (in Rates)
  found: float32 of shape (8,), at `rates.fall`
  bound: n = 7 by `rise`
""",
    ),
    "a container of another kind": (
        lambda: chorax.check_annotations(synapses(delays=(i(3),))),
        """
The field `delays` of the Synapses at the root `()` does not fit its annotation.
  annotated: delays: list[Int[Array, "n"]]
  found: a tuple of `0`: int32 of shape (3,)
""",
    ),
    "an annotation of several lines": (
        lambda: chorax.check_annotations(Long((f(3), i(4)))),
        """
The field `state` of the Long at the root `()` does not fit its annotation.
  annotated: state: tuple[Float[Array, "n"], Int[Array, "n"]]
  found: int32 of shape (4,), at `state.1`
  bound: n = 3 by `state.0`
""",
    ),
    "several dimensions under one name": (
        lambda: chorax.check_annotations([Spread(f(5, 6, 3), f(5))]),
        """
The field `mean` of the Spread at `0` does not fit its annotation.
  annotated: mean: Float[Array, "*batch"]
  found: float32 of shape (5,)
  bound: batch = (5, 6) by `v`, n = 3 by `v`
""",
    ),
    "changed by a call around it": (
        lambda: chorax.vmap_init_all_states({"net": Around(lif())}, 3, axis_size=8),
        """
The field `v` of the LIF at `net.lif` does not fit its annotation after `init_state` of the node at `net`, as one lane sees it.
  annotated: v: Float[Array, "out"] | None
  found: float32 of shape (4,)
  bound: in = 2 by `w`, out = 3 by `w`
""",
    ),
}


@pytest.mark.parametrize(("call", "text"), MESSAGES.values(), ids=MESSAGES)
def test_the_whole_message(call, text):
    whole = f"^{re.escape(text.strip())}$"
    with pytest.raises(chorax.AnnotationError, match=whole) as caught:
        call()
    assert not hasattr(caught.value, "__notes__")


def test_a_type_error_of_an_argument_says_which():
    with pytest.raises(TypeError, match="`delta` of `apply_delta` must be"):
        chorax.apply_delta(lif(), {"v": 1})  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`module` of `replace` must be"):
        chorax.replace({"v": 1}, v=2)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`mappings` of `assign_state_values` must be"):
        chorax.assign_state_values(lif(), {}, [("v", 1)])  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`level` of `call_order` must be"):
        chorax.call_order("first")  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="`axis_name` must be"):
        chorax.vmap_call_all_fns(lif(), "f", axis_size=2, axis_name=[])  # pyright: ignore[reportArgumentType]


TWO = """
from __future__ import annotations

import equinox as eqx
from jax import Array
from jaxtyping import Float


def make():
    class Node(eqx.Module):
        v: Float[Array, "n n"]

    return Node


class Node(eqx.Module):
    v: Float[Array, "n"]
"""


@pytest.mark.parametrize(("nested", "text"), [(True, '"n n"'), (False, '"n"')])
def test_two_classes_of_one_name_in_a_file(nested, text, tmp_path, monkeypatch):
    (tmp_path / "two_of_a_name.py").write_text(TWO)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("two_of_a_name")
    node = (module.make() if nested else module.Node)(jnp.ones((2, 3, 4), jnp.float32))
    text = re.escape(f"annotated: v: Float[Array, {text}]")
    with pytest.raises(chorax.AnnotationError, match=text):
        chorax.check_annotations([node])
