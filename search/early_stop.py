"""Rounds of another search, until one candidate is clearly the best."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from . import beam, choice, geometry, reward_pruning


@dataclass(frozen=True)
class EarlyStop:
    """Calls `inner` again and again for the same chunk, each time with other seeds, and keeps the best of all rounds.

    It ends when the best score exceeds the second by `margin`, when the best is `patience` rounds old, counted from
    its own, or after `max_rounds`.

    Args:
        inner: a search that ranks by score; it says how many beams are kept.
        margin: in units of the fused score; infinite, no score is ever clear enough.
        patience: rounds. 1 is `inner` itself, whatever the margin.
        max_rounds: of one chunk.

    Raises:
        TypeError, ValueError: `inner` is no search, or one of the numbers is out of range.
    """

    inner: "Callable[[object, list[beam.Beam]], choice.Choice]"
    margin: float = float("inf")
    patience: int = 1
    max_rounds: int = 8

    def __post_init__(self) -> None:
        choice.check_search(self.inner, "inner")
        margin = geometry.real_number("margin", self.margin, " of EarlyStop", may_be_infinite=True)
        if margin < 0:
            raise ValueError(f"`margin` of EarlyStop is {margin}; it must be 0 or more.")
        object.__setattr__(self, "margin", margin)
        for name in ("patience", "max_rounds"):
            number = geometry.whole_number(name, getattr(self, name), least=1, of=" of EarlyStop")
            object.__setattr__(self, name, number)

    @property
    def num_beams(self) -> int:
        return choice.most_kept(self.inner)

    @property
    def num_lineages(self) -> int:
        return getattr(self.inner, "num_lineages", 1)

    @property
    def compares_rounds(self) -> bool:
        return self.patience > 1 or getattr(self.inner, "compares_rounds", False)

    @property
    def ranks(self) -> bool:
        return self.patience > 1 or getattr(self.inner, "ranks", True)

    @property
    def drops(self) -> bool:
        return self.patience > 1 or getattr(self.inner, "drops", True)

    def check(self, num_steps: int, num_chunks: int | None) -> None:
        """Checks `inner`.

        Raises:
            ValueError: it cannot serve such a run.
        """
        if hasattr(self.inner, "check"):
            self.inner.check(num_steps, num_chunks)

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        numbered = _Rounds(steps)
        rounds: list[choice.Choice] = [self.inner(numbered, beams)]
        best, best_round = _best_score(rounds[0]), 0
        while len(rounds) - best_round < self.patience and len(rounds) < self.max_rounds:
            if self._is_clear(rounds):
                break
            numbered.begin()
            rounds.append(self.inner(numbered, beams))
            score = _best_score(rounds[-1])
            if score > best:
                best, best_round = score, len(rounds) - 1
        return _merged(rounds)

    def _is_clear(self, rounds: "Sequence[choice.Choice]") -> bool:
        scores = sorted(score for each in rounds for score in reward_pruning.known_scores(each.candidates))
        return len(scores) > 1 and scores[-1] - scores[-2] >= self.margin

    def work(self, chunk_index: int, num_parents: int) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """From one round to `max_rounds`; exact with a patience of 1."""
        least, most = choice.search_work(self.inner, chunk_index, num_parents)
        if self.patience == 1:
            return least, most
        return least, replace(most, passes=most.passes * self.max_rounds)


class _Rounds:
    """The steps, but that candidates of later rounds are numbered after those of earlier ones."""

    def __init__(self, steps: object) -> None:
        self._steps, self._first, self._next = steps, 0, 0

    def begin(self) -> None:
        """Begins another round."""
        self._first = self._next

    def __getattr__(self, name: str) -> object:
        return getattr(self._steps, name)

    def propose(self, beams: "list[beam.Beam]", counts: Sequence[int] | int, first: int = 0) -> "list[beam.Candidate]":
        most = counts if isinstance(counts, Integral) else max(counts, default=0)
        self._next = max(self._next, self._first + first + most)
        return self._steps.propose(beams, counts, first=self._first + first)


def _best_score(made: "choice.Choice") -> float:
    return max(reward_pruning.known_scores(made.candidates), default=float("-inf"))


def _merged(rounds: "list[choice.Choice]") -> "choice.Choice":
    """The best of all rounds, as many as one round kept; a single round as it is."""
    if len(rounds) == 1:
        return rounds[0]
    if any(each.log_weights is not None for each in rounds):
        raise ValueError("EarlyStop compares rounds by score, and `inner` weighs its beams. Use one that ranks them.")
    candidates = [candidate for each in rounds for candidate in each.candidates]
    most = max(len(each.kept) for each in rounds)
    ranked = reward_pruning.rank(candidates)
    return choice.Choice(candidates, ranked[:most], reserve=ranked[most:])
