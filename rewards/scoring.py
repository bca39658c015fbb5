"""Calling a reward on the candidates of one chunk: one batched call, checked; what fails costs one candidate.

Axes: B clips, F frames, H height and W width in pixels.
"""

import math
import traceback
from collections.abc import Callable, Mapping, Sequence
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
    error: Exception | None = None  # behind the problem, if one was raised


def score_clips(
    reward: RewardFunction, frames: torch.Tensor, prompt: str | list[str], fps: float, *, name: str
) -> list[RewardScore]:
    """A score for each of B clips.

    A call that raises is repeated clip by clip, and clips that raise again, or score no finite number, get None. What
    was raised keeps its traceback, and of the variables in it nothing.

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
    except Exception as caught:  # a reward is foreign code: whatever it raises must cost one candidate, not the run
        problem = f"`{name}` raised {type(caught).__name__}: {caught}"
        # Without this frame and the others' variables: they hold the clips for as long as the error is kept.
        error = caught.with_traceback(caught.__traceback__.tb_next)
        clear_variables(error)
    else:
        return _read(output, len(frames), name)
    if len(frames) == 1:
        return [RewardScore(None, problem=problem, error=error)]
    logger.warning(f"{problem}. Trying its {len(frames)} clips one by one.")
    singles = zip(frames.split(1), prompts, strict=True)
    return [score for clip, text in singles for score in score_clips(reward, clip, [text], fps, name=name)]


def mean_over_parts(scores: Sequence[RewardScore], num_frames: Sequence[int]) -> RewardScore:
    """The mean of what a reward said of the parts of one video, each weighing its frames.

    A part without a score leaves the video without one, for its reason.
    """
    unscored = [score for score in scores if score.score is None]
    if unscored or len(scores) == 1:
        return (unscored or scores)[0]
    total = sum(score.score * frames for score, frames in zip(scores, num_frames, strict=True))
    return RewardScore(total / sum(num_frames))


def clear_variables(error: BaseException | None) -> None:
    """Empties the finished frames of an error's traceback, their callers', and those of the errors before it.

    They hold tensors alive for as long as the error is kept. Files and lines stay, so that it is printed as ever.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        for frame, _ in traceback.walk_tb(error.__traceback__):
            while frame is not None and id(frame) not in seen:
                seen.add(id(frame))
                try:
                    frame.clear()
                except RuntimeError:  # it still runs, and so do its callers
                    break
                frame = frame.f_back
        error = error.__cause__ or error.__context__


def _read(output: object, batch_size: int, name: str) -> list[RewardScore]:
    scores = _numbers(getattr(output, "score", output), batch_size, name)
    parts = getattr(output, "parts", None)
    parts = {} if parts is None else parts
    if not isinstance(parts, Mapping) or not all(isinstance(part, str) for part in parts):
        raise base.RewardFormatError(f"`{name}` gave `parts` that are no dict of names to tensors.")
    parts = {part: _numbers(values, batch_size, f"{name}, part {part}") for part, values in parts.items()}
    lost, gated, errors = (_reasons(output, kind, batch_size, name) for kind in ("lost", "gated", "errors"))
    results = []
    for row, score in enumerate(scores):
        named = {part: values[row] for part, values in parts.items() if math.isfinite(values[row])}
        if lost[row] is None and gated[row] is None and math.isfinite(score):
            results.append(RewardScore(score, named))
        else:
            problem = f"`{name}` scored {score}" if lost[row] is None else f"`{name}`: {lost[row]}"
            problem = None if gated[row] else problem
            results.append(RewardScore(None, named, problem, gated[row], errors[row]))
    return results


def _reasons(output: object, kind: str, batch_size: int, name: str) -> tuple:
    """A field of a `RewardOutput` that is None or has something, or None, for each clip."""
    reasons = getattr(output, kind, None)
    if reasons is None:
        return (None,) * batch_size
    allowed = Exception if kind == "errors" else str
    is_right = isinstance(reasons, tuple | list) and len(reasons) == batch_size
    if not is_right or not all(reason is None or isinstance(reason, allowed) for reason in reasons):
        raise base.RewardFormatError(
            f"`{name}` gave `{kind}` {reasons!r}; it must be None, or have {batch_size} entries, None or "
            f"{allowed.__name__} each."
        )
    return tuple(reasons)


def _numbers(values: object, batch_size: int, name: str) -> list[float]:
    wanted = f"a float tensor of shape ({batch_size},), one score per clip, or a `RewardOutput` with such a `score`"
    given = None
    if not torch.is_tensor(values):
        given = f"a {type(values).__name__}"
    elif values.is_meta or values.is_nested or values.layout != torch.strided:
        given = f"a tensor {'on the meta device' if values.is_meta else 'that is sparse or nested'}"
    elif not values.is_floating_point():
        given = f"a {values.dtype} tensor"
    elif tuple(values.shape) != (batch_size,):
        given = f"a tensor of shape {tuple(values.shape)}"
    if given is not None:
        raise base.RewardFormatError(f"`{name}` gave {given}; it must give {wanted}.")
    return values.tolist()
