"""The one road that every collective call takes.

Take the target apart, find what the call comes to, run, put the results in place. Each
step hands one value to the next, and none reaches back.
"""

import functools
import itertools
from typing import Any, cast

import jax
import jax.tree_util as jtu

from .._deltas._delta import StateDelta
from .._lanes._axes import in_front
from .._plan._finish import writing_warnings
from .._plan._planner import Plain
from .._plan._recipe import find_recipe
from .._plan._request import make_call, Request, target_axes
from .._run._execute import execute, own_leaves
from .._run._plain import run_plainly
from .._text._places import dotted
from .._text._warn import warn
from .._tree._keys import lane_keys
from .._tree._nodes import walk_nodes


def run_collective(
    target: Any, request: Request
) -> tuple[Any, StateDelta[Any], dict[str, Any]]:
    """The new model, the delta, and every called node's `aux` by dotted path."""
    with request.scope():
        return _run(target, request)


def _run(target: Any, request: Request) -> tuple[Any, StateDelta[Any], dict[str, Any]]:
    keys = lane_keys(request.key, request.size)
    walked = walk_nodes(target)
    axes = target_axes(target, walked, request)
    call, arrays = make_call(request, keys)
    plain = None
    # JAX makes the attributes of its configuration at run time.
    if cast(Any, jax.config).jax_disable_jit:
        values = [*map(in_front, walked.leaves, axes), *arrays]
        plain = Plain(values, functools.partial(run_plainly, call, keys))
    recipe = find_recipe(walked, request, axes, call, plain)
    plan = recipe.plan

    values = dict(enumerate([*walked.leaves, *arrays]))
    for name in recipe.moved:
        values[name] = in_front(values[name], axes[name])
    values.update(plan.known)
    made = execute(recipe, values, keys, request.where)

    sources = recipe.sources
    pool = [*own_leaves(recipe, walked.leaves), *sources.constants, *made]
    leaves = [pool[i] for i in sources.leaves]
    written = itertools.compress(leaves, recipe.is_written)
    model = jtu.tree_unflatten(plan.structure, leaves)
    delta = jtu.tree_unflatten(recipe.delta, written)
    aux = {
        dotted(each.path): jtu.tree_unflatten(each.structure, [pool[i] for i in rows])
        for each, rows in zip(plan.aux, sources.aux, strict=True)
    }
    is_use = recipe.changes_structure or request.has_aux
    label, calls = request.label, recipe.calls
    warn(writing_warnings(recipe.written, walked, label, calls, is_use))
    return model, delta, aux
