"""Models of several structures, stacked per structure and used as one list."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, SupportsIndex, TypeVar

import equinox as eqx
import jax.tree_util as jtu

from ._ensemble import Ensemble
from ._lanes._lane_checks import check_alike, check_same
from ._lanes._stacking import listed, stack, unstack
from ._text._show import shown
from ._text._table import counted
from ._text._typed import typed
from ._tree._holder import Wrapper
from ._tree._paths import same_structure


M = TypeVar("M")


class Groups(Wrapper, Generic[M]):
    """Models of several structures as one list: what `chorax.lanes.groups` returns.

    It is a PyTree, so gradients, optax and collective calls work on it. It is not one
    program: each group is compiled separately, groups run one after the other, and a
    group of one model is no faster than that model.

    **Fields:**

    - `ensembles`: an `Ensemble` for each group.
    - `places`: for each group, where its members are in the list of all.

    ```python
    >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
    >>> k = jax.random.split(jax.random.key(0), 3)
    >>> narrow, wide, other = [
    ...     eqx.nn.MLP(2, 1, width, 1, key=key) for width, key in zip((4, 8, 4), k)]
    >>> groups = chorax.lanes.groups([narrow, wide, other])
    >>> groups.places, len(groups), [out.shape for out in groups(jnp.ones(2))]
    (((0, 2), (1,)), 3, [(1,), (1,), (1,)])
    >>> [model.layers[0].out_features for model in groups], groups[1].width_size
    ([4, 8, 4], 8)

    ```
    """

    ensembles: tuple[Ensemble[M], ...]
    places: tuple[tuple[int, ...], ...] = eqx.field(static=True)

    @typed("fn", Callable, "a function `(model, *args)`")
    def map(self, fn: Callable[..., Any], *args: Iterable[Any]) -> list[Any]:
        """Calls a function for each model, as `list(map(fn, models, *args))` would.

        **Arguments:**

        - `fn`: a function `(model, *args)`, which sees one model and its entry of each
            of `args`.
        - `args`: lists with an entry for each model, in order, stacked by group as
            `chorax.lanes.stack` does. An array stands for the list of its rows.

        **Returns:** a list with what `fn` returns for each model, in order.

        **Raises:** `ValueError` for a list of another length.

        ```python
        >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
        >>> key = jax.random.key(0)
        >>> linears = [eqx.nn.Linear(2, size, key=key) for size in (3, 4)]
        >>> groups = chorax.lanes.groups(linears)
        >>> xs = [jnp.ones(2), jnp.zeros(2)]
        >>> [y.shape for y in groups.map(lambda linear, x: linear(x), xs)]
        [(3,), (4,)]

        ```
        """
        results: list[Any] = [None] * len(self)
        columns = [listed(arg, "Each of `args` of `map`") for arg in args]
        for column in columns:
            if len(column) != len(self):
                raise ValueError(
                    f"`args` of `map` must have an entry for each of {len(self)} "
                    f"models, but one of them has {len(column)}."
                )
        for ensemble, places in zip(self.ensembles, self.places, strict=True):
            stacked = [stack([column[i] for i in places]) for column in columns]
            over_lanes = ensemble.vmap(fn, in_axes=tuple(axes for _, axes in stacked))
            found = over_lanes(*(arg for arg, _ in stacked))
            rows: list[Any] = [found] * len(places)
            if any(eqx.is_array(x) for x in jtu.tree_leaves(found)):
                rows = unstack(found, eqx.if_array(0))
            for place, row in zip(places, rows, strict=True):
                results[place] = row
        return results

    def __call__(self, *args: Any, **kwargs: Any) -> list[Any]:
        """Calls each model with the same arguments; a list of the results, in order."""

        def call(model: Any) -> Any:
            return model(*args, **kwargs)

        return self.map(call)

    def __len__(self) -> int:
        """The number of models."""
        return sum(map(len, self.places))

    def __getitem__(self, index: SupportsIndex) -> M:
        """The model at an index of the list."""
        found = range(len(self))[index]
        rows = zip(self.places, self.ensembles, strict=True)
        places, ensemble = next(row for row in rows if found in row[0])
        return ensemble[places.index(found)]

    def __iter__(self) -> Iterator[M]:
        """The models one by one, in order."""
        found: dict[int, M] = {}
        for places, ensemble in zip(self.places, self.ensembles, strict=True):
            found |= zip(places, ensemble, strict=True)
        return iter([found[i] for i in range(len(self))])

    def __repr__(self) -> str:
        kinds = counted(len(self.places), "group")
        lines = [f"Groups: {counted(len(self), 'model')} in {kinds}"]
        for places, ensemble in zip(self.places, self.ensembles, strict=True):
            title, *_ = repr(ensemble).splitlines()
            lines.append(f"{', '.join(map(str, places))}: {title}")
        return "\n".join(lines)


@typed("models", Iterable, "an iterable of models")
def groups(models: Iterable[M]) -> Groups[M]:
    """Stacks models of several structures, one batched model per structure.

    Use it where members differ in width, depth or kind. For models of one structure,
    see `stack` and `Ensemble`.

    **Arguments:**

    - `models`: at least one model; each has an array. Models that `stack` would take
        together are one group.

    **Returns:**

    A `Groups`, which is called, mapped and trained as one list; iterating over it
    gives the models back, in order.

    **Raises:** `ValueError` if there is no model, or for one without arrays.

    ```python
    >>> import chorax, equinox as eqx, jax, jax.numpy as jnp
    >>> keys = jax.random.split(jax.random.key(0), 4)
    >>> models = [eqx.nn.MLP(2, 1, 4, 1 + i % 2, key=key) for i, key in enumerate(keys)]
    >>> groups = chorax.lanes.groups(models)
    >>> def loss(groups):
    ...     return sum(groups.map(lambda model, x: model(x).sum(), jnp.ones((4, 2))))
    >>> grads = eqx.filter_grad(loss)(groups)
    >>> groups = eqx.apply_updates(groups, grads)
    >>> [len(model.layers) for model in groups]
    [2, 3, 2, 3]

    ```
    """
    found: list[list[int]] = []
    trees = listed(models, "`models` of `groups`")
    for index, model in enumerate(trees):
        if not any(eqx.is_array(x) for x in jtu.tree_leaves(model)):
            raise ValueError(
                f"Models of `groups` must have an array, but model {index} has none: "
                f"{shown(model)}."
            )
        group = next((g for g in found if _are_alike(trees[g[0]], model)), None)
        if group is None:
            found.append(group := [])
        group.append(index)
    if not found:
        raise ValueError("There is nothing to group: no models were given.")
    ensembles = [Ensemble(*stack([trees[i] for i in group])) for group in found]
    return Groups(tuple(ensembles), tuple(map(tuple, found)))


def _are_alike(one: Any, other: Any) -> bool:
    """Whether `stack` takes them together."""
    leaves, structure = jtu.tree_flatten(one)
    others, other_structure = jtu.tree_flatten(other)
    if not same_structure(structure, other_structure):
        return False
    try:
        for x, y in zip(leaves, others, strict=True):
            check = check_alike if eqx.is_array(x) else check_same
            check(x, y, "")
    except ValueError:
        return False
    return True
