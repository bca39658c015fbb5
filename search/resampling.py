"""Resampling of weighted particles: which of N go on, some of them several times (Douc & Cappé 2005).

Every scheme keeps particle i on average N W_i times. They differ in how far a particle's number strays from it.
"""

from collections.abc import Callable, Sequence

import torch


def normalized_weights(log_weights: Sequence[float]) -> torch.Tensor:
    """W of log weights, float64 with sum 1; -inf gives 0."""
    return torch.softmax(torch.tensor(log_weights, dtype=torch.float64, device="cpu"), dim=0)


def effective_sample_size(weights: torch.Tensor) -> float:
    """1 / sum W^2: from 1, when one particle has all the weight, to N, when all have the same."""
    return float(1.0 / weights.square().sum())


def systematic(weights: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """One draw shifts a comb of `count` equal teeth."""
    teeth = torch.arange(count, dtype=torch.float64, device="cpu") + _uniform(1, generator)
    return _under(weights, teeth / count)


def stratified(weights: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """A draw in each of `count` equal intervals."""
    draws = torch.arange(count, dtype=torch.float64, device="cpu") + _uniform(count, generator)
    return _under(weights, draws / count)


def multinomial(weights: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """`count` independent draws."""
    return sorted(_under(weights, _uniform(count, generator)))


def residual(weights: torch.Tensor, count: int, generator: torch.Generator) -> list[int]:
    """The whole part of N W_i copies of each, and independent draws by what is left."""
    expected = weights * count
    whole = expected.floor()
    copies = [index for index, number in enumerate(whole.tolist()) for _ in range(int(number))]
    num_left = count - len(copies)
    if num_left == 0:
        return copies
    rest = expected - whole
    return sorted(copies + multinomial(rest / rest.sum(), num_left, generator))


RESAMPLING: dict[str, Callable[[torch.Tensor, int, torch.Generator], list[int]]] = {
    "systematic": systematic,
    "stratified": stratified,
    "multinomial": multinomial,
    "residual": residual,
}


def _uniform(count: int, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(count, generator=generator, dtype=torch.float64, device="cpu")


def _under(weights: torch.Tensor, points: torch.Tensor) -> list[int]:
    """The particles whose share of [0, 1) holds each point."""
    ends = weights.cumsum(0)
    last = int(weights.nonzero()[-1])  # sums may end a little below 1
    return torch.searchsorted(ends, points, right=True).clamp_max(last).tolist()
