"""More candidates for prompts whose parts are far apart (after ImagerySearch, arXiv 2510.14847)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from . import beam, beam_search, choice, geometry, noise_propagation


@dataclass(frozen=True)
class PromptAdaptive:
    """The beam search with `num_candidates * (1 + strength * distance)` candidates per beam, rounded down.

    ImagerySearch takes as distance the mean over pairs of a prompt's key entities of how far their embeddings lie
    apart; which entities, and the strength, are not published, so that this is after it and not equal to it. It also
    weighs its rewards by the distance, which is not done here. A prompt that changes is measured anew.

    Args:
        num_beams: K, kept after each chunk.
        num_candidates: M for a distance of 0.
        strength: lambda, 0 or more.
        max_candidates: the most per beam.
        distance: of a prompt: a number, or a function of its words. None: the mean over pairs of its tokens of
            1 - cosine of their embeddings, as the transformer reads them.

    Raises:
        TypeError, ValueError: one of the numbers is out of range.
    """

    num_beams: int = 2
    num_candidates: int = 2
    strength: float = 1.0
    max_candidates: int = 8
    distance: float | Callable[[str], float] | None = None

    scales = "num_candidates"

    def __post_init__(self) -> None:
        of = " of PromptAdaptive"
        for name in ("num_beams", "num_candidates", "max_candidates"):
            object.__setattr__(self, name, geometry.whole_number(name, getattr(self, name), least=1, of=of))
        object.__setattr__(self, "strength", _not_negative("strength", self.strength))
        if self.distance is not None and not callable(self.distance):
            object.__setattr__(self, "distance", _not_negative("distance", self.distance))
        if self.max_candidates < self.num_candidates:
            raise ValueError(
                f"`max_candidates` of PromptAdaptive is {self.max_candidates}, below `num_candidates`, "
                f"{self.num_candidates}. Use {self.num_candidates} or more."
            )
        most = noise_propagation.MOST_CANDIDATES // self.num_beams
        if self.max_candidates > most:
            raise ValueError(
                f"`max_candidates` of PromptAdaptive is {self.max_candidates}; with {self.num_beams} beams there are "
                f"streams of noise for {most}. Use {most} or fewer."
            )

    @property
    def drops(self) -> bool:
        return self.max_candidates > 1

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        return beam_search.BeamSearch(self.num_beams, self.candidates(self._distance(steps)))(steps, beams)

    def candidates(self, distance: float) -> int:
        """Candidates per beam at a distance: `num_candidates` at 0, and never fewer where it is larger."""
        return min(math.floor(self.num_candidates * (1.0 + self.strength * distance) + 1e-9), self.max_candidates)

    def _distance(self, steps: object) -> float:
        if self.distance is None:
            return spread_of_tokens(steps.prompt_embeds)
        if not callable(self.distance):
            return self.distance
        if steps.prompt is None:
            raise ValueError("`distance` of PromptAdaptive reads words, and this run has embeddings alone.")
        return _not_negative(f"distance({steps.prompt!r})", self.distance(steps.prompt))

    def work(self, chunk_index: int, num_parents: int) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """From a distance of 0 to `max_candidates`; exact for a distance that is a number."""
        known = self.distance is not None and not callable(self.distance)
        least, most = (self.candidates(self.distance),) * 2 if known else (self.num_candidates, self.max_candidates)
        return tuple(choice.SearchWork.of(self.num_beams * number, self.num_beams) for number in (least, most))


def spread_of_tokens(embeds: torch.Tensor) -> float:
    """Mean of 1 - cosine over pairs of tokens, in [0, 2]; of fewer than two tokens, 0.

    Args:
        embeds: (1, L, D); tokens of zeros are padding.
    """
    tokens = embeds[0].detach().float().cpu()
    tokens = tokens[tokens.abs().sum(dim=1) > 0]
    count = len(tokens)
    if count < 2:
        return 0.0
    tokens = torch.nn.functional.normalize(tokens, dim=1)
    between = tokens.sum(dim=0).square().sum() - count  # sum of cosines over ordered pairs of different tokens
    return max(float(1.0 - between / (count * (count - 1))), 0.0)


def _not_negative(name: str, value: object) -> float:
    number = geometry.real_number(name, value, " of PromptAdaptive")
    if number < 0:
        raise ValueError(f"`{name}` of PromptAdaptive is {number}; it must be 0 or more.")
    return float(number)
