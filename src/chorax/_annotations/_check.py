"""Checking one module against its annotations, and the error if it does not fit."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import equinox as eqx
import jax
import jax.tree_util as jtu

from .._text._places import dotted, Path, place
from .._text._show import short, with_article
from .._tree._memo import Cell, exact_structure, fingerprint, kind_cell
from .._tree._paths import walk
from ._fits import check_fields, Misfit
from ._hints import hinted_fields
from ._scope import Narrowed, zeros


class AnnotationError(TypeError):
    """A field of a module does not fit its jaxtyping annotation.

    Raised while tracing, by collective calls and by `check_annotations`.

    ```python
    >>> import chorax, equinox as eqx, jax.numpy as jnp
    >>> from jaxtyping import Array, Float
    >>> class Neuron(eqx.Module):
    ...     v: Float[Array, "n"]
    >>> try:
    ...     chorax.check_annotations(Neuron(jnp.zeros((2, 3))))
    ... except chorax.AnnotationError as error:
    ...     print(str(error).splitlines()[0])
    The field `v` of the Neuron at the root `()` does not fit its annotation.

    ```
    """


@dataclasses.dataclass(frozen=True)
class LaneArray:
    """An array as one lane sees it.

    `host` is the type of a NumPy scalar, or the dtype of a NumPy array that JAX would
    change.
    """

    struct: jax.ShapeDtypeStruct
    host: Any = None

    def without_axes(self, count: int) -> "LaneArray":
        """The same array without some leading axes."""
        shape, dtype = self.struct.shape[count:], self.struct.dtype
        return LaneArray(jax.ShapeDtypeStruct(shape, dtype), self.host)

    def stand_in(self, traced: jax.Array) -> Any:
        """What an annotation is asked about: the traced array, or a NumPy value."""
        if self.host is None:
            return traced
        if isinstance(self.host, type):
            return self.host()
        return zeros(self.host, traced.shape).view(Narrowed)


@dataclasses.dataclass(frozen=True)
class CheckContext:
    """The circumstances of a check, for its messages.

    `size` is the number of lanes, `None` without lanes; `cure` says how to declare a
    lane axis; `after` names the call that made the module. `admits_stacks` accepts a
    stack of modules, as `eqx.filter_vmap` builds it: all arrays have the same leading
    axes, and each module of the stack fits.
    """

    size: int | None
    cure: str
    after: Callable[[], str] = str
    admits_stacks: bool = False


def check_module(
    structure: jtu.PyTreeDef, leaves: Sequence[Any], path: Path, context: CheckContext
) -> None:
    """Raises unless a module fits; a kind that was found to fit is not checked again.

    Its arrays are given as `LaneArray`s, its other leaves as they are.
    """
    try:
        tokens = [x if isinstance(x, LaneArray) else fingerprint(x) for x in leaves]
        kind = exact_structure(structure), tuple(tokens), context.admits_stacks
        cell = kind_cell((check_module, kind))
    except TypeError:
        cell = Cell()  # A static value can't be hashed: nothing is remembered.
    if cell.value:
        return
    message = _error_of(structure, leaves, path, context)
    stacks = _slices(leaves) if message and context.admits_stacks else ()
    if message and all(_error_of(structure, x, path, context) for x in stacks):
        raise AnnotationError(message)
    cell.value = True


def _error_of(
    structure: jtu.PyTreeDef, leaves: Sequence[Any], path: Path, context: CheckContext
) -> str | None:
    """The message about the first field that does not fit; `None` if all do."""
    message = None

    def check(*arrays: jax.Array) -> None:
        nonlocal message
        traced = iter(arrays)
        node = jtu.tree_unflatten(
            structure,
            [
                x.stand_in(next(traced)) if isinstance(x, LaneArray) else x
                for x in leaves
            ],
        )
        try:
            check_fields(node, hinted_fields(cast("type[Any]", type(node))))
        except Misfit as misfit:
            message = _message(node, path, misfit, context)

    jax.eval_shape(check, *[x.struct for x in leaves if isinstance(x, LaneArray)])
    return message


def _slices(leaves: Sequence[Any]) -> Iterator[list[Any]]:
    """The leaves without one leading axis, two, and so on, while all arrays agree."""
    shapes = [x.struct.shape for x in leaves if isinstance(x, LaneArray)]
    depth = 1
    while len({shape[:depth] for shape in shapes}) == 1 and len(shapes[0]) >= depth:
        yield [x.without_axes(depth) if isinstance(x, LaneArray) else x for x in leaves]
        depth += 1


def _message(node: Any, path: Path, misfit: Misfit, context: CheckContext) -> str:
    """Which field of which module does not fit, what it holds and what is annotated."""
    field, kind, value = misfit.field, cast("type[Any]", type(node)), misfit.value
    assert field is not None
    seen = "" if context.size is None else ", as one lane sees it"
    owner = "" if field.owner is kind else f" (in {field.owner.__name__})"
    where = dotted((*path, *misfit.path))
    rows = [
        f"The field `{misfit.path[0]}` of the {kind.__name__} at {place(path)} "
        f"does not fit its annotation{context.after()}{seen}.",
        f"  annotated: {field.name}: {field.written()}{owner}",
        f"  found: {_describe(value)}" + (f", at `{where}`" if misfit.path[1:] else ""),
    ]
    names = misfit.scope.bound.items()
    if names:
        bound = [f"{name} = {size} by `{dotted(at)}`" for name, (size, at) in names]
        rows.append(f"  bound: {', '.join(bound)}")
    # Without lanes any first axis may be one of lanes, except an empty one.
    length = value.shape[0] if eqx.is_array(value) and value.shape else 0
    if length and context.size in (None, length) and misfit.accepts(value[0]):
        size = "" if context.size is None else f" of `axis_size` = {length}"
        rows.append(
            f"Without the first axis{size} it would fit. If that is a lane axis, "
            f"{context.cure}."
        )
    return "\n".join(rows)


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
