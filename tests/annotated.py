"""Annotations, with values that fit them and values that do not.

The modules below are written as users write them: annotations as strings (in
`annotated_late.py`), inherited, generic, behind aliases.
"""

import collections
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Annotated,
    Any,
    ClassVar,
    Generic,
    Literal,
    NamedTuple,
    NewType,
    Optional,
    TypeVar,
    Union,
)

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.tree_util as jtu
import numpy as np
from jax import Array
from jaxtyping import (
    AbstractDtype,
    ArrayLike,
    BFloat16,
    Bool,
    Complex,
    Float,
    Float16,
    Float32,
    Inexact,
    Int,
    Int32,
    Integer,
    Key,
    Num,
    PRNGKeyArray,
    PyTree,
    Real,
    Scalar,
    ScalarLike,
    Shaped,
    UInt,
    UInt8,
)


T = TypeVar("T")
B = TypeVar("B", bound=Float[Array, "3"])
C = TypeVar("C", Float[Array, "3"], Int[Array, "3"])
Vector = Float[Array, "n"]
Weight = NewType("Weight", Float[Array, "3"])  # pyright: ignore[reportGeneralTypeIssues]


class UInt8or16(AbstractDtype):
    dtypes = ("uint8", "uint16")


@jtu.register_dataclass
@dataclasses.dataclass
class Record:
    v: Float[Array, "n"]
    w: Float[Array, "n"]


@jtu.register_dataclass
@dataclasses.dataclass
class Box(Generic[T]):
    item: T


class Pair(NamedTuple):
    v: Float[Array, "n"]
    w: Float[Array, "n"]


class Held(eqx.Module, Generic[T]):
    item: T


def f(*shape: int, dtype: Any = jnp.float32) -> Array:
    # From NumPy, so that nothing is compiled per shape.
    return jnp.asarray(np.zeros(shape, dtype))


def i(*shape: int) -> Array:
    return f(*shape, dtype=jnp.int32)


key = jax.random.key(0)
old_key = jax.random.key_data(key)

# An annotation, values that fit it, and values that do not.
ANNOTATIONS: dict[str, tuple[Any, list[Any], list[Any]]] = {
    "float": (Float[Array, ""], [f(), f(dtype=jnp.bfloat16)], [i(), f(1), 1.0, None]),
    "float32": (Float32[Array, "3"], [f(3)], [f(3, dtype=jnp.float16), f(4)]),
    "float16": (Float16[Array, "..."], [f(3, dtype=jnp.float16)], [f(3)]),
    "bfloat16": (BFloat16[Array, "..."], [f(dtype=jnp.bfloat16)], [f()]),
    "int": (Int[Array, "_"], [i(3)], [f(3), i(), jnp.zeros(3, jnp.uint8)]),
    "int32": (Int32[Array, "3"], [i(3)], [jnp.zeros(3, jnp.int8)]),
    "integer": (Integer[Array, "3"], [i(3), jnp.zeros(3, jnp.uint8)], [f(3)]),
    "uint": (UInt[Array, "3"], [jnp.zeros(3, jnp.uint8)], [i(3)]),
    "uint8": (UInt8[Array, "3"], [jnp.zeros(3, jnp.uint8)], [i(3)]),
    "bool": (Bool[Array, "3"], [jnp.zeros(3, bool)], [i(3), jnp.zeros(4, bool)]),
    "complex": (Complex[Array, "3"], [f(3, dtype=jnp.complex64)], [f(3)]),
    "inexact": (Inexact[Array, "3"], [f(3), f(3, dtype=jnp.complex64)], [i(3)]),
    "real": (Real[Array, "3"], [f(3), i(3)], [f(3, dtype=jnp.complex64)]),
    "num": (Num[Array, "3"], [f(3), i(3)], [jnp.zeros(3, bool)]),
    "shaped": (Shaped[Array, "3"], [f(3), i(3), jnp.zeros(3, bool)], [f(4), "a"]),
    "own dtypes": (UInt8or16[Array, "3"], [jnp.zeros(3, jnp.uint16)], [i(3)]),
    "key": (Key[Array, ""], [key], [old_key, jax.random.split(key), f()]),
    "keys": (Key[Array, "n"], [jax.random.split(key)], [key]),
    "any key": (PRNGKeyArray, [key, old_key], [f(2), jax.random.split(key)]),
    "scalar": (Scalar, [f(), i()], [f(1)]),
    "scalar like": (ScalarLike, [f(), 1.0, True], [f(1), "a"]),
    "array like": (Float[ArrayLike, ""], [f(), 1.0], [f(1), "a"]),
    "numpy": (Float[np.ndarray, "3"], [np.zeros(3, np.float32)], [f(4), i(3)]),
    "any array": (Float[Any, "3"], [f(3), np.zeros(3)], [f(4), 1.0]),
    "nested": (Float[Float[Array, "3"], "2"], [f(2, 3)], [f(3), f(3, 2)]),
    "fixed": (Float[Array, "2 3"], [f(2, 3)], [f(3, 2), f(6), f(1, 2, 3)]),
    "twice the same": (Float[Array, "n n"], [f(2, 2)], [f(2, 3)]),
    "with names": (Float[Array, "rows=2 cols=3"], [f(2, 3)], [f(3, 2)]),
    "anonymous": (Float[Array, "_ _n"], [f(2, 3)], [f(2)]),
    "symbolic": (Float[Array, "n n+1"], [f(2, 3)], [f(2, 2)]),
    "product": (Float[Array, "n m n*m"], [f(2, 3, 6)], [f(2, 3, 5)]),
    "broadcastable": (Float[Array, "n #n"], [f(2, 2), f(2, 1)], [f(2, 3)]),
    "fixed broadcastable": (Float[Array, "#4"], [f(4), f(1)], [f(2)]),
    "variadic": (Float[Array, "*batch n n"], [f(2, 2), f(5, 2, 2)], [f(5, 2, 3)]),
    "in the middle": (Float[Array, "n ... n"], [f(2, 2), f(2, 7, 2)], [f(2, 7, 3)]),
    "any rank": (Float[Array, "..."], [f(), f(2, 3)], [i()]),
    "optional": (Optional[Float[Array, "3"]], [f(3), None], [f(4), 1.0]),
    "union": (Float[Array, "3"] | Int[Array, "4"], [f(3), i(4)], [f(4), i(3), None]),
    "old union": (Union[Float[Array, "3"], float, str], [f(3), 1.0, "a"], [f(4), 1]),
    "or any array": (Float[Array, "3"] | Array, [f(3), i(4)], [1.0]),
    "or anything": (Float[Array, "3"] | Any, [f(4), "a"], []),
    "or literal": (Float[Array, "3"] | Literal["none"], [f(3), "none"], ["some"]),
    "or function": (Float[Array, "3"] | Callable[[Any], Any], [f(3), len], [f(4)]),
    "or layer": (
        Float[Array, "3"] | eqx.nn.Identity,
        [f(3), eqx.nn.Identity()],
        [f(4), eqx.nn.Dropout(0.5)],
    ),
    "list": (list[Float[Array, "n"]], [[], [f(3), f(3)]], [[f(3), f(4)], (f(3),)]),
    "last of many": (list[Float[Array, "3"]], [[f(3)] * 9], [[f(3)] * 9 + [f(4)]]),
    "sequence": (Sequence[Float[Array, "n"]], [(f(3), f(3))], [[f(3), f(4)], f(3)]),
    "tuple": (
        tuple[Float[Array, "n"], Int[Array, "n"]],
        [(f(3), i(3))],
        [(f(3), i(4)), (f(3),), [f(3), i(3)]],
    ),
    "any length": (tuple[Float[Array, "3"], ...], [(), (f(3),)], [(f(3), f(4))]),
    "dict": (dict[str, Float[Array, "n"]], [{"a": f(3)}], [{"a": f(3), "b": f(4)}]),
    "mapping": (
        Mapping[str, Float[Array, "3"]],
        [collections.OrderedDict(a=f(3))],
        [{"a": f(4)}, [f(3)]],
    ),
    "deep": (
        dict[str, list[Float[Array, "n"] | None]],
        [{"a": [f(3), None], "b": [f(3)]}],
        [{"a": [f(3)], "b": [None, f(4)]}],
    ),
    "tuple in union": (
        tuple[Float[Array, "n"], Float[Array, "n"]] | tuple[Float[Array, "n"], float],
        [(f(3), f(3)), (f(3), 1.0)],
        [(f(3), f(4))],
    ),
    "tree": (
        PyTree[Float[Array, "n"]],
        [f(3), {"a": f(3), "b": (f(3), None)}],
        [{"a": f(3), "b": f(4)}, {"a": 1.0}],
    ),
    "tree of any": (PyTree[Float[Array, "?n"], "T"], [{"a": f(3), "b": f(4)}], [i(3)]),
    "tree of pairs": (
        PyTree[tuple[Float[Array, "?n"], Int[Array, "?n"]], "T"],
        [{"a": (f(3), i(3)), "b": (f(4), i(4))}],
        [{"a": (f(3), i(4))}, {"a": f(3)}],
    ),
    "tree of either": (PyTree[Float[Array, "3"] | float], [[f(3), 1.0, 1]], [[f(4)]]),
    "list of trees": (list[PyTree[Int[Array, "3"]]], [[{"a": i(3)}]], [[{"a": f(3)}]]),
    "record": (
        Record,
        [Record(f(3), f(3))],
        [Record(f(3), f(4)), Pair(f(3), f(3))],
    ),
    "named tuple": (Pair, [Pair(f(3), f(3))], [Pair(f(3), f(4)), (f(3), f(3))]),
    "two records": (
        tuple[Record, Record],
        [(Record(f(3), f(3)), Record(f(4), f(4)))],
        [(Record(f(3), f(3)), Record(f(4), f(5)))],
    ),
    "generic record": (Box[Float[Array, "3"]], [Box(f(3))], [Box(f(4)), f(3)]),
    "generic module": (
        Held[list[Float[Array, "n"]]],
        [Held([f(3), f(3)])],
        [Held([f(3), f(4)]), Held(f(3))],
    ),
    "state index": (
        eqx.nn.StateIndex[Float[Array, "3"]],
        [eqx.nn.StateIndex(f(3))],
        [eqx.nn.StateIndex(f(4))],
    ),
    "annotated": (Annotated[Float[Array, "3"], "volts"], [f(3)], [f(4)]),
    "new type": (Weight, [f(3)], [f(4)]),
    "bounded variable": (B, [f(3)], [f(4)]),
    "constrained variable": (C, [f(3), i(3)], [f(4)]),
    "inner string": (list["Vector"], [[f(3), f(3)]], [[f(3), f(4)]]),
}


class Base(eqx.Module):
    v: Float[Array, "n"]


class Inherits(Base):
    w: Float[Array, "n n"]


class Overrides(Base):
    v: Float[Array, "n m"]
    w: Float[Array, "m"]


class Early(eqx.Module):
    w: Float[Array, "n-1"]
    v: Float[Array, "n"]


class Spread(eqx.Module):
    v: Float[Array, "*batch n"]
    w: Float[Array, "*batch"]


class Broadcast(eqx.Module):
    v: Float[Array, "n m"]
    w: Float[Array, "#n #m"]


class ClassLevel(eqx.Module):
    scale: ClassVar[Float[Array, "7"]] = 1.0  # pyright: ignore[reportAssignmentType]
    v: Float[Array, "n"]
    w: Float[Array, "n"]


class Abstract(eqx.Module):
    v: eqx.AbstractVar[Float[Array, "n"]]
    size: eqx.AbstractVar[int]


class Concrete(Abstract):
    v: Float[Array, "n"]
    w: Float[Array, "n"]

    @property
    def size(self) -> int:
        raise RuntimeError("A property is no field, and nobody asked for it.")


class OfSize(eqx.Module):
    n: int = eqx.field(static=True)
    v: Float[Array, "{n}"]
    w: Float[Array, "{self.n}+1"]


class Structured(eqx.Module):
    v: PyTree[Float[Array, "?n"], "T"]  # pyright: ignore[reportGeneralTypeIssues]
    w: PyTree[Float[Array, "?n"], "T"]  # pyright: ignore[reportGeneralTypeIssues]


class OfVectors(Held[Float[Array, "3"]]):
    pass


class HeldTwice(Held[T], Generic[T]):
    more: list[T]


class OfTwice(HeldTwice[Float[Array, "n"]]):
    pass


class Unset(eqx.Module):
    v: Float[Array, "n"]
    w: Float[Array, "n"] = eqx.field(init=False)


# A class, with arguments that fit and arguments that do not.
MODULES: dict[str, tuple[Any, list[dict[str, Any]], list[dict[str, Any]]]] = {
    "inherited": (
        Inherits,
        [{"v": f(3), "w": f(3, 3)}],
        [{"v": f(3), "w": f(4, 4)}, {"v": f(1, 3), "w": f(3, 3)}],
    ),
    "overridden": (
        Overrides,
        [{"v": f(2, 3), "w": f(3)}],
        [{"v": f(3), "w": f(3)}, {"v": f(2, 3), "w": f(2)}],
    ),
    "bound later": (Early, [{"v": f(3), "w": f(2)}], [{"v": f(3), "w": f(3)}]),
    "variadic in two": (
        Spread,
        [{"v": f(2, 5, 3), "w": f(2, 5)}],
        [{"v": f(2, 5, 3), "w": f(2)}],
    ),
    "broadcast in two": (
        Broadcast,
        [{"v": f(2, 3), "w": f(1, 3)}],
        [{"v": f(2, 3), "w": f(2, 2)}],
    ),
    "class variable": (
        ClassLevel,
        [{"v": f(3), "w": f(3)}],
        [{"v": f(3), "w": f(4)}],
    ),
    "abstract": (Concrete, [{"v": f(3), "w": f(3)}], [{"v": f(3), "w": f(4)}]),
    "by a field": (
        OfSize,
        [{"n": 3, "v": f(3), "w": f(4)}],
        [{"n": 3, "v": f(4), "w": f(4)}, {"n": 3, "v": f(3), "w": f(3)}],
    ),
    "one structure": (
        Structured,
        [{"v": [f(3), f(4)], "w": [f(3), f(4)]}, {"v": None, "w": [f(3)]}],
        [{"v": [f(3), f(4)], "w": [f(4), f(4)]}, {"v": [f(3)], "w": (f(3),)}],
    ),
    "generic base": (OfVectors, [{"item": f(3)}], [{"item": f(4)}]),
    "two generic bases": (
        OfTwice,
        [{"item": f(3), "more": [f(3)]}],
        [{"item": f(3), "more": [f(4)]}],
    ),
}
