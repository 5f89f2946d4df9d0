"""Warnings that point at the user's line."""

import inspect
import warnings
from collections.abc import Iterable
from types import FrameType


# The packages whose frames may be between a user's call and the warning.
_OURS = ("chorax", "beartype", "jaxtyping", "equinox", "jax")


def warn(messages: Iterable[str]) -> None:
    """Warns with each message, as if from the line that called chorax."""
    messages = tuple(messages)
    if not messages:
        return
    # Decorators add frames, so count up to the first one that is not ours.
    depth, frame = 1, inspect.currentframe()
    while frame is not None and _is_ours(frame):
        depth, frame = depth + 1, frame.f_back
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=depth)


def _is_ours(frame: FrameType) -> bool:
    return frame.f_globals.get("__name__", "").partition(".")[0] in _OURS
