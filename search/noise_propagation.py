"""Unit 1, noise propagation: candidates start from noise that is correlated with the best noise so far (paper 3.1).

Axes of noise: (F latent frames, C channels, H latent height, W latent width).
"""

import functools
from collections.abc import Callable
from itertools import pairwise
from math import sqrt

import torch

SEED_LIMIT = 2**53  # seeds go through JSON, whose readers keep integers exactly up to here

# The CPU generator looks at the lower 32 bits of a seed only, so that is where streams must differ. Candidates of a
# run are numbered in 32 bits and the number is multiplied by an odd constant, which permutes 32-bit numbers.
STREAM_BITS = {"chunk": 14, "beam": 8, "candidate": 10}
MOST_BEAMS = 1 << STREAM_BITS["beam"]
MOST_CANDIDATES = 1 << STREAM_BITS["candidate"]  # of one beam at a chunk, with streams of their own
# 2**32 over the golden ratio: the streams of neighbouring numbers, and of neighbouring seeds, lie far apart.
STREAM_MULTIPLIER = 0x9E3779B1


def propagate_noise(parent: torch.Tensor | None, fresh: torch.Tensor, beta: float) -> torch.Tensor:
    """The initial noise of a candidate, `beta * parent + sqrt(1 - beta^2) * fresh`.

    Spherical interpolation of two independent Gaussians: the result is N(0, I) again, with correlation `beta` to the
    parent's noise.

    Args:
        parent: (F, C, H, W) *initial* noise of the beam's last chunk; None at chunk 0.
        fresh: (F, C, H, W) standard Gaussian noise.
        beta: in (-1, 1); negative turns away from the parent's noise.
    """
    if parent is None:
        return fresh
    return beta * parent + sqrt(1.0 - beta * beta) * fresh


def independent_seed(seed: int, chunk_index: int, beam_index: int, candidate_index: int, parent_seed: int) -> int:
    """A stream of its own for every candidate of a run; candidate 0 of chunk 0 is the plain sample of `seed`.

    No two candidates of a run share a stream, up to 2^14 chunks, 2^8 beams and 2^10 candidates of a beam; past that,
    numbers wrap around.
    """
    number = 0
    for value, bits in zip((chunk_index, beam_index, candidate_index), STREAM_BITS.values(), strict=True):
        number = number << bits | value % (1 << bits)
    return seed if number == 0 else (seed + number * STREAM_MULTIPLIER) % 2**32


def reference_seed(seed: int, chunk_index: int, beam_index: int, candidate_index: int, parent_seed: int) -> int:
    """The authors' seeds: candidate 0 of a beam takes the seed of the beam's last chunk again.

    It therefore draws the same `fresh` as its parent did, and its noise has a standard deviation near 0.9 instead of 1
    at beta -0.1: reproduction needs this, nothing else should use it.
    """
    if chunk_index == 0:
        return seed + candidate_index
    if candidate_index == 0:
        return parent_seed
    return seed + 1000 * chunk_index + 100 * beam_index + candidate_index


SEED_MODES: dict[str, Callable[[int, int, int, int, int], int]] = {
    "independent": independent_seed,
    "reference": reference_seed,
}


def search_seed(seed: int, chunk_index: int, attempt: int = 0) -> int:
    """For a search's own draws at an attempt at a chunk: of the last streams that candidates could have."""
    last_beam, last_candidate = ((1 << STREAM_BITS[name]) - 1 for name in ("beam", "candidate"))
    return independent_seed(seed, chunk_index, last_beam, last_candidate - attempt, seed)


def base_seed(generator: torch.Generator | None, mode: str) -> int:
    """The seed that a run's candidates are derived from, below 2^53.

    "reference" takes the generator's initial seed and leaves it as it is, so that all prompts of one generator share
    a base; "independent" draws from it, and a generator that is used twice gives two videos. Without a generator it
    comes from torch's global one.
    """
    if mode == "reference" and generator is not None:
        return generator.initial_seed() % SEED_LIMIT
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**32, (1,), generator=generator, device=device, dtype=torch.int64))


def candidate_generator(seed: int) -> torch.Generator:
    """The stream of one candidate. It lives on the CPU, so that noise does not depend on the device."""
    return torch.Generator("cpu").manual_seed(seed)


def draw_noise(generators: list[torch.Generator], shape: tuple[int, int, int, int]) -> torch.Tensor:
    """One (F, C, H, W) draw from each generator, stacked: (B, F, C, H, W) float32. Batching does not change it."""
    draw = functools.partial(torch.randn, shape, dtype=torch.float32, device="cpu")
    return torch.stack([draw(generator=generator) for generator in generators])


def split_evenly(total: int, parts: int) -> list[int]:
    """`total` candidates shared out over `parts` beams as evenly as they go, the best beam first in line for more."""
    ends = [-(-index * total // parts) for index in range(parts + 1)]
    return [end - begin for begin, end in pairwise(ends)]
