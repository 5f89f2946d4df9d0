"""Modules whose annotations are strings: those of this file are never evaluated."""

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
    """Nobody can say what `v` is, but `w` is known."""

    v: Int[Array, "n"]
    w: Float[Array, "n"]


class LateBase(eqx.Module, Generic[T]):
    tree: PyTree[Float[Array, "n"]]
    item: T


class LateChild(LateBase[Float[Array, "n"]]):
    name: str = eqx.field(static=True, default="child")


@dataclasses.dataclass
class Link:
    """A record that may hold one of its own kind."""

    v: Float[Array, "n"]
    rest: Link | None = None


class Chain(eqx.Module):
    links: Link = eqx.field(static=True)
