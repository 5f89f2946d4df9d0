"""Warnings that point at the user's line."""

import sys
import warnings
from collections.abc import Iterable


# The packages whose frames may lie between a user's call and the warning.
_OURS = ("chorax", "beartype", "jaxtyping")


def warn(messages: Iterable[str]) -> None:
    """Warns with each message, as if from the line that called chorax."""
    for message in messages:
        warnings.warn(message, UserWarning, stacklevel=_depth())


def _depth() -> int:
    depth = 1
    frame = sys._getframe(1)
    while frame.f_back is not None:
        frame = frame.f_back
        depth += 1
        if frame.f_globals.get("__name__", "").partition(".")[0] not in _OURS:
            break
    return depth
