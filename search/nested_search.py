"""What searches around another search have in common."""

from collections.abc import Callable
from dataclasses import dataclass

from . import beam, choice


@dataclass(frozen=True)
class NestedSearch:
    """Base of searches around another one: they say of themselves what `inner` says, unless they say otherwise.

    Raises:
        TypeError, ValueError: `inner` is no search.
    """

    inner: "Callable[[object, list[beam.Beam]], choice.Choice]"

    def __post_init__(self) -> None:
        choice.check_search(self.inner, "inner")

    @property
    def num_beams(self) -> int:
        return choice.most_ended(self.inner)

    @property
    def most_beams(self) -> int:
        return choice.most_kept(self.inner)

    @property
    def num_lineages(self) -> int:
        return getattr(self.inner, "num_lineages", 1)

    @property
    def compares_rounds(self) -> bool:
        return getattr(self.inner, "compares_rounds", False)

    @property
    def ranks(self) -> bool:
        return getattr(self.inner, "ranks", True)

    @property
    def drops(self) -> bool:
        return getattr(self.inner, "drops", True)

    @property
    def depth(self) -> int:
        return getattr(self.inner, "depth", 0)

    def check(self, num_steps: int, num_chunks: int | None) -> None:
        """Checks `inner`.

        Raises:
            ValueError: it cannot serve such a run.
        """
        if hasattr(self.inner, "check"):
            self.inner.check(num_steps, num_chunks)
