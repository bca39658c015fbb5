"""Backtracking: back to an older chunk's beams when a chunk turns out badly (after Temporal Backtracking Search)."""

import math
from dataclasses import dataclass, replace

from . import beam, choice, geometry, nested_search, reward_pruning


@dataclass(frozen=True)
class Backtracking(nested_search.NestedSearch):
    """Makes a chunk by `inner`; when its best score falls under a bound, goes back and makes the last chunks again.

    The published method (arXiv 2606.13861) restarts from the last prefix that a verifier accepts. Here the call's
    rewards are the verifier, and it is `depth` chunks that are made again, with other noise. Attempts that were given
    up are in the trace (`given_up`), and their work counts. The attempt after the last permitted turn stands, however
    it scores.

    Args:
        inner: a search that scores what it keeps.
        bound: in units of the fused score; minus infinity never goes back, and is `inner`, bit for bit.
        depth: chunks before the failed one that are made again with it; 0: it alone. At most `max_lag`, if there is
            one, since what is settled stays. A stream gives its chunks so much later.
        retries: how often a chunk may fail.

    Raises:
        TypeError, ValueError: `inner` is no search, or one of the numbers is out of range.
    """

    bound: float = -math.inf
    depth: int = 1
    retries: int = 2

    def __post_init__(self) -> None:
        super().__post_init__()
        of = " of Backtracking"
        bound = geometry.real_number("bound", self.bound, of, may_be_infinite=True)
        if bound == math.inf:
            raise ValueError("`bound` of Backtracking is inf, which no score reaches; it must be below.")
        object.__setattr__(self, "bound", bound)
        object.__setattr__(self, "depth", geometry.whole_number("depth", self.depth, least=0, most=64, of=of))
        object.__setattr__(self, "retries", geometry.whole_number("retries", self.retries, least=0, most=64, of=of))
        if getattr(self.inner, "depth", 0):
            raise ValueError(f"`inner` of Backtracking is {choice.search_name(self.inner)}, which goes back itself.")

    @property
    def compares_rounds(self) -> bool:
        """The bound is one for all chunks."""
        return self.bound > -math.inf or super().compares_rounds

    @property
    def drops(self) -> bool:
        return self.bound > -math.inf or super().drops

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        made = self.inner(steps, beams)
        best = max(reward_pruning.known_scores([made.candidates[index] for index in made.kept]), default=math.inf)
        if best >= self.bound or steps.num_turns >= self.retries:
            return made
        back = min(self.depth, steps.most_back)
        note = f"the best score, {best:.4g}, is under the bound, {self.bound:.4g}: back {back} chunks"
        return choice.Choice(made.candidates, [], back=back, notes=(*made.notes, note))

    def work(
        self, chunk_index: int, num_parents: int, num_chunks: int | None = None
    ) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """From `inner`'s to that of every chunk failing as often as it may."""
        least, most = choice.search_work(self.inner, chunk_index, num_parents, num_chunks)
        if self.bound == -math.inf:
            return least, most
        # Each turn makes its chunk again, and `depth` before it, which were committed too.
        more = most.more_clean_passes * (1 + self.retries * (1 + self.depth)) + self.retries * self.depth * most.kept
        passes = most.passes * (1 + self.retries * (1 + self.depth))
        return least, replace(most, passes=passes, more_clean_passes=more)
