"""Lookahead: candidates are scored by what they lead to, in cheap roll-outs (as beam search with lookahead does)."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from . import beam, choice, geometry, nested_search, reward_pruning


@dataclass(frozen=True)
class Lookahead(nested_search.NestedSearch):
    """Any search, but that a finished candidate's score is the mean of its own and those of a roll-out from it.

    A roll-out makes the next chunks once, in few steps, and is forgotten: neither its chunks nor its clean passes are
    kept. All candidates of one lineage are rolled out with the same fresh noise: they differ by what they lead to, not
    by luck. Parts "ahead.1", "ahead.2", ... of a candidate keep the scores of its roll-out. At the video's end a
    roll-out is shorter, and at the last chunk there is none. Diffusion latent beam search (arXiv 2501.19252) looks
    ahead within a video's denoising, and here it is chunks.

    Args:
        inner: a search that ranks by score.
        chunks: of a roll-out.
        steps: denoising steps of its chunks; None: those of the run.

    Raises:
        TypeError, ValueError: `inner` is no search, or one of the numbers is not whole or below 1.
    """

    chunks: int = 1
    steps: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, may_lack in {"chunks": False, "steps": True}.items():
            value = getattr(self, name)
            if not (may_lack and value is None):
                number = geometry.whole_number(name, value, least=1, of=" of Lookahead")
                object.__setattr__(self, name, number)

    @property
    def compares_rounds(self) -> bool:
        """Roll-outs are scored one by one."""
        return True

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        return self.inner(_Seeing(steps, self), beams)

    def work(
        self, chunk_index: int, num_parents: int, num_chunks: int | None = None
    ) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """That of `inner`, and for each candidate that it finishes a roll-out of the chunks that are left."""
        num_ahead = self.chunks if num_chunks is None else min(self.chunks, num_chunks - 1 - chunk_index)
        bounds = choice.search_work(self.inner, chunk_index, num_parents, num_chunks)
        return tuple(self._with_rollouts(work, num_ahead) for work in bounds)

    def _with_rollouts(self, work: "choice.SearchWork", num_ahead: int) -> "choice.SearchWork":
        finished = sum(each.candidates for each in work.passes if each.until is None and each.ahead == 0)
        rolled = tuple(choice.SearchPass(finished, until=self.steps, ahead=ahead + 1) for ahead in range(num_ahead))
        more = work.more_clean_passes + finished * num_ahead
        return replace(work, passes=work.passes + rolled, more_clean_passes=more)


class _Seeing:
    """The steps, but that what they score to the end is rolled out."""

    def __init__(self, steps: object, search: Lookahead) -> None:
        self._steps, self._search = steps, search

    def __getattr__(self, name: str) -> object:
        return getattr(self._steps, name)

    def score(
        self, beams: "list[beam.Beam]", candidates: "Sequence[beam.Candidate]", **own: object
    ) -> "list[beam.Candidate]":
        scored = self._steps.score(beams, candidates, **own)
        return [self._seen(beams, candidate, own) if _is_new(candidate) else candidate for candidate in scored]

    def _seen(self, beams: "list[beam.Beam]", candidate: "beam.Candidate", own: dict) -> "beam.Candidate":
        scores, steps, kept = [], self._steps, beams
        rolled = candidate
        while not steps.is_last and len(scores) < self._search.chunks:
            kept, steps = steps.commit(kept, [rolled]), steps.ahead(self._search.steps)
            (rolled,) = steps.score(kept, steps.denoise(kept, steps.propose(kept, 1)), **own)
            if rolled.score is None:
                break
            scores.append(rolled.score)
        parts = {**candidate.parts, **{f"ahead.{place}": score for place, score in enumerate(scores, start=1)}}
        score = reward_pruning.mean_score([candidate.score, *scores])
        return replace(candidate, score=score, parts=parts)


def _is_new(candidate: "beam.Candidate") -> bool:
    return candidate.is_finished and candidate.score is not None and "ahead.1" not in candidate.parts
