"""Which written leaves are to be the same for all lanes."""

from collections.abc import Hashable, Mapping, Sequence

import jax

from ._kind import ArraySpec, Spec
from ._paths import Path
from .filters import Predicate


class Excludes:
    """Asks a filter about written leaves.

    A leaf has the tags that an earlier call's delta gave it, and those of this call.
    """

    def __init__(
        self, keeps: Predicate, tags: Mapping[Path, frozenset[str]], tag: str | None
    ) -> None:
        self._keeps = keeps
        self._tags = tags
        self._own = frozenset(() if tag is None else (tag,))

    def token(self) -> Hashable:
        """What is equal where the answers are."""
        tags = frozenset(self._tags.items())
        return self._keeps.token(), tags, self._own

    def __call__(self, rows: Sequence[tuple[Path, Spec]]) -> tuple[bool, ...]:
        """The answer for each leaf; of an array the filter sees what a trace shows."""
        kept: list[bool] = []

        def ask(arrays: list[jax.Array]) -> None:
            rest = iter(arrays)
            for path, spec in rows:
                value = next(rest) if isinstance(spec, ArraySpec) else spec.value
                tags = self._own | self._tags.get(path, frozenset())
                kept.append(self._keeps(path, value, tags))

        jax.eval_shape(ask, [s.struct for _, s in rows if isinstance(s, ArraySpec)])
        return tuple(kept)
