"""Modules whose annotations are strings, because this file does not evaluate them."""

from __future__ import annotations

import dataclasses
from typing import Generic, TYPE_CHECKING, TypeVar

import equinox as eqx
from jax import Array
from jaxtyping import Float, PyTree


if TYPE_CHECKING:
    from jaxtyping import Int


T = TypeVar("T")


class Late(eqx.Module):
    v: Float[Array, "n"]
    w: list[Float[Array, "n m"]] | None


class Unknown(eqx.Module):
    """The annotation of `v` can't be resolved, but that of `w` can."""

    v: Int[Array, "n"]
    w: Float[Array, "n"]


class LateBase(eqx.Module, Generic[T]):
    tree: PyTree[Float[Array, "n"]]
    item: T


class LateChild(LateBase[Float[Array, "n"]]):
    name: str = eqx.field(static=True, default="child")


@dataclasses.dataclass
class Link:
    """A record that may contain another one of its class."""

    v: Float[Array, "n"]
    rest: Link | None = None


class Chain(eqx.Module):
    links: Link = eqx.field(static=True)
