"""Rewards made of rewards: a weighted sum, and a gate before an expensive one.

Both compare the clips of one call. In a search these are all candidates of a chunk, in order: the search calls a
reward once per chunk, and otherwise only on the last beams.

Axes: B clips, F frames, H height and W width in pixels.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from . import arguments, base, checks, scoring

NORMALIZATIONS = (None, "zscore", "rank")


class CombinedReward(base.Reward):
    """Base of rewards made of others, each of which makes its own micro-batches and moves its own weights.

    Args:
        rewards: any callables `reward(frames, prompt, fps)`; plain modules, folders and Hub ids of converted rewards
            too. Under the names of their arguments, for messages.
    """

    def __init__(self, rewards: Mapping[str, Callable | str | Path]) -> None:
        super().__init__()
        for name, reward in rewards.items():
            arguments.check_kind(name, reward)
            if isinstance(reward, GatedReward):
                raise TypeError(
                    f"`{name}` is a gate, which goes around other rewards, not into them: "
                    "`GatedReward(gate, WeightedReward(...))`."
                )
        rewards = [arguments.loaded_reward(name, reward) for name, reward in rewards.items()]
        rewards = [base.as_component(reward) for reward in rewards]
        self.rewards = tuple(rewards)
        # Modules among them follow `to`, and their weights are among the parameters.
        self.registered = torch.nn.ModuleList([r for r in rewards if isinstance(r, torch.nn.Module)])
        self.reads_prompt = any(getattr(reward, "reads_prompt", False) for reward in rewards)
        self.reads_fps = any(getattr(reward, "reads_fps", False) for reward in rewards)

    def offload(self, device: torch.device | str | None = None) -> "CombinedReward":
        for reward in self.rewards:
            if isinstance(reward, base.Reward):
                reward.offload(device)
        return self

    def check_prompts(self, prompts: list[str]) -> None:
        for reward in self.rewards:
            if isinstance(reward, base.Reward):
                reward.check_prompts(prompts)

    def check_request(self, prompts: list[str], num_beams: int) -> None:
        for reward in self.rewards:
            if isinstance(reward, base.Reward):
                reward.check_request(prompts, num_beams)

    def _scores(
        self, reward: Callable, frames: torch.Tensor, prompt: list[str], fps: float | None
    ) -> list[scoring.RewardScore]:
        return scoring.score_clips(reward, frames, prompt, fps, name=reward_name(reward))


class WeightedReward(CombinedReward):
    """Weighted sum of rewards.

    Parts: each reward's score under its name, and its own parts as `name.part`.

    Args:
        rewards: at least one.
        weights: one for each; a negative one reverses its reward.
        normalize: None sums the scores as they are; "zscore" first scales them to mean 0 and deviation 1 over the
            clips of the call (0 where all are equal); "rank" to 0 for the lowest up to 1 for the highest, equal scores
            sharing the mean of their ranks. With either, a single clip scores a constant.
    """

    def __init__(self, rewards: Sequence[Callable], weights: Sequence[float], *, normalize: str | None = None) -> None:
        for name, given, wanted in (("rewards", rewards, "rewards"), ("weights", weights, "numbers")):
            is_list = isinstance(given, Sequence) and not isinstance(given, str | bytes)
            if not (is_list or isinstance(given, np.ndarray) and given.ndim == 1):
                raise TypeError(f"`{name}` is {given!r}; it must be a list of {wanted}.")
        if len(rewards) == 0 or len(rewards) != len(weights):
            raise ValueError(f"`rewards` has {len(rewards)} and `weights` {len(weights)}; give one weight per reward.")
        if not isinstance(normalize, str | None) or normalize not in NORMALIZATIONS:
            raise ValueError(f'`normalize` is {normalize!r}; it must be None, "zscore" or "rank".')
        weights = tuple(checks.real_number(f"weights[{index}]", weight) for index, weight in enumerate(weights))
        super().__init__({f"rewards[{index}]": reward for index, reward in enumerate(rewards)})
        self.weights, self.normalize = weights, normalize

    def _score_checked(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        names = _distinct([reward_name(reward) for reward in self.rewards])
        total, parts = torch.zeros(len(frames), dtype=torch.float32, device="cpu"), {}
        results = [self._scores(reward, frames, prompt, fps) for reward in self.rewards]
        first = [next((r for r in row if r.problem is not None), None) for row in zip(*results, strict=True)]
        lost = tuple(None if result is None else result.problem for result in first)
        errors = tuple(None if result is None else result.error for result in first)
        alive = torch.tensor([reason is None for reason in lost], device="cpu")
        for name, weight, column in zip(names, self.weights, results, strict=True):
            scores = _column([result.score for result in column])
            total[alive] += weight * normalized(scores[alive], self.normalize)
            parts[name] = scores
            for part in dict.fromkeys(key for result in column for key in result.parts):
                parts[f"{name}.{part}"] = _column([result.parts.get(part) for result in column])
        total[~alive] = float("nan")
        return base.RewardOutput(total, parts, lost, errors=errors)


class GatedReward(CombinedReward):
    """A cheap reward that decides which clips an expensive one scores.

    Clips below the bound are dropped: the expensive reward never sees them, and they get no score, so that they are
    neither kept nor part of a normalisation. When fewer than `at_least` pass, the gate's best of the others pass too.

    Parts: `gate`, and those of the expensive reward.

    Args:
        gate: the cheap reward.
        reward: scores the clips that pass.
        bound: the lowest score of the gate that passes.
        at_least: number of clips that pass whatever they score; in a search `num_beams` or more.
    """

    def __init__(self, gate: Callable, reward: Callable, *, bound: float, at_least: int) -> None:
        bound, at_least = checks.real_number("bound", bound), checks.whole_number("at_least", at_least, least=1)
        super().__init__({"gate": gate, "reward": reward})
        self.bound, self.at_least = bound, at_least

    def check_request(self, prompts: list[str], num_beams: int) -> None:
        super().check_request(prompts, num_beams)
        if self.at_least < num_beams:
            raise ValueError(
                f"`at_least` of the gate is {self.at_least}, and the search keeps {num_beams} beams: it could be left "
                f"with fewer. Use at_least={num_beams}."
            )

    def _score_checked(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        gate, reward = self.rewards
        gate_results = self._scores(gate, frames, prompt, fps)
        rows = passing([result.score for result in gate_results], self.bound, self.at_least)
        lost, errors = [result.problem for result in gate_results], [result.error for result in gate_results]
        gated = [
            None if row in rows or lost[row] else f"gated out: {reward_name(gate)} scored {result.score:.4g}"
            for row, result in enumerate(gate_results)
        ]
        scores: list[float | None] = [None] * len(frames)
        named: list[dict[str, float]] = [{} for _ in gate_results]
        if rows:
            results = self._scores(reward, frames[rows], [prompt[row] for row in rows], fps)
            for row, result in zip(rows, results, strict=True):
                scores[row], lost[row], named[row] = result.score, result.problem, result.parts
                errors[row] = result.error
        parts = {"gate": _column([result.score for result in gate_results])}
        parts |= {key: _column([row.get(key) for row in named]) for key in dict.fromkeys(k for r in named for k in r)}
        return base.RewardOutput(_column(scores), parts, tuple(lost), tuple(gated), tuple(errors))


def passing(scores: Sequence[float | None], bound: float, at_least: int) -> list[int]:
    """Indices of the scores of at least `bound`, in order, filled up to `at_least` with the best others."""
    scored = [index for index, score in enumerate(scores) if score is not None]
    best = sorted(scored, key=lambda index: -scores[index])
    return sorted(index for place, index in enumerate(best) if scores[index] >= bound or place < at_least)


def normalized(scores: torch.Tensor, method: str | None) -> torch.Tensor:
    """Scores (B,) on a common scale; the methods of `WeightedReward`."""
    if method is None or len(scores) == 0:
        return scores
    if method == "zscore":
        deviation = scores.double().std(correction=0)
        return ((scores.double() - scores.double().mean()) / (deviation if deviation > 0 else 1.0)).float()
    below = (scores[None, :] < scores[:, None]).sum(dim=1)
    equal = (scores[None, :] == scores[:, None]).sum(dim=1) - 1
    return (below.float() + equal.float() / 2) / max(len(scores) - 1, 1)


def reward_name(reward: Callable) -> str:
    """A function's own name; otherwise its class's."""
    if isinstance(reward, base.ModuleReward):
        reward = reward.module
    return getattr(reward, "__name__", type(reward).__name__)


def _distinct(names: list[str]) -> list[str]:
    """Numbers the names that occur more than once."""
    return [name if names.count(name) == 1 else f"{name}_{names[:i].count(name) + 1}" for i, name in enumerate(names)]


def _column(values: Sequence[float | None]) -> torch.Tensor:
    numbers = [float("nan") if value is None else value for value in values]
    return torch.tensor(numbers, dtype=torch.float32, device="cpu")
