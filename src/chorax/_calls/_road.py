"""The one road that every collective call takes, station by station.

Each station hands one value to the next, and none reaches back.
"""

import functools
from typing import Any, cast

import jax

from .._deltas._delta import StateDelta
from .._plan._recipe import find_recipe
from .._plan._request import Request
from .._plan._results import put_together
from .._plan._select import Calls, select
from .._run._execute import execute
from .._run._plain import run_plainly
from .._tree._nodes import walk_nodes


def run_collective(
    target: Any, request: Request
) -> tuple[Any, StateDelta[Any], dict[str, Any]]:
    """The new model, the delta, and every called node's `aux` by dotted path."""
    with request.scope():
        calls = select(walk_nodes(target), request)
        recipe = find_recipe(calls, _perform(calls))
        return put_together(recipe.results, execute(recipe, calls))


def _perform(calls: Calls) -> Any:
    """What runs a method where JAX is told not to trace; `None` elsewhere."""
    # JAX makes the attributes of its configuration at run time.
    is_plain: bool = cast(Any, jax.config).jax_disable_jit
    return functools.partial(run_plainly, calls.call, calls.keys) if is_plain else None
