"""Calling a reward on the candidates of one chunk: one batched call, checked; what fails costs one candidate.

Axes: B clips, F frames, H height and W width in pixels.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from diffusers.utils import logging

from . import base

logger = logging.get_logger(__name__)

RewardFunction = Callable[[torch.Tensor, list[str], float], torch.Tensor]


@dataclass(frozen=True)
class RewardScore:
    """What a reward said of one clip."""

    score: float | None  # None: it has none
    parts: dict[str, float] = field(default_factory=dict)
    problem: str | None = None  # why it has none, against the search's will
    gated: str | None = None  # why it has none, as the reward was told


def score_clips(
    reward: RewardFunction, frames: torch.Tensor, prompt: str | list[str], fps: float, *, name: str
) -> list[RewardScore]:
    """A score for each of B clips.

    A call that raises is repeated clip by clip, and clips that raise again, or score no finite number, get None.

    Args:
        reward: any `reward(frames, prompt, fps)`. A `Reward` gets the frames as they are and makes floats of a
            micro-batch at a time; any other callable gets floats.
        frames: (B, F, 3, H, W) uint8.
        prompt: the text of all clips, or B texts.
        name: of the argument that brought the reward, for messages.

    Raises:
        RewardFormatError: the reward's output is of the wrong type or shape.
    """
    prompts = [prompt] * len(frames) if isinstance(prompt, str) else prompt
    is_ready = isinstance(reward, base.Reward) or frames.is_floating_point()
    try:
        with torch.inference_mode():
            output = reward(frames if is_ready else frames.to(torch.float32).div_(255.0), prompts, fps)
    except base.RewardFormatError:  # of a reward inside of this one
        raise
    except Exception as error:  # a reward is foreign code: whatever it raises must cost one candidate, not the run
        problem = f"`{name}` raised {type(error).__name__}: {error}"
    else:
        return _read(output, len(frames), name)
    if len(frames) == 1:
        return [RewardScore(None, problem=problem)]
    logger.warning(f"{problem}. Trying its {len(frames)} clips one by one.")
    singles = zip(frames.split(1), prompts, strict=True)
    return [score for clip, text in singles for score in score_clips(reward, clip, [text], fps, name=name)]


def _read(output: object, batch_size: int, name: str) -> list[RewardScore]:
    scores = _numbers(getattr(output, "score", output), batch_size, name)
    parts = getattr(output, "parts", None) or {}
    parts = {key: _numbers(values, batch_size, f"{name}, part {key}") for key, values in parts.items()}
    lost, gated = (getattr(output, kind, None) or (None,) * batch_size for kind in ("lost", "gated"))
    results = []
    for row, score in enumerate(scores):
        named = {key: values[row] for key, values in parts.items() if math.isfinite(values[row])}
        if lost[row] is None and gated[row] is None and math.isfinite(score):
            results.append(RewardScore(score, named))
        else:
            problem = None if gated[row] else lost[row] or f"`{name}` scored {score}"
            results.append(RewardScore(None, named, problem, gated[row]))
    return results


def _numbers(values: object, batch_size: int, name: str) -> list[float]:
    wanted = f"a float tensor of shape ({batch_size},), one score per clip, or a `RewardOutput` with such a `score`"
    if not torch.is_tensor(values) or not values.is_floating_point():
        given = f"a {values.dtype} tensor" if torch.is_tensor(values) else f"a {type(values).__name__}"
        raise base.RewardFormatError(f"`{name}` gave {given}; it must give {wanted}.")
    if tuple(values.shape) != (batch_size,):
        raise base.RewardFormatError(f"`{name}` gave a tensor of shape {tuple(values.shape)}; it must give {wanted}.")
    return values.tolist()
