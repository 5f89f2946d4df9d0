"""Parameters that `reset_parameters` leaves as they were, having no rule for them."""

from collections.abc import Iterator, Mapping
from typing import Any, cast

import jax
import jax.numpy as jnp

from .._layers._reset import reset_parameters
from .._text._places import Path, place
from .._text._table import in_bytes, size_of
from ._kind import ArraySpec
from ._planner import Plan
from ._select import Calls


# So many paths and classes are named.
_NAMED = 3


def has_rule(function: Any, cls: type) -> bool:
    """Whether a function has a rule for a class; `True` for a function that does not go
    by class, as those of `functools.singledispatch` do."""
    dispatch = getattr(function, "dispatch", None)
    registry = getattr(function, "registry", None)
    if not callable(dispatch) or not isinstance(registry, Mapping):
        return True
    return dispatch(cls) is not cast("Mapping[Any, Any]", registry).get(object)


def kept_arrays(
    plan: Plan, calls: Calls
) -> Mapping[Path, list[tuple[Path, jax.ShapeDtypeStruct]]]:
    """The inexact arrays that no call writes and that all lanes share, by the path of
    the module that they are directly in; those in none are under the root's."""
    modules = set(calls.tree.survey.module_paths)
    kept: dict[Path, list[tuple[Path, jax.ShapeDtypeStruct]]] = {}
    for leaf in plan.leaves:
        spec = plan.specs[leaf.name]
        if leaf.written or leaf.original is None or not isinstance(spec, ArraySpec):
            continue
        is_inexact = jnp.issubdtype(spec.struct.dtype, jnp.inexact)
        if is_inexact and calls.axes[leaf.original] is None:
            around = (leaf.path[:i] for i in range(len(leaf.path), 0, -1))
            owner = next((path for path in around if path in modules), ())
            kept.setdefault(owner, []).append((leaf.path, spec.struct))
    return kept


def kept_parameters(plan: Plan, calls: Calls) -> Iterator[str]:
    """What to say where `reset_parameters` leaves arrays that look like parameters as
    they were: directly in called nodes without a rule."""
    if calls.request.fn_name is not reset_parameters:
        return
    kept = kept_arrays(plan, calls)
    called = {visit.node.path for visit in plan.visits}.intersection(kept)
    found: dict[Path, str] = {}
    size = 0
    for node in calls.tree.nodes:
        if node.path in called and not has_rule(reset_parameters, node.cls):
            for path, struct in kept[node.path]:
                found[path] = node.cls.__name__
                size += size_of(struct) or 0
    if found:
        yield _message(found, size)


def _message(kept: dict[Path, str], size: int) -> str:
    paths = [place(path) for path in kept]
    classes = list(dict.fromkeys(kept.values()))
    more = len(paths) - _NAMED
    shown = ", ".join(paths[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    is_one = len(paths) == 1
    found = "1 array" if is_one else f"{len(paths)} arrays"
    owners = ", ".join(classes[:_NAMED]) + (", …" if len(classes) > _NAMED else "")
    return (
        f"`reset_parameters` left {found} ({in_bytes(size)}) as "
        f"{'it was' if is_one else 'they were'}: {shown}. "
        f"There is no rule for {owners}. Register one with "
        f"`@chorax.reset_parameters.register({classes[0]})`; one that returns the node "
        "unchanged says that its arrays are to stay. Or leave the nodes out with "
        "`node_to_exclude`, or build the members with their constructor under "
        "`eqx.filter_vmap`."
    )
