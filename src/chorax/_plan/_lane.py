"""The one place where a user's method runs: for one node, in one lane."""

from collections.abc import Sequence
from typing import Any, cast, TypeGuard

import equinox as eqx
import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu

from .._text._places import dotted, Path, place
from .._text._show import named, with_article
from .._tree._memo import static_fields
from .._tree._paths import walk
from ._advice import advice
from ._constants import held_by, is_fixed, statics
from ._kind import (
    ArraySpec,
    Call,
    Kept,
    Kind,
    New,
    Origin,
    Outcome,
    Spec,
    spec_of,
    StaticSpec,
)


def call_once(
    kind: Kind, call: Call, inputs: Sequence[Any], path: Path
) -> tuple[list[Any], Outcome]:
    """Calls the method; returns the new arrays and the outcome.

    `inputs` are the arrays of the node, those of the arguments, and the key if the
    method gets one.
    """
    arrays = iter(inputs)
    leaves = [_fill(spec, arrays) for spec in kind.specs]
    node = jtu.tree_unflatten(kind.structure, leaves)
    arguments = [_fill(spec, arrays) for spec in call.specs]
    function, args, kwargs = jtu.tree_unflatten(call.arguments, arguments)
    if kind.gets_key:
        kwargs = {**kwargs, "key": next(arrays)}
    where = f"`{call.label}` of {type(node).__name__} at {place(path)}"
    try:
        if call.name is None:
            result = function(node, *args, **kwargs)
        else:
            result = getattr(node, call.name)(*args, **kwargs)
    except Exception as error:
        error.add_note(f"Raised by {where}, in a collective call of chorax.")
        for note in advice(
            error, call.name, node, args, kwargs, call.lanes is not None
        ):
            error.add_note(note)
        raise
    aux = None
    if call.has_aux:
        if not _is_pair(result):
            raise TypeError(
                f"{where} must return `(node, aux)`, since `has_aux=True`, but "
                f"returned {named(result)}."
            )
        result, aux = result
    _check_result(result, node, where, call.has_aux)

    news: list[Any] = []
    out, structure = jtu.tree_flatten(result)
    aux_out, aux_structure = jtu.tree_flatten(aux)
    places: dict[int, list[int]] = {}
    for index, leaf in enumerate(leaves):
        places.setdefault(id(leaf), []).append(index)

    def origin(position: int, leaf: Any) -> Origin:
        found = places.get(id(leaf))
        if found is not None:
            return Kept(position if position in found else found[0])
        spec = spec_of(leaf, None)
        if isinstance(spec, StaticSpec):
            return spec
        news.append(jnp.asarray(leaf))
        return New(len(news) - 1)

    origins = tuple(origin(i, leaf) for i, leaf in enumerate(out))
    if kind.levels:
        places.clear()  # In `aux` the lanes of ensembles are always in front.
    aux_origins = tuple(origin(-1, leaf) for leaf in aux_out)
    constants = [x.value for x in (*origins, *aux_origins) if isinstance(x, StaticSpec)]
    old = set(map(id, statics(node)))
    constants += [x for x in statics((result, aux)) if id(x) not in old]
    if any(isinstance(x, jax.core.Tracer) for x in held_by(constants)):
        _check_constants((result, aux), inputs, where)
    fixed = is_fixed(tuple(constants))
    return news, Outcome(structure, origins, aux_structure, aux_origins, fixed)


def _fill(spec: Spec, arrays: Any) -> Any:
    if isinstance(spec, ArraySpec):
        return next(arrays)
    return spec.value


def _check_result(result: Any, node: Any, where: str, has_aux: bool) -> None:
    expected = with_article(type(node).__name__)
    if type(result) is type(node):
        return
    cure = "Return the updated node, or `return self` if nothing changes."
    if not has_aux and _is_pair(result):
        cure = f"{cure} To return `(node, aux)`, pass `has_aux=True`."
    raise TypeError(
        f"{where} must return {expected}, but returned {named(result)}. {cure}"
    )


def _is_pair(x: Any) -> TypeGuard[tuple[Any, Any]]:
    return isinstance(x, tuple) and len(cast(tuple[Any, ...], x)) == 2


def _check_constants(made: tuple[Any, Any], inputs: Sequence[Any], where: str) -> None:
    """Raises where a non-array holds a traced array, which ends with the trace."""
    # What tells the arrays of this trace from those of a transformation around the call
    # has no public name. Should it go, all of them are taken for this trace's own.
    probes = (*inputs, jnp.zeros(()))
    own = {id(getattr(x, "_trace", None)) for x in probes}

    def is_held(value: Any) -> bool:
        traced: list[Any] = [
            x for x in held_by(value) if isinstance(x, jax.core.Tracer)
        ]
        return any(id(getattr(x, "_trace", None)) in own for x in traced)

    for path, item, is_leaf in walk(made):
        names = static_fields(type(item)) if isinstance(item, eqx.Module) else ()
        for name in names:
            if is_held(getattr(item, name, None)):
                raise TypeError(
                    f"{where} put a traced array into the static field "
                    f"{_written(path, name)}. Static fields are part of the program; "
                    "declare the field without `static=True`."
                )
        if is_leaf and not eqx.is_array(item) and is_held(item):
            raise TypeError(
                f"{where} wrote {named(item)} that holds a traced array into "
                f"{_written(path)}: it would be of no use after the call. Write the "
                "array into a field of its own, or use `jax.tree_util.Partial` for a "
                "function of arrays."
            )


def _written(path: Path, *names: str) -> str:
    return "`aux`" if path[0] else f"`{dotted((*path[1:], *names))}`"
