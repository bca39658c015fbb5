"""The paper's search: the best K of K times M candidates go on (section 3.2)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from . import beam, choice, geometry, noise_propagation, reward_pruning

Budget = Sequence[tuple[int, int]] | Callable[[int, "list[beam.Beam]"], tuple[int, int]]


@dataclass(frozen=True)
class BeamSearch:
    """Keeps the best `num_beams` of all candidates of a chunk.

    Fewer beams than that, as at chunk 0 or after losses, have more candidates each, so that a chunk always costs the
    same.

    Args:
        num_beams: K, kept after each chunk.
        num_candidates: M, tried per beam.
        budget: other numbers for some chunks: a list of (K, M), one per chunk, whose last entry goes on; or a function
            of the chunk's index and the beams that gives (K, M), with K at most `num_beams`. With a list, `num_beams`
            and `num_candidates` become the most in it.
        prune_every: L: all K times M candidates go on for L chunks, alone, before the best K of them are kept, by the
            mean of their scores over these chunks. The last chunk chooses in any case. With a list as budget, the
            numbers of a period are those of its first chunk.

    Raises:
        TypeError, ValueError: one of the numbers is not whole or below 1; `budget` is empty, or a function beside a
            `prune_every` above 1.
    """

    num_beams: int = 2
    num_candidates: int = 2
    budget: Budget | None = None
    prune_every: int = 1

    scales = "num_candidates"

    def __post_init__(self) -> None:
        budget = self.budget
        if isinstance(budget, type):
            raise TypeError(f"`budget` of BeamSearch is the class {budget.__name__}; give a list or a function.")
        if budget is not None and not callable(budget):
            if isinstance(budget, str) or not isinstance(budget, Sequence) or not budget:
                raise ValueError(
                    f"`budget` of BeamSearch is {budget!r}; it must be a list of one or more (num_beams, "
                    "num_candidates), or a function of the chunk index and the beams."
                )
            budget = tuple(_numbers(numbers, f"budget[{index}]") for index, numbers in enumerate(budget))
            most = (max(pair[side] for pair in budget) for side in (0, 1))
            for name, value in zip(("budget", "num_beams", "num_candidates"), (budget, *most), strict=True):
                object.__setattr__(self, name, value)
        for name in ("num_beams", "num_candidates", "prune_every"):
            number = geometry.whole_number(name, getattr(self, name), least=1, of=" of BeamSearch")
            object.__setattr__(self, name, number)
        pairs = ((self.num_beams, self.num_candidates),) if budget is None or callable(budget) else budget
        for num_beams, num_candidates in pairs:
            if num_beams * num_candidates > noise_propagation.MOST_CANDIDATES:
                raise ValueError(
                    f"`num_beams` times `num_candidates` of BeamSearch is {num_beams * num_candidates}; there are "
                    f"{noise_propagation.MOST_CANDIDATES} streams of noise at a chunk. Use fewer."
                )
        if self.prune_every > 1:
            self._check_period()

    def _check_period(self) -> None:
        if callable(self.budget):
            raise ValueError(
                f"`prune_every` of BeamSearch is {self.prune_every}, and `budget` is a function; a period needs "
                "the numbers of its first chunk. Give a list."
            )
        if self.most_beams > noise_propagation.MOST_BEAMS:
            raise ValueError(
                f"`prune_every` of BeamSearch is {self.prune_every}, so that {self.most_beams} beams are kept in a "
                f"period; there are streams of noise for {noise_propagation.MOST_BEAMS}. Use fewer candidates."
            )

    @property
    def most_beams(self) -> int:
        """Kept between chunks: with `prune_every`, all candidates of a period."""
        if self.prune_every == 1:
            return self.num_beams
        return max(math.prod(pair) for pair in self.budget or ((self.num_beams, self.num_candidates),))

    @property
    def drops(self) -> bool:
        """Whether any candidate, or beam, is ever dropped."""
        if callable(self.budget):
            return True
        pairs = self.budget or ((self.num_beams, self.num_candidates),)
        num_beams = [pair[0] for pair in pairs]
        return any(pair[1] > 1 for pair in pairs) or num_beams != sorted(num_beams)

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        in_period = steps.chunk_index % self.prune_every
        num_beams, num_candidates = self.numbers(steps.chunk_index - in_period, beams)
        counts = noise_propagation.split_evenly(num_beams * num_candidates, len(beams))
        candidates = steps.denoise(beams, steps.propose(beams, counts))
        candidates = steps.score(beams, candidates)
        ranked = reward_pruning.keep_best(
            [_mean(beams[candidate.parent].scores, in_period, candidate.score) for candidate in candidates],
            len(candidates),
        )
        if in_period < self.prune_every - 1 and not steps.is_last:
            return choice.Choice(candidates, ranked)
        return choice.Choice(candidates, ranked[:num_beams], reserve=ranked[num_beams:])

    def numbers(self, chunk_index: int, beams: "list[beam.Beam]") -> tuple[int, int]:
        """K and M of a chunk.

        Raises:
            TypeError, ValueError: the budget gives no such numbers, or more beams than `num_beams`.
        """
        if self.budget is None:
            return self.num_beams, self.num_candidates
        if not callable(self.budget):
            return self.budget[min(chunk_index, len(self.budget) - 1)]
        numbers = _numbers(self.budget(chunk_index, beams), f"budget({chunk_index})")
        if numbers[0] > self.num_beams:
            raise ValueError(
                f"`budget` of BeamSearch gave {numbers[0]} beams for chunk {chunk_index}; `num_beams`, "
                f"{self.num_beams}, is the most. Use BeamSearch({numbers[0]}, budget=...)."
            )
        return numbers

    def work(
        self, chunk_index: int, num_parents: int, num_chunks: int | None = None
    ) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """Exact, but for a budget that is a function: of that only the most is known, and only for `num_candidates`.

        A function may give more than `num_candidates`; the estimate is then too low.
        """
        if callable(self.budget):
            most = choice.SearchWork.of(self.num_beams * self.num_candidates, self.num_beams)
            return choice.SearchWork.of(1, 1), most
        in_period, is_last = chunk_index % self.prune_every, num_chunks is not None and chunk_index == num_chunks - 1
        num_beams, num_candidates = self.numbers(chunk_index - in_period, [])
        tried = num_beams * num_candidates
        chooses = in_period == self.prune_every - 1 or is_last
        exact = choice.SearchWork.of(tried, num_beams if chooses else tried)
        return exact, exact


def _mean(past: tuple[float, ...], num_past: int, score: float | None) -> float | None:
    """The mean of a candidate's score and its beam's last ones; None for a lost one."""
    if score is None or num_past == 0:
        return score
    return math.fsum((*past[-num_past:], score)) / (num_past + 1)


def _numbers(numbers: object, name: str) -> tuple[int, int]:
    if isinstance(numbers, str) or not isinstance(numbers, Sequence) or len(numbers) != 2:
        raise ValueError(f"`{name}` of BeamSearch is {numbers!r}; it must be (num_beams, num_candidates).")
    named = zip(("num_beams", "num_candidates"), numbers, strict=True)
    where = f" in `{name}` of BeamSearch"
    return tuple(geometry.whole_number(which, number, least=1, of=where) for which, number in named)
