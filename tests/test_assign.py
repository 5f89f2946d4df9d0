"""`assign_state_values`: forms of checkpoints, and names that several leaves have."""

import re
from collections import OrderedDict
from types import MappingProxyType
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import chorax
import oracle
from chorax import assign_state_values


class Neuron(eqx.Module):
    w: Any
    v: Any = None
    gain: float = 1.0


class Pair(NamedTuple):
    first: Any
    second: Any


def model(start=0.0, states=False):
    """Arrays that count upwards, in all kinds of containers."""

    def neuron(at):
        v = jnp.full(2, at + 0.5) if states else None
        return Neuron(jnp.full(3, at), v, start)

    return {
        "layers": [neuron(start), neuron(start + 1)],
        "pair": Pair(neuron(start + 2), (jnp.full(1, start), [None])),
        "x": jnp.full((), start),
    }


def test_a_checkpoint_of_orbax(tmp_path):
    import orbax.checkpoint as ocp

    with ocp.StandardCheckpointer() as checkpointer:
        for name in (False, True):
            checkpointer.save(tmp_path / str(name), model(5.0, states=name))
        checkpointer.wait_until_finished()
        without, full = (
            checkpointer.restore(tmp_path / str(name)) for name in (False, True)
        )
    for target in (model(), model(states=True)):
        loaded, unexpected, missing = assign_state_values(target, full)
        assert (unexpected, missing) == ([], [])
        expected = model(5.0, states=True)
        oracle.assert_same(loaded, expected)
    # What was not saved is missing, but nothing is unexpected.
    loaded, unexpected, missing = assign_state_values(model(states=True), without)
    assert not unexpected
    assert missing == ["layers.0.v", "layers.1.v", "pair.first.v"]
    assert loaded["layers"][1].v.tolist() == [1.5, 1.5]
    assert loaded["layers"][1].w.tolist() == [6.0] * 3
    # A part of the checkpoint.
    one, unexpected, _ = assign_state_values(Neuron(jnp.zeros(3)), full["layers"][0])
    assert (one.w.tolist(), unexpected) == ([5.0] * 3, [])


NEW = np.full(3, 7.0)
NESTED: dict[str, Any] = {
    "dictionaries": {"layers": {"0": {"w": NEW}, "1": {"w": NEW, "v": None}}},
    "integers": {"layers": {0: {"w": NEW}, 1: {"w": NEW}}},
    "of NumPy": {"layers": {np.int64(0): {"w": NEW}, np.int8(1): {"w": NEW}}},
    "lists": {"layers": [{"w": NEW}, {"w": NEW, "v": None}]},
    "tuples": {"layers": (Pair(None, None), {"w": NEW}), ("layers", 0, "w"): NEW},
    "dots above": {"layers.0": {"w": NEW}, "layers.1": MappingProxyType({"w": NEW})},
    "dots below": {"layers": {"0.w": NEW, "1.w": NEW}},
    "a path above": {("layers", 0): {"w": NEW}, ("layers", "1"): {"w": NEW}},
    "a path below": {"layers": {(0, "w"): NEW, ("1",): {("w",): NEW}}},
    "flat": {"layers.0.w": NEW, ("layers", 1, "w"): NEW},
}


@pytest.mark.parametrize("name", NESTED)
def test_every_form_of_nesting(name):
    loaded, unexpected, missing = assign_state_values(model(), NESTED[name])
    assert [layer.w.tolist() for layer in loaded["layers"]] == [[7.0] * 3] * 2
    assert unexpected == []
    assert missing == ["pair.first.w", "pair.second.0", "x"]


def test_named_tuples():
    made, unexpected, missing = assign_state_values(
        model(), {"pair": Pair({"w": NEW}, [np.ones(1)])}, {"layers": model()["layers"]}
    )
    assert made["pair"].first.w.tolist() == [7.0] * 3
    assert isinstance(made["pair"].second[0], jax.Array)
    # A module is a value, not a mapping.
    assert unexpected == [("layers", 0), ("layers", 1)]
    assert missing == ["layers.0.w", "layers.1.w", "x"]


def test_keys_that_name_no_leaf_are_returned_as_given():
    values = {"layers": {"0": {"u": 1, "w": NEW}, 2: [3]}, "y": {}, "z": 4, 5: {6: 7}}
    _, unexpected, _ = assign_state_values(model(), values, {"z": 5, "layers": [[], 8]})
    assert unexpected == [
        ("layers", "0", "u"),
        ("layers", 2, 0),
        "z",
        (5, 6),
        ("layers", 1),
    ]


def test_a_container_may_replace_a_leaf():
    tree = {"a": None, "b": 3, "c": jnp.zeros(2), "d": [1.0]}
    made, unexpected, missing = assign_state_values(
        tree, {"a": {"x": 1}, "b": [1, 2], "c": [3.0, 4.0], "d": [2.0]}
    )
    assert (made["a"], made["b"], made["d"]) == ({"x": 1}, [1, 2], [2.0])
    assert made["c"].tolist() == [3.0, 4.0]
    assert (unexpected, missing) == ([], [])


def test_a_deep_mapping():
    tree, values, depth = jnp.zeros(1), np.ones(1), 1000
    for _ in range(depth):
        values = {"k": values}
    _, unexpected, missing = assign_state_values({"j": tree}, {"k": values})
    assert (unexpected, missing) == ([("k",) * (depth + 1)], ["j"])


def dots():
    return {"a.b": jnp.zeros(1), "a": {"b": jnp.ones(1)}, "c": jnp.ones(1)}


PATHS = [("a", "b"), ("a.b",)]


def test_paths_with_the_same_dotted_form_are_returned_as_tuples():
    delta = chorax.diff({"a.b": None, "a": {"b": None}, "c": None}, dots())
    tagged = chorax.call_all_fns(
        [Tagged(dots())], "step", state_tag="t", node_to_exclude=None
    )[1]
    assert delta.tags == {**dict.fromkeys(PATHS, frozenset()), "c": frozenset()}
    paths = [(0, "x", *path) for path in PATHS]
    assert tagged.tags == dict.fromkeys([*paths, "0.x.c"], frozenset({"t"}))
    assert tagged.paths == ("0.x.a.b", "0.x.a.b", "0.x.c")
    _, _, missing = assign_state_values(dots(), {"c": [1.0]})
    assert missing == PATHS
    made, unexpected, missing = assign_state_values(
        dots(), dict.fromkeys(missing, np.full(1, 3.0))
    )
    assert [x.tolist() for x in jax.tree.leaves(made)] == [[3.0], [3.0], [1.0]]
    assert (unexpected, missing) == ([], ["c"])
    text = "2 leaves have the dotted path `a.b`"
    with pytest.raises(ValueError, match=re.escape(text)):
        assign_state_values(dots(), {"a.b": [1.0]})
    with pytest.raises(ValueError, match="Two written leaves have the dotted path"):
        delta.to_dict()
    # This can only mean one of them.
    made, _, missing = assign_state_values(dots(), {"a": {"b": np.full(1, 3.0)}})
    assert made["a"]["b"].tolist() == [3.0]
    assert missing == [("a.b",), "c"]


class Tagged(eqx.Module):
    x: Any

    def step(self):
        return chorax.replace(self, x=jax.tree.map(lambda x: x + 1, self.x))


def test_keys_that_print_the_same():
    tree: Any = OrderedDict([("0", jnp.zeros(1)), (0, jnp.ones(1)), ("1", jnp.ones(1))])
    for key in ("0", 0, ("0",), (0,)):
        made, _, missing = assign_state_values(tree, {key: np.full(1, 3.0)})
        name = key if isinstance(key, tuple) else (key,)
        assert made[name[0]].tolist() == [3.0]
        assert missing == [path for path in [("0",), (0,)] if path != name] + ["1"]
    made, unexpected, _ = assign_state_values(tree, {1: np.full(1, 3.0)})
    assert (made["1"].tolist(), unexpected) == ([3.0], [])
    for name in ("0", 0):
        made, _, _ = assign_state_values({"k": tree}, {"k": {name: np.full(1, 3.0)}})
        assert made["k"][name].tolist() == [3.0]
    text = "2 leaves have the dotted path `k.0`, because two keys read the same: name"
    with pytest.raises(ValueError, match=text):
        assign_state_values({"k": tree}, {"k.0": 1.0})
