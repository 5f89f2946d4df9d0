"""What is said to a person whose value does not fit an annotation."""

import dataclasses
from collections.abc import Iterator
from typing import Any, cast

import equinox as eqx
import jax.tree_util as jtu

from ._fits import Misfit, Trail
from ._hints import is_array_hint, is_tree_hint
from ._paths import walk
from ._places import dotted, Path, place
from ._show import short, with_article


@dataclasses.dataclass(frozen=True)
class Sight:
    """How a module came to be looked at, for messages.

    `after` names the call that it comes from. `size` is the number of lanes, where
    there are lanes; `cure` says how to declare a lane axis that was not declared.
    `admits_stacks` lets a stack of modules pass, as `eqx.filter_vmap` builds it, all of
    whose arrays have the same leading axes, if each module of the stack would pass.
    """

    after: str
    size: int | None
    cure: str
    admits_stacks: bool = False


def misfit_message(node: Any, path: Path, misfit: Misfit, sight: Sight) -> str:
    """Which field of which module, what it holds, and what it was to hold."""
    field, kind = misfit.field, cast("type[Any]", type(node))
    assert field is not None
    seen = "" if sight.size is None else ", as one lane sees it"
    rows = [
        f"The field `{misfit.path[0]}` of the {kind.__name__} at {place(path)} "
        f"does not fit its annotation{sight.after}{seen}.",
        f"  annotated: {field.name}: {field.written()}",
        f"  found: {_describe(misfit.value)}",
    ]
    if field.owner is not kind:
        rows[1] += f" (in {field.owner.__name__})"
    if len(misfit.path) > 1:
        rows[2] += f", at `{dotted((*path, *misfit.path))}`"
    bound = list(_bindings(misfit.trail))
    if bound:
        rows.append(f"  bound: {', '.join(bound)}")
    hint = _hint(misfit, sight)
    return "\n".join([*rows, hint] if hint else rows)


def _describe(value: Any) -> str:
    if eqx.is_array(value):
        return f"{value.dtype} of shape {value.shape}"
    if value is None:
        return "None"
    name = type(value).__name__
    kind = with_article(name)
    if isinstance(value, int | float | complex | str):
        return f"{kind}, {short(value)}"
    if not isinstance(value, list | tuple | dict):
        return kind
    rows = [(path, x) for path, x, is_leaf in walk(value) if is_leaf]
    shown = [f"`{dotted(path)}`: {_describe(x)}" for path, x in rows[:4]]
    more = [] if len(rows) <= 4 else [f"and {len(rows) - 4} more"]
    return f"{kind} of {', '.join([*shown, *more])}" if rows else f"an empty {name}"


def _hint(misfit: Misfit, sight: Sight) -> str:
    value, size = misfit.value, sight.size
    if not eqx.is_array(value) or misfit.scope is None:
        return ""
    if not value.shape or value.shape[0] == 0:
        return ""
    if size is not None and value.shape[0] != size:
        return ""
    if not misfit.scope.accepts(value[0], misfit.hint, misfit.trail):
        return ""
    first = (
        "its first axis" if size is None else f"a first axis of `axis_size` = {size}"
    )
    return f"The shape fits but for {first}. If that is a lane axis, {sight.cure}."


def _bindings(trail: Trail) -> Iterator[str]:
    known: set[str] = set()
    for each in trail:
        for name, size in _named_sizes(each.value, each.form):
            if name not in known:
                known.add(name)
                yield f"{name} = {size} by `{dotted(each.path)}`"


def _named_sizes(value: Any, form: Any) -> Iterator[tuple[str, Any]]:
    """What an array, or the arrays of a tree, bound: jaxtyping does not tell."""
    if is_tree_hint(form):
        if form.structure is not None and form.structure.isidentifier():
            yield form.structure, jtu.tree_structure(value)
        for leaf in jtu.tree_leaves(value) if is_array_hint(form.leaftype) else ():
            yield from _named_sizes(leaf, form.leaftype)
        return
    words = form.dim_str.split()
    shape = getattr(value, "shape", ())
    spread = [i for i, word in enumerate(words) if "*" in word or "..." in word]
    if spread:
        at, width = spread[0], len(shape) - len(words) + 1
        sizes = [*shape[:at], shape[at : at + width], *shape[at + width :]]
    else:
        sizes = list(shape)
    for word, size in zip(words, sizes, strict=False):
        name = word.rpartition("=")[2].lstrip("#*")
        # What is broadcast binds no size of its own.
        is_free = "#" in word and (size == 1 or "*" in word)
        if name.isidentifier() and not name.startswith("_") and not is_free:
            yield name, size
