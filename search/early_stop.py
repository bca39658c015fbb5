"""Rounds of another search, until one candidate is clearly the best."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Integral

from . import beam, choice, geometry, nested_search, reward_pruning


@dataclass(frozen=True)
class EarlyStop(nested_search.NestedSearch):
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

    margin: float = float("inf")
    patience: int = 1
    max_rounds: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        name = choice.search_name(self.inner)
        if self.depth:
            raise ValueError(
                f"`inner` of EarlyStop is {name}, which goes back. Use Backtracking(EarlyStop(...), ...)."
            )
        if self.most_beams > self.num_beams:
            raise ValueError(f"`inner` of EarlyStop is {name}, which does not choose at every chunk.")
        margin = geometry.real_number("margin", self.margin, " of EarlyStop", may_be_infinite=True)
        if margin < 0:
            raise ValueError(f"`margin` of EarlyStop is {margin}; it must be 0 or more.")
        object.__setattr__(self, "margin", margin)
        for name in ("patience", "max_rounds"):
            number = geometry.whole_number(name, getattr(self, name), least=1, of=" of EarlyStop")
            object.__setattr__(self, name, number)

    @property
    def compares_rounds(self) -> bool:
        return self.patience > 1 or super().compares_rounds

    @property
    def ranks(self) -> bool:
        return self.patience > 1 or super().ranks

    @property
    def drops(self) -> bool:
        return self.patience > 1 or super().drops

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

    def work(
        self, chunk_index: int, num_parents: int, num_chunks: int | None = None
    ) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """From one round to `max_rounds`; exact with a patience of 1."""
        least, most = choice.search_work(self.inner, chunk_index, num_parents, num_chunks)
        if self.patience == 1:
            return least, most
        more = most.more_clean_passes * self.max_rounds
        return least, replace(most, passes=most.passes * self.max_rounds, more_clean_passes=more)


class _Rounds:
    """The steps, but that candidates of later rounds are numbered after those of earlier ones."""

    def __init__(self, steps: object) -> None:
        self._steps, self._first, self._next, self._round = steps, 0, 0, 0

    def begin(self) -> None:
        """Begins another round."""
        self._first = self._next
        self._round += 1

    def __getattr__(self, name: str) -> object:
        return getattr(self._steps, name)

    def propose(self, beams: "list[beam.Beam]", counts: Sequence[int] | int, first: int = 0) -> "list[beam.Candidate]":
        most = counts if isinstance(counts, Integral) else max(counts, default=0)
        self._next = max(self._next, self._first + first + most)
        proposed = self._steps.propose(beams, counts, first=self._first + first)
        return [replace(candidate, round=self._round) for candidate in proposed] if self._round else proposed


def _best_score(made: "choice.Choice") -> float:
    return max(reward_pruning.known_scores(made.candidates), default=float("-inf"))


def _merged(rounds: "list[choice.Choice]") -> "choice.Choice":
    """The best of all rounds, as many as one round kept; a single round as it is."""
    if len(rounds) == 1:
        return rounds[0]
    if any(each.log_weights is not None for each in rounds):
        raise ValueError("EarlyStop compares rounds by score, and `inner` weighs its beams. Use one that ranks them.")
    candidates = []
    for each in rounds:
        first = len(candidates)
        candidates += [
            candidate if candidate.ancestor is None else replace(candidate, ancestor=first + candidate.ancestor)
            for candidate in each.candidates
        ]
    most = max(len(each.kept) for each in rounds)
    ranked = reward_pruning.rank(candidates)
    notes = [note for each in rounds for note in each.notes]
    return choice.Choice(candidates, ranked[:most], reserve=ranked[most:], notes=notes)
