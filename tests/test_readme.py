"""The README's code runs, prints what it says, and its commands are the project's."""

import re
from pathlib import Path

import jax
import jax.tree_util as jtu


README = (Path(__file__).parent.parent / "README.md").read_text()


def test_code(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    scope = {}
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        for block in blocks:
            exec(block, scope)
    comments = re.findall(r"^# (.*)$", blocks[0], re.MULTILINE)
    printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    assert printed == comments[: len(printed)]
    assert len(printed) == 4
    assert [x.shape for x in jtu.tree_leaves(scope["states"])] == [(32, 3)] * 2
    assert [x.shape for x in jtu.tree_leaves(scope["shared"])] == [(3,)] * 2
    assert scope["ensemble"].layers[0].weight.shape == (8, 8, 2)


def test_commands():
    assert 'pip install -e ".[test]" && pytest' in README
    line = 'pip install -e ".[examples]" && python docs/examples/deep_ensemble.py'
    assert line in README
