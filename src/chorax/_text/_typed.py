"""Checks of public functions' arguments against their types.

Not by an import hook, which would be one for its user's process, and whose errors would
have all of the arguments in them, whole models among them.
"""

from typing import Any

from ._show import shown


def check_type(value: Any, kind: Any, name: str, words: str) -> None:
    """Raises unless it is an instance; `name` says of what, `words` what was
    expected."""
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise TypeError(f"{name} must be {words}, but got {shown(value)}.")
