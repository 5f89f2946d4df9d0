"""Runs the code of a page, and compares what it prints with what the page says."""

import re
from pathlib import Path
from typing import Any

import jax


PAGES = Path(__file__).parent.parent / "docs" / "pages"


def run_page(page: Path, capsys: Any) -> int:
    """Runs all blocks of a page in one scope; returns how many there were.

    What a block prints has to stand in its comments, line by line. Keys and
    jit are as by default, for pages compare lanes with calls on their own, and count
    traces.
    """
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.DOTALL | re.M)
    scope: dict[str, Any] = {"__name__": "page"}
    with (
        jax.numpy_rank_promotion("allow"),
        jax.numpy_dtype_promotion("standard"),
        jax.default_prng_impl("threefry2x32"),
        jax.disable_jit(False),
    ):
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page.name}, block {number + 1}", "exec"), scope)
            printed = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
            comments = iter(re.findall(r"^#(?: (.*))?$", block, re.MULTILINE))
            for line in printed:
                assert line in comments, f"{page.name} prints: {line}"
    return len(blocks)
