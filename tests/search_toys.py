"""Steps without a model, and a search that keeps a candidate twice, for tests of searches."""

from dataclasses import dataclass, replace

import torch

from stream_t1.search import Candidate, Choice, rank


class FakeSteps:
    """Steps without a model: scores are read from a script in the order in which candidates are proposed."""

    num_chunks, num_steps = 4, 1

    def __init__(self, scores, chunk_index=0):
        self.scores, self.chunk_index, self.proposed, self.calls = list(scores), chunk_index, [], []

    def propose(self, beams, counts, first=0):
        self.calls.append(("propose", list(counts), first))
        made = [
            Candidate(parent, seed=first + index, noise=torch.zeros(1), renoise=())
            for parent, count in enumerate(counts)
            for index in range(count)
        ]
        self.proposed += made
        return made

    def denoise(self, beams, candidates, until=None):
        self.calls.append(("denoise", len(candidates)))
        return [replace(candidate, step=1, prediction=torch.zeros(1)) for candidate in candidates]

    def score(self, beams, candidates):
        self.calls.append(("score", len(candidates)))
        taken, self.scores = self.scores[: len(candidates)], self.scores[len(candidates) :]
        return [
            replace(candidate, lost="dark") if score is None else replace(candidate, score=score)
            for candidate, score in zip(candidates, taken, strict=True)
        ]


@dataclass
class KeepTwice:
    """Keeps the best candidate twice."""

    num_beams: int = 2

    def __call__(self, steps, beams):
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, 2)))
        best = rank(candidates)[0]
        return Choice(candidates, [best, best], log_weights=[0.5, -0.5])
