"""Which written leaves are to be the same for all lanes."""

from collections.abc import Hashable, Iterable, Mapping, Sequence

import jax

from .._text._places import Path
from ..filters import is_pure, Predicate


class Excludes:
    """Asks a filter about written arrays, and records its answers.

    A leaf has the tags that an earlier call's delta gave it, and the tag of this call.
    """

    def __init__(
        self, keeps: Predicate, tags: Mapping[Path, frozenset[str]], tag: str | None
    ) -> None:
        self._keeps = keeps
        self._tags = tags
        self._own = frozenset(() if tag is None else (tag,))
        self.answers: dict[tuple[Path, jax.ShapeDtypeStruct], bool] = {}

    @property
    def token(self) -> Hashable:
        """What is equal where the answers are; `None` if the filter has to be asked."""
        if not is_pure(self._keeps):
            return None
        return self._keeps, frozenset(self._tags.items()), self._own

    def __call__(
        self, rows: Iterable[tuple[Path, jax.ShapeDtypeStruct]]
    ) -> tuple[bool, ...]:
        """The answer for each array, which the filter sees as it would in a trace."""
        rows = tuple(rows)
        answers = self._ask(rows)
        self.answers.update(zip(rows, answers, strict=True))
        return answers

    def say(self, answers: Mapping[tuple[Path, jax.ShapeDtypeStruct], bool]) -> bool:
        """Whether the filter still gives the answers that it gave in another call."""
        is_known = self.token is not None
        return is_known or self._ask(tuple(answers)) == tuple(answers.values())

    def tags_asked(self) -> frozenset[str]:
        """The tags of the arrays that the filter was asked about."""
        asked = (self._tags.get(path, frozenset()) for path, _ in self.answers)
        return self._own.union(*asked)

    def _ask(
        self, rows: Sequence[tuple[Path, jax.ShapeDtypeStruct]]
    ) -> tuple[bool, ...]:
        kept: list[bool] = []

        def ask(arrays: list[jax.Array]) -> None:
            for (path, _), x in zip(rows, arrays, strict=True):
                tags = self._own | self._tags.get(path, frozenset())
                kept.append(self._keeps(path, x, tags))

        jax.eval_shape(ask, [struct for _, struct in rows])
        return tuple(kept)
