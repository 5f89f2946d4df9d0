"""Operations on leaves: arrays of JAX, arrays of NumPy, and abstract ones."""

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
    """`operation(library, *arrays, **options)`, by the library that the arrays are of.

    That is NumPy if all arrays are NumPy's, unless `by`, which lanes are taken or
    chosen by, is traced. If one of them is a `jax.ShapeDtypeStruct`, so is the result.
    """
    operation = functools.partial(operation, **options)
    if any(map(_is_abstract, arrays)):
        return jax.eval_shape(functools.partial(operation, jnp), *arrays)
    is_host = are_numpy(arrays) and not isinstance(by, jax.core.Tracer)
    return operation(np if is_host else jnp, *arrays)


def are_numpy(arrays: Iterable[Any]) -> bool:
    """Whether all arrays are NumPy's."""
    return all(isinstance(x, np.ndarray | np.generic) for x in arrays)


def ask(question: Callable[[Any], T], tree: Any) -> T:
    """`question(tree)`, where each abstract array is a traced one for the time being.

    Users' functions of leaves, such as `eqx.is_array` and `eqx.if_array(0)`, know
    traced arrays, and not a `jax.ShapeDtypeStruct`.
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
