"""Early pruning: many candidates for some steps, the most promising to the end (after LatSearch, arXiv 2603.14526)."""

from dataclasses import dataclass, replace

from . import beam, choice, geometry, noise_propagation, reward_pruning


@dataclass(frozen=True)
class EarlyPruning:
    """Scores what candidates are predicted to become after some steps, and denoises the best of them to the end.

    LatSearch scores latents with a reward model of its own, which is not published, and drops by a lottery; here the
    call's rewards score decoded predictions, and the best stay.

    Args:
        num_candidates: tried per beam.
        keep: of these, per beam, denoised to the end.
        after_step: steps after which they are scored. After the last one nothing is saved, and it is
            `BeamSearch(num_beams, num_candidates)`, bit for bit.
        num_beams: kept after each chunk.

    Raises:
        TypeError, ValueError: a number is not whole, below 1, or more are kept than there are.
    """

    num_candidates: int
    keep: int
    after_step: int
    num_beams: int = 1

    scales = "num_candidates"

    drops = True

    def __post_init__(self) -> None:
        for name in ("num_candidates", "keep", "after_step", "num_beams"):
            number = geometry.whole_number(name, getattr(self, name), least=1, of=" of EarlyPruning")
            object.__setattr__(self, name, number)
        if self.keep > self.num_candidates:
            raise ValueError(
                f"`keep` of EarlyPruning is {self.keep}, and there are {self.num_candidates} candidates per beam. Use "
                f"{self.num_candidates} or fewer."
            )

    def check(self, num_steps: int, num_chunks: int | None) -> None:
        """Checks that there is such a step.

        Raises:
            ValueError: a chunk has fewer steps.
        """
        if self.after_step > num_steps:
            raise ValueError(
                f"`after_step` of EarlyPruning is {self.after_step}, and a chunk has {num_steps} steps. "
                f"Use {num_steps} or fewer."
            )

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        counts = noise_propagation.split_evenly(self.num_beams * self.num_candidates, len(beams))
        candidates = steps.denoise(beams, steps.propose(beams, counts), until=self.after_step)
        candidates = steps.score(beams, candidates)
        if self.after_step < steps.num_steps:
            ranked = reward_pruning.rank(candidates)[: self.num_beams * self.keep]
            finished = steps.score(beams, steps.denoise(beams, [candidates[index] for index in sorted(ranked)]))
            # What is pruned keeps its score, and neither pixels nor a decoder state.
            candidates = [replace(candidate, frames=None, decoder_state=None) for candidate in candidates]
            for index, candidate in zip(sorted(ranked), finished, strict=True):
                candidates[index] = candidate
        ranked = [index for index in reward_pruning.rank(candidates) if candidates[index].is_finished]
        return choice.Choice(candidates, ranked[: self.num_beams], reserve=ranked[self.num_beams :])

    def work(self, chunk_index: int, num_parents: int) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """Exact."""
        tried = choice.SearchPass(self.num_beams * self.num_candidates, until=self.after_step)
        finished = choice.SearchPass(self.num_beams * self.keep, first=self.after_step)
        exact = choice.SearchWork((tried, finished), self.num_beams)
        return exact, exact
