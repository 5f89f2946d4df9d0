"""The README's code runs, prints what it says, and its commands are the project's."""

import re
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import pytest
from jax import Array
from jaxtyping import Float

import chorax


README = (Path(__file__).parent.parent / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.usefixtures("in_32_bits")
def test_code(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    scope = {}
    lines = []
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(block, scope)
            comments = re.findall(r"^# ?(.*)$", block, re.MULTILINE)
            printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
            assert printed == comments[: len(printed)]
            lines.append(len(printed))
    assert lines == [4, 0, 1, 7]
    assert [x.shape for x in jtu.tree_leaves(scope["states"])] == [(32, 3)] * 2
    assert [x.shape for x in jtu.tree_leaves(scope["shared"])] == [(3,)] * 2
    assert scope["batched"].layers[0].weight.shape == (8, 8, 2)
    assert scope["best"].layers[0].weight.shape == (2, 8, 2)


@pytest.mark.usefixtures("in_32_bits")
def test_the_error_that_it_shows():
    class Neuron(eqx.Module):
        weight: Float[Array, "n"]
        v: Float[Array, "n"] | None = None

        def init_state(self):
            return chorax.replace(self, v=jnp.zeros(4))

    with pytest.raises(chorax.AnnotationError, match="`v` of the Neuron") as caught:
        chorax.vmap_init_all_states([Neuron(jnp.ones(3))], axis_size=2)
    assert f"AnnotationError: {caught.value}\n" in README


def test_commands():
    assert 'pip install -e ".[test]" && pytest' in README
    line = 'pip install -e ".[examples]" && python docs/examples/deep_ensemble.py'
    assert line in README
