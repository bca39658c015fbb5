"""Metrics of a finished video, made of any rewards. None of them guides a search.

A metric takes frames (F, 3, H, W) uint8, the prompt and the frames per second, and returns numbers by name; one has
the metric's own name. Some are also taken in windows, of the last three chunks at every chunk.

Axes: F frames, H height, W width.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from ..pipeline_stream_t1 import StreamT1Pipeline
from ..rewards.base import Reward
from ..rewards.scoring import RewardFunction, score_clips
from ..rewards.shipped import SHIPPED_REWARDS

WINDOW_CHUNKS = 3

Metric = Callable[[torch.Tensor, str, float], dict[str, float]]


@dataclass
class Measurement:
    """All metrics of one video."""

    scores: dict[str, float] = field(default_factory=dict)
    windows: dict[str, list[float]] = field(default_factory=dict)  # metric to one number per window
    problems: dict[str, str] = field(default_factory=dict)  # metric to why it has no number


def measure(
    metrics: dict[str, Metric],
    frames: torch.Tensor,
    prompt: str,
    fps: float,
    *,
    chunk_lengths: tuple[int, int],
    in_windows: Container[str],
) -> Measurement:
    """Takes all metrics of a video. One that fails is recorded, the others go on.

    Args:
        frames: (F, 3, H, W) uint8.
        chunk_lengths: pixel frames of the first chunk and of a later one.
        in_windows: metrics that are also taken in windows, "NAME.lowest" being the lowest of these. Of the other
            metrics only the number of their own name is kept.
    """
    measurement = Measurement()
    first_length, chunk_length = chunk_lengths
    length = first_length + (WINDOW_CHUNKS - 1) * chunk_length  # that of the first window, for all
    begins = range(0, len(frames) - length + 1, chunk_length)
    for name, metric in metrics.items():
        try:
            scores = metric(frames, prompt, fps)
            if name not in in_windows:
                measurement.scores[name] = scores[name]
                continue
            windows = [metric(frames[begin : begin + length], prompt, fps)[name] for begin in begins]
            lowest = {f"{name}.lowest": min(windows)} if windows else {}
            measurement.scores |= scores | lowest
            measurement.windows[name] = windows
        except Exception as error:  # foreign code: whatever it raises must cost one number, not the evaluation
            measurement.problems[name] = f"{type(error).__name__}: {error}"
    return measurement


@dataclass(frozen=True, eq=False)
class RewardMetric:
    """A reward's score and its parts."""

    name: str
    scorer: RewardFunction

    def __call__(self, frames: torch.Tensor, prompt: str, fps: float) -> dict[str, float]:
        result = score_clips(self.scorer, frames[None], prompt, fps, name=self.name)[0]
        if result.score is None:
            raise ValueError(result.problem or result.gated)
        return prefixed(self.name, {"": result.score, **result.parts})


def load_metrics(
    descriptions: Sequence[str], device: torch.device, loaded: Mapping[str, RewardFunction] | None = None
) -> dict[str, Metric]:
    """Loads the metrics of "NAME=REWARD", REWARD being a converted reward's folder or Hub id, "CLASS" of
    `stream_t1.rewards` for one that needs no weights, or "CLASS:NAME_OR_FOLDER" for one that loads a model.

    Args:
        loaded: rewards that are loaded already, by REWARD.

    Raises:
        ValueError: one has another form, or two have the same name.
    """
    metrics: dict[str, Metric] = {}
    for description in descriptions:
        name, _, source = description.partition("=")
        if not name or not source or "." in name:
            raise ValueError(
                f"`--metric` is {description!r}; it must be NAME=FOLDER, NAME=CLASS or NAME=CLASS:MODEL, with no dot "
                "in the name."
            )
        if name in metrics:
            raise ValueError(f"There are two metrics named {name!r}; give each a name of its own.")
        reward = (loaded or {}).get(source)
        metrics[name] = RewardMetric(name, _load_reward(source).to(device) if reward is None else reward)
    return metrics


def searched_rewards(pipe: StreamT1Pipeline) -> dict[str, Metric]:
    """The rewards that the search uses, as metrics of whole videos, which show what a reward is blind to."""
    rewards = {name: getattr(pipe, name) for name in ("image_reward", "video_reward")}
    return {name: RewardMetric(name, reward) for name, reward in rewards.items() if reward is not None}


def _load_reward(source: str) -> Reward:
    class_name, _, model = source.partition(":")
    if class_name not in SHIPPED_REWARDS:
        return Reward.from_pretrained(source)
    if model:
        return SHIPPED_REWARDS[class_name].from_pretrained(model)
    try:
        return SHIPPED_REWARDS[class_name]()
    except TypeError as error:
        raise ValueError(f"`--metric` names {class_name}, which needs a model: {error}.") from error


def prefixed(name: str, values: dict[str, float]) -> dict[str, float]:
    """Numbers under their metric's name: "NAME" for the key "", "NAME.KEY" for the others."""
    return {f"{name}.{key}" if key else name: value for key, value in values.items()}
