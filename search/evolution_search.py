"""Evolution inside a chunk: children of the best candidates, by mutated noise (after EvoSearch, He et al. 2025).

A candidate's genes are its draws. A child takes its parent's and replaces one by

    sqrt(1 - b^2) * draw + b * fresh

which is N(0, I) again, with correlation sqrt(1 - b^2) to the parent's. EvoSearch does so with initial noise, and adds
noise to the latents later; here one rule serves both. The draw that is replaced is the initial noise, or that which is
added after step s: then a child goes on from what its parent predicted at step s.
"""

import math
from dataclasses import dataclass, replace

import torch

from . import beam, choice, geometry, noise_propagation, reward_pruning


@dataclass(frozen=True)
class EvolutionSearch:
    """Makes generations of candidates for each chunk; each has the best so far, unchanged, and children of these.

    Args:
        generations: the first is drawn; alone, it is `BeamSearch(num_beams, ...)` over `population` candidates, bit
            for bit.
        population: candidates of a generation, over all beams.
        elites: best candidates so far, which live on, have the children in turns, and are not made again.
        mutation: b in [0, 1]: 0 copies a parent's draw, 1 draws anew.
        at_step: 0 mutates the initial noise; s, the noise added after step s.
        num_beams: kept after each chunk.

    Raises:
        TypeError, ValueError: a number is not whole or out of range, or no child is ever made.
    """

    generations: int
    population: int
    elites: int
    mutation: float
    at_step: int = 0
    num_beams: int = 1

    compares_rounds = True
    drops = True
    scales = "population"

    def __post_init__(self) -> None:
        for name, least in {"generations": 1, "population": 1, "elites": 1, "at_step": 0, "num_beams": 1}.items():
            number = geometry.whole_number(name, getattr(self, name), least=least, of=" of EvolutionSearch")
            object.__setattr__(self, name, number)
        object.__setattr__(self, "mutation", geometry.real_number("mutation", self.mutation, " of EvolutionSearch"))
        if not 0.0 <= self.mutation <= 1.0:
            raise ValueError(f"`mutation` of EvolutionSearch is {self.mutation}; it must lie in [0, 1].")
        for name, number in (("elites", self.elites + 1), ("num_beams", self.num_beams)):
            if number > self.population:
                raise ValueError(
                    f"`{name}` of EvolutionSearch is {getattr(self, name)}, and a generation has {self.population} "
                    f"candidates. Use {name}={self.population - (number - getattr(self, name))} or fewer, or more."
                )

    def check(self, num_steps: int, num_chunks: int | None) -> None:
        """Checks that there is such a step.

        Raises:
            ValueError: no noise is added after it.
        """
        if self.at_step >= num_steps:
            raise ValueError(
                f"`at_step` of EvolutionSearch is {self.at_step}; 0 is the initial noise, and more is added after "
                f"steps 1 to {num_steps - 1}. Use {num_steps - 1} or less."
            )

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        counts = noise_propagation.split_evenly(self.population, len(beams))
        begun = steps.propose(beams, counts)
        if self.at_step > 0:
            begun = steps.denoise(beams, begun, until=self.at_step)
        candidates = steps.score(beams, steps.denoise(beams, begun))
        for generation in range(1, self.generations):
            parents = reward_pruning.rank(candidates)[: self.elites]
            if not parents:
                break
            turns = [parents[child % len(parents)] for child in range(self.population - self.elites)]
            children = [
                replace(self._child(begun[index], steps.generator), generation=generation, ancestor=index)
                for index in turns
            ]
            begun = [*begun, *children]
            candidates = [*candidates, *steps.score(beams, steps.denoise(beams, children))]
        ranked = reward_pruning.rank(candidates)
        return choice.Choice(candidates, ranked[: self.num_beams], reserve=ranked[self.num_beams :])

    def _child(self, parent: "beam.Candidate", generator: torch.Generator) -> "beam.Candidate":
        if self.at_step == 0:
            return replace(parent, noise=mutated(parent.noise, self.mutation, generator))
        draws = list(parent.renoise)
        draws[self.at_step - 1] = mutated(draws[self.at_step - 1], self.mutation, generator)
        return replace(parent, renoise=tuple(draws), noisy=None)

    def work(self, chunk_index: int, num_parents: int) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """Exact, while candidates are left to have children."""
        first = (choice.SearchPass(self.population),)
        children = (choice.SearchPass(self.population - self.elites, first=self.at_step),) * (self.generations - 1)
        exact = choice.SearchWork(first + children, self.num_beams)
        return exact, exact


def mutated(draw: torch.Tensor, amount: float, generator: torch.Generator) -> torch.Tensor:
    """`sqrt(1 - b^2) * draw + b * fresh`: standard normal where `draw` is, with correlation sqrt(1 - b^2) to it."""
    fresh = torch.randn(draw.shape, generator=generator, dtype=draw.dtype, device="cpu").to(draw.device)
    return math.sqrt(1.0 - amount * amount) * draw + amount * fresh
