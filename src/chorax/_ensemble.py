"""A batched model as a module, which can be part of a larger model."""

import operator
from collections.abc import Callable, Hashable, Iterator
from typing import Any, cast, Generic, overload, TypeVar

import equinox as eqx
import jax.tree_util as jtu

from ._lanes._axes import argument_axes, check_lengths, keyword_axes, resolve_axes
from ._lanes._lane_axes import (
    ensemble_lanes,
    lane_axes,
    LaneAxes,
    take_lanes,
)
from ._text._table import (
    counted,
    in_bytes,
    is_array_like,
    Row,
    size_of,
    Table,
    value_cells,
)
from ._text._typed import typed
from ._tree._holder import LaneHolder
from ._tree._paths import leaf_paths
from ._tree._replace import replace


M = TypeVar("M")


class _Hint(int):
    """A number of lanes that is ignored when structures are compared: if leaves have
    it, the structure is the same for all numbers, as for other batched models. The
    memory of calls compares its `repr`."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hint)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return hash(_Hint)


class Ensemble(LaneHolder, Generic[M]):
    """A batched model that knows its lanes, as many as its leaves have.

    Calling it calls the model in every lane. It is a module like any other: gradients,
    optax, serialisation and `eqx.nn.inference_mode` work on it, and it can be a field
    of a larger model. A collective call on such a model also calls the modules inside,
    once per lane of the ensemble, each with its own key, and what they write gets one
    entry per lane. Their annotations are checked as one lane of the ensemble sees them.

    An ensemble as a part of a larger model is what users of functorch ask for in its
    issue 992.

    **Arguments:**

    - `model`: a batched model, from `vmap_call_all_fns` or `chorax.lanes.stack`.
    - `axes`: its lane axes: the `StateDelta` or the tree that was returned with it, or
        anything that `eqx.filter_vmap` takes as `in_axes`.

    **Raises:** `ValueError` if neither a leaf nor a delta has a number of lanes, or if
    leaves disagree.

    ```python
    >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
    >>> mlp = eqx.nn.MLP(2, 3, 8, 1, key=jax.random.key(0))
    >>> ensemble = chorax.lanes.Ensemble(*chorax.vmap_call_all_fns(
    ...     mlp, chorax.reset_parameters, axis_size=5, key=jax.random.key(1)))
    >>> ensemble(jnp.ones(2)).shape, len(ensemble), type(ensemble[0]).__name__
    ((5, 3), 5, 'MLP')
    >>> ensemble(jnp.ones((5, 2)), in_axes=0).shape
    (5, 3)
    >>> ensemble.model.layers[0].weight.shape, ensemble.axes.layers[0].weight
    ((5, 8, 2), 0)
    >>> best = ensemble[jnp.array([3, 1])]
    >>> best.axis_size, len([member for member in best])
    (2, 2)

    ```
    """

    model: M
    """The batched model, as it was given."""

    def __init__(self, model: M, axes: Any) -> None:
        found = lane_axes(model, axes)
        paths = leaf_paths(found.structure)
        pairs = zip(paths, found.axes, strict=True)
        self.model = model
        self.mapped = frozenset(
            (path, axis) for path, axis in pairs if axis is not None
        )
        # If no leaf has lanes, only this number distinguishes two structures.
        self.size_when_made = _Hint(found.size) if self.mapped else found.size

    @property
    def axis_size(self) -> int:
        """The number of lanes: that of the leaves, or the original number while there
        is no leaf with lanes."""
        return self._lanes().size

    @property
    def axes(self) -> M:
        """The model with the lane axis of each leaf, `None` for shared ones."""
        structure = jtu.tree_structure(self.model)
        return cast(M, jtu.tree_unflatten(structure, self._axes(structure)))

    def _axes(self, structure: jtu.PyTreeDef) -> list[int | None]:
        known = dict(self.mapped)
        return [known.get(path) for path in leaf_paths(structure)]

    def _lanes(self) -> LaneAxes:
        return ensemble_lanes(self)

    @typed("fn", Callable, "a function `(model, *args, **kwargs)`")
    def vmap(
        self,
        fn: Callable[..., Any],
        *,
        in_axes: Any = None,
        kwargs_in_axes: Any = None,
        out_axes: Any = ...,
        axis_name: Hashable = None,
    ) -> Callable[..., Any]:
        """Maps a function of the model over the lanes.

        **Arguments:**

        - `fn`: a function `(model, *args, **kwargs)`.
        - `in_axes`: the lane axes of `args`, as `eqx.filter_vmap` takes them: a tuple
            with one entry per argument, or one entry for all. `None`: every lane gets
            all of them.
        - `kwargs_in_axes`: the same for `kwargs`: a dictionary, or one entry for all.
        - `out_axes`: the lane axes of what `fn` returns. `...`: axis 0 of every array.
        - `axis_name`: as in `jax.vmap`.

        **Returns:** a function of `args` and `kwargs`. It raises `ValueError` if a
        mapped argument has another number of lanes than the ensemble.

        ```python
        >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
        >>> linears = [eqx.nn.Linear(2, 2, key=jax.random.key(i)) for i in range(3)]
        >>> ensemble = chorax.lanes.Ensemble(*chorax.lanes.stack(linears))
        >>> norm = ensemble.vmap(lambda linear, p: jnp.linalg.norm(linear.weight, p))
        >>> norm(2).shape
        (3,)

        ```
        """

        def call(model: M, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return fn(model, *args, **kwargs)

        def over_lanes(*args: Any, **kwargs: Any) -> Any:
            lanes = self._lanes()
            size = lanes.size
            own = argument_axes(args, in_axes)
            check_lengths(args, resolve_axes(args, own, "in_axes"), size, "in_axes")
            named, name = keyword_axes(kwargs, kwargs_in_axes), "kwargs_in_axes"
            check_lengths(kwargs, resolve_axes(kwargs, named, name), size, name)
            mapped = cast(Any, eqx).filter_vmap(
                call,
                in_axes=(lanes.rebuild(lanes.axes), own, named),
                out_axes=eqx.if_array(0) if out_axes is ... else out_axes,
                axis_name=axis_name,
                axis_size=size,
            )
            return mapped(self.model, args, kwargs)

        return over_lanes

    def __call__(
        self, *args: Any, in_axes: Any = None, kwargs_in_axes: Any = None, **kwargs: Any
    ) -> Any:
        """Calls the model in every lane.

        **Arguments:**

        - `args`, `kwargs`: what the model is called with.
        - `in_axes`, `kwargs_in_axes`: their lane axes, as in `Ensemble.vmap`. `None`:
            every lane gets them whole.

        **Returns:** what the model returns, with a leading lane axis.
        """
        axes = {"in_axes": in_axes, "kwargs_in_axes": kwargs_in_axes}
        return self.vmap(operator.call, **axes)(*args, **kwargs)

    def __len__(self) -> int:
        """The number of members."""
        return self.axis_size

    @overload
    def __getitem__(self, index: int) -> M: ...

    @overload
    def __getitem__(self, index: Any) -> "M | Ensemble[M]": ...

    def __getitem__(self, index: Any) -> Any:
        """Picks members.

        **Arguments:**

        - `index`: as in `chorax.lanes.take`.

        **Returns:** one member for an integer; an `Ensemble` for a slice, a mask or an
        array of indices.
        """
        lanes = self._lanes()
        taken, count = take_lanes(lanes, index)
        if count is None:
            return taken
        # `mapped` stays: it also has the axes of leaves that are absent for now.
        size = type(self.size_when_made)(count)
        return replace(self, model=taken, size_when_made=size)

    def __iter__(self) -> Iterator[M]:
        """The members, one by one."""
        lanes = self._lanes()
        return iter([take_lanes(lanes, index)[0] for index in range(lanes.size)])

    def __repr__(self) -> str:
        return self._table().text()

    def _repr_html_(self) -> str:
        return self._table().html()

    def _table(self) -> Table:
        try:
            size = self.axis_size
        except ValueError:  # Leaves disagree, which is no reason not to print them.
            size = self.size_when_made
        leaves, structure = jtu.tree_flatten(self.model)
        columns = leaf_paths(structure), leaves, self._axes(structure)
        arrays = [row for row in zip(*columns, strict=True) if is_array_like(row[1])]
        rows = tuple(
            Row(path, value_cells(x, axis), size_of(x)) for path, x, axis in arrays
        )
        shared = sum(axis is None for _, _, axis in arrays)
        parts = [
            f"{counted(size, 'lane')} of {type(self.model).__name__}",
            counted(len(rows) - shared, "leaf with lanes", "leaves with lanes"),
            f"{shared} shared",
            in_bytes(sum(row.size or 0 for row in rows)),
        ]
        head = ("path", "type", "shape", "bytes")
        return Table(f"Ensemble: {', '.join(parts)}", head, rows)
