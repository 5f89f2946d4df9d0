"""The arguments of a collective call, as one value."""

import contextlib
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, cast, Literal, TypeAlias

import jax

from .._lanes._spread import without_mesh
from ..filters import Predicate
from ._kind import Lanes


# The options that say what lanes there are.
LANE_OPTIONS = ("axis_size", "axis_name", "spmd_axis_name", "chunk_size", "sharding")
IfNotExist: TypeAlias = Literal["raise", "pass", "none", "warn"]


@dataclasses.dataclass(frozen=True, eq=False)
class Request:
    """The arguments of a collective call, checked, under the names that users know.

    `lanes` stands for all options that describe the lanes; it is `None` without lanes.
    """

    fn_name: str | Callable[..., Any]
    args: Any
    kwargs: dict[str, Any]
    lanes: Lanes | None
    key: Any
    node_to_exclude: Predicate
    state_to_exclude: Predicate
    state_tag: str | None
    fn_if_not_exist: IfNotExist
    has_aux: bool
    # For each filter that consists of tags and classes only, these.
    bare_filters: Mapping[str, tuple[str | type, ...]]
    where: jax.Array | None = None
    in_axes: Any = None
    args_in_axes: Any = None
    kwargs_in_axes: Any = None

    @property
    def label(self) -> str:
        """The function's name, for messages."""
        if isinstance(self.fn_name, str):
            return self.fn_name
        return getattr(self.fn_name, "__name__", type(self.fn_name).__name__)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The positional arguments; anything but a tuple is one argument."""
        args = self.args
        return cast(tuple[Any, ...], args) if isinstance(args, tuple) else (args,)

    @property
    def size(self) -> int | None:
        return None if self.lanes is None else self.lanes.size

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """The scope in which the call is traced and run."""
        is_plain = cast(Any, jax.config).jax_disable_jit
        if is_plain or self.lanes is None or not self.lanes.runs_per_device:
            return contextlib.nullcontext()
        return without_mesh()
