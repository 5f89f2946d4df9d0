"""Operations on leaves: JAX arrays, NumPy arrays and abstract arrays."""

import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import jax
import jax.core
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np


T = TypeVar("T")


def compute(
    operation: Callable[..., Any], *arrays: Any, by: Any = None, **options: Any
) -> Any:
    """`operation(library, *arrays, **options)` with `numpy` or `jax.numpy`.

    It is NumPy if all arrays are NumPy arrays, unless `by`, which selects lanes, is
    traced. If one of them is a `jax.ShapeDtypeStruct`, so is the result.
    """
    operation = functools.partial(operation, **options)
    if any(map(_is_abstract, arrays)):
        return jax.eval_shape(functools.partial(operation, jnp), *arrays)
    is_host = are_numpy(arrays) and not isinstance(by, jax.core.Tracer)
    return operation(np if is_host else jnp, *arrays)


def are_numpy(arrays: Iterable[Any]) -> bool:
    """Whether all are NumPy arrays."""
    return all(isinstance(x, np.ndarray | np.generic) for x in arrays)


def ask(question: Callable[[Any], T], tree: Any) -> T:
    """`question(tree)`, with traced arrays in place of abstract ones.

    Functions of leaves, such as `eqx.is_array` and `eqx.if_array(0)`, recognise traced
    arrays, but not a `jax.ShapeDtypeStruct`.
    """
    leaves, structure = jtu.tree_flatten(tree)
    if not any(map(_is_abstract, leaves)):
        return question(tree)
    answers: list[T] = []

    def trace(abstract: dict[int, Any]) -> None:
        seen = [abstract.get(index, x) for index, x in enumerate(leaves)]
        answers.append(question(jtu.tree_unflatten(structure, seen)))

    jax.eval_shape(trace, {i: x for i, x in enumerate(leaves) if _is_abstract(x)})
    return answers[0]


def _is_abstract(x: Any) -> bool:
    return isinstance(x, jax.ShapeDtypeStruct)
