"""Feynman-Kac steering over chunks: particles that are weighed and resampled instead of ranked (Singhal et al. 2025).

Where beams maximise the reward, particles draw from the model's distribution tilted by it, p(video) exp(strength *
score), with the score of the last chunk. After chunk n a particle has gathered the log weight A_n of its `potential`:

    "difference"    strength * r_n
    "max"           strength * max(r_0, ..., r_n)
    "sum"           strength * (r_0 + ... + r_n)

and after the last chunk, for each potential, strength * r_last. So all of them aim at one distribution and differ in
what is favoured on the way. The public code drops the weight of a step at which it does not resample, so that its
potentials no longer telescope; here the beams carry their log weights on.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

from diffusers.utils import logging

from . import beam, best_of_n, choice, geometry, resampling, reward_pruning

logger = logging.get_logger(__name__)

Potential = Literal["difference", "max", "sum"]
LARGEST_STRENGTH = 1e30  # so that its product with no score of float32 is infinite


@dataclass(frozen=True)
class ParticleSearch:
    """Makes `num_particles` videos side by side, and resamples them by their weights when these become uneven.

    What is lost, or dropped by `max_lag`, is made up for when the others are resampled.

    Args:
        num_particles: N, beams and candidates of every chunk, one of each beam.
        strength: lambda, in units of one over the score's. At 0 it is `BestOfN(num_particles)`, bit for bit; negative
            values steer away.
        potential: one of "difference", "max" and "sum", above.
        resampling: "systematic", "stratified", "multinomial" or "residual".
        threshold: resamples when the effective sample size is below this share of N, in [0, 1]: 0 never, 1 whenever
            weights differ.
        tempering: gamma; chunk n counts with min((1 + gamma)^(n + 1) - 1, 1) of the strength, the last with all of it,
            so that early chunks decide less (after DAS, Kim et al. 2025). None: all chunks count alike.

    Raises:
        TypeError, ValueError: one of the arguments is not of these.
    """

    num_particles: int
    strength: float
    potential: Potential = "difference"
    resampling: Literal["systematic", "stratified", "multinomial", "residual"] = "systematic"
    threshold: float = 0.5
    tempering: float | None = None

    compares_rounds = True  # every particle is scored alone
    scales = "num_particles"

    def __post_init__(self) -> None:
        number = geometry.whole_number("num_particles", self.num_particles, least=1, most=256, of=" of ParticleSearch")
        object.__setattr__(self, "num_particles", number)
        self._check_number("strength", -LARGEST_STRENGTH, LARGEST_STRENGTH)
        self._check_number("threshold", 0.0, 1.0)
        if self.tempering is not None:
            self._check_number("tempering", 0.0, math.inf)
        for name, allowed in (("potential", get_args(Potential)), ("resampling", tuple(resampling.RESAMPLING))):
            value = getattr(self, name)
            if not isinstance(value, str) or value not in allowed:
                known = ", ".join(map(repr, allowed))
                raise ValueError(f"`{name}` of ParticleSearch is {value!r}; it must be one of {known}.")

    def _check_number(self, name: str, least: float, most: float) -> None:
        value = geometry.real_number(name, getattr(self, name), " of ParticleSearch")
        if not least <= value <= most:
            nearest = least if value < least else most
            raise ValueError(
                f"`{name}` of ParticleSearch is {value}; it must lie in [{least:g}, {most:g}]. Use {nearest:g}."
            )
        object.__setattr__(self, name, value)

    @property
    def num_beams(self) -> int:
        return self.num_particles

    @property
    def num_lineages(self) -> int:
        """Base seeds: one a particle, until it is resampled."""
        return self.num_particles

    @property
    def ranks(self) -> bool:
        return self.strength != 0.0

    @property
    def drops(self) -> bool:
        return self.strength != 0.0

    def check(self, num_steps: int, num_chunks: int | None) -> None:
        """Checks that there is a last chunk, where one is needed.

        Raises:
            ValueError: the stream is endless, and the potential is corrected at the last chunk.
        """
        if num_chunks is None and (self.potential != "difference" or self.tempering is not None):
            raise ValueError(
                f"ParticleSearch corrects the potential {self.potential!r}, and any tempering, at the last chunk, and "
                'an endless stream has none. Use "difference" without tempering.'
            )

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        made = best_of_n.BestOfN(self.num_particles)(steps, beams)
        if self.strength == 0.0 or not made.kept:
            return made
        is_last, chunk_index = steps.chunk_index == steps.num_chunks - 1, steps.chunk_index
        log_weights = []
        for index in made.kept:
            candidate = made.candidates[index]
            parent = beams[candidate.parent]
            scores = (*parent.scores, candidate.score)
            gathered = self._gathered(scores, chunk_index, is_last)
            before = self._gathered(parent.scores, chunk_index - 1, False) if parent.scores else 0.0
            log_weights.append(parent.log_weight + gathered - before)
        known = dict(zip(made.kept, log_weights, strict=True))
        candidates = [
            replace(candidate, log_weight=known[row]) if math.isfinite(known.get(row, math.nan)) else candidate
            for row, candidate in enumerate(made.candidates)
        ]
        return self._resampled(steps, replace(made, candidates=candidates), log_weights)

    def _gathered(self, scores: tuple[float, ...], chunk_index: int, is_last: bool) -> float:
        """A_n, the log weight of a particle with these scores since the video's beginning."""
        if is_last:
            return self.strength * scores[-1]
        fold = {"difference": lambda s: s[-1], "max": max, "sum": math.fsum}[self.potential]
        return self.strength * self._temper(chunk_index) * fold(scores)

    def _temper(self, chunk_index: int) -> float:
        if self.tempering is None:
            return 1.0
        return math.expm1(min((chunk_index + 1) * math.log1p(self.tempering), math.log(2.0)))

    def _resampled(self, steps: object, made: "choice.Choice", log_weights: list[float]) -> "choice.Choice":
        """The particles with their weights; or as many as `num_particles` drawn by these, with equal weights."""
        if not all(math.isfinite(weight) for weight in log_weights):
            note = "the weights are not finite; the best particles go on as equals"
            logger.warning(f"Chunk {steps.chunk_index}: {note}.")
            return choice.Choice(made.candidates, reward_pruning.rank(made.candidates), notes=[note])
        weights = resampling.normalized_weights(log_weights)
        # A lost particle has no weight, and counts as one.
        if resampling.effective_sample_size(weights) < self.threshold * self.num_particles:
            scheme = resampling.RESAMPLING[self.resampling]
            drawn = scheme(weights, self.num_particles, steps.generator)
            kept, log_weights = [made.kept[row] for row in drawn], [0.0] * self.num_particles
        else:
            kept = list(made.kept)
        order = sorted(range(len(kept)), key=lambda row: -made.candidates[kept[row]].score)
        return choice.Choice(made.candidates, [kept[row] for row in order], [log_weights[row] for row in order])

    def work(self, chunk_index: int, num_parents: int) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """Candidates are exact; resampling keeps fewer different ones, so clean passes are at most as many."""
        least = choice.SearchWork.of(self.num_particles, 1 if self.drops else self.num_particles, batch=1)
        return least, choice.SearchWork.of(self.num_particles, self.num_particles, batch=1)
