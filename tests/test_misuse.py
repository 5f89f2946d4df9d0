"""Every mistake of the tables raises what it should, and leaves nothing behind."""

import contextlib
import inspect
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest

import chorax
from call_misuses import CALLS, WRAPPERS
from function_misuses import FILTERS, FUNCTIONS
from lane_misuses import LANES
from method_misuses import ANYWHERE, PLACES, TRACED
from misuses import Count, Mistake, NET, RUNS, SHOWN


pytestmark = pytest.mark.usefixtures("in_32_bits")

GOOD = [Count(), Count(jnp.ones(2, jnp.float32))]


def own_notes(error):
    """The notes that are not JAX's or jaxtyping's own."""
    return tuple(x for x in getattr(error, "__notes__", ()) if not x.startswith("---"))


def identities(tree):
    """A tree's structure, and which objects its leaves and modules are."""
    seen: list[Any] = []
    asked: Any = seen.append
    leaves, structure = jtu.tree_flatten(tree, is_leaf=asked)
    modules = [x for x in seen if isinstance(x, eqx.Module)]
    fields = [(name, id(x)) for m in modules for name, x in vars(m).items()]
    return structure, [id(x) for x in leaves], [id(x) for x in modules], fields


def check(mistake: Mistake, jit: bool = False):
    act = eqx.filter_jit(mistake.act) if jit else mistake.act
    before = identities(mistake.target)
    RUNS.clear()
    with pytest.raises(mistake.kind, match=re.escape(mistake.text)) as info:
        act(mistake.target)
    assert type(info.value) is mistake.kind
    assert str(info.value) == mistake.text
    assert own_notes(info.value) == mistake.notes
    assert mistake.runs is None or len(RUNS) == mistake.runs
    assert identities(mistake.target) == before
    model, delta = chorax.call_all_fns(GOOD, "step")
    assert delta.paths == ("0.x", "1.x")
    assert [x.tolist() for x in jax.tree.leaves(model)] == [[0.0, 0.0]] * 2


# A place is told by the same functions whatever was done there: by a node's path in an
# error and in a note, and by a leaf's.
EVERYWHERE = ["no such method", "an exception", "an excluded leaf with other values"]
ROWS = [
    (name, place, jit)
    for name in (*ANYWHERE, *TRACED)
    for place in PLACES
    for jit in (False, True)
    if (place, jit) in (("the root", False), ("deep", True))
    or (name.startswith(tuple(EVERYWHERE)) and not jit)
]


@pytest.mark.parametrize(("name", "place", "jit"), ROWS)
def test_a_mistake_is_told_wherever_it_is_made(name, place, jit):
    row = (ANYWHERE | TRACED)[name]
    if name in TRACED and jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        pytest.skip("nothing is traced")
    wrap, at = PLACES[place]
    check(
        Mistake(
            wrap(row.make()), row.act, row.kind, row.text(at), row.notes(at), row.runs
        ),
        jit,
    )


OF_CALLS = [
    (name, jit)
    for name, mistake in (CALLS | WRAPPERS).items()
    for jit in ([False, True] if mistake.in_jit else [False])
]


@pytest.mark.parametrize(("name", "jit"), OF_CALLS)
def test_wrong_arguments_of_calls(name, jit):
    check((CALLS | WRAPPERS)[name], jit)


@pytest.mark.parametrize("name", [*FUNCTIONS, *FILTERS, *LANES])
def test_wrong_arguments_of_functions(name):
    check((FUNCTIONS | FILTERS | LANES)[name])


ALWAYS = {
    "target": NET,
    "fn_name": "step",
    "axis_size": 4,
    "fn_if_not_exist": "pass",
}
PARAMETERS = list(inspect.signature(chorax.vmap_call_all_fns).parameters)


@pytest.mark.parametrize("parameter", PARAMETERS)
def test_no_error_shows_a_model_or_an_array(parameter):
    call: Any = chorax.vmap_call_all_fns
    texts = []
    for name, (value, _) in SHOWN.items():
        if (parameter, name) == ("fn_name", "a long string"):
            continue  # A name is shown as it is.
        before = identities(NET)
        with contextlib.suppress(NotTold):
            texts.append(told(lambda v=value: call(**{**ALWAYS, parameter: v})))
        assert identities(NET) == before
    assert texts
    for text in texts:
        assert len(text) < 500, text
        assert "\n" not in text, text
        assert "no repr" not in text, text


class NotTold(Exception):  # noqa: N818
    """There was no error."""


def told(run):
    """The text of an error, and of its notes."""
    try:
        run()
    except Exception as error:
        return " ".join([str(error), *own_notes(error)])
    raise NotTold
