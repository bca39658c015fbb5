"""The two verdicts on the demo's videos, as metrics of an evaluation: the trained judge and the checker's rules.

Axes: F frames, H height, W width.
"""

from dataclasses import dataclass

import torch

from ..evaluation.metrics import prefixed
from .checker import check
from .clips import ATTRIBUTES, parse_caption
from .judge import Judge


@dataclass(frozen=True, eq=False)
class JudgeMetric:
    """The trained judge: 1 where all that the prompt says is seen, and the probability that it gives that."""

    scorer: Judge

    def __call__(self, frames: torch.Tensor, prompt: str, fps: float) -> dict[str, float]:
        caption, reading = parse_caption(prompt), self.scorer.read(frames.float() / 255)
        follows = {name: float(reading.follows(caption, name)) for name in ATTRIBUTES}
        probability = reading.probability(caption).mean().item()
        return prefixed("judge", {"": min(follows.values()), **follows, "probability": probability})


def checker_metric(frames: torch.Tensor, prompt: str, fps: float) -> dict[str, float]:
    """The checker's rules: 1 where all that the prompt says is seen, and the steadiness of the path."""
    caption, verdict = parse_caption(prompt), check(frames.float() / 255)
    follows = {name: float(verdict.follows(caption, name)) for name in ATTRIBUTES}
    steadiness = {name: getattr(verdict, name) for name in ("presence", "largest_jump", "jitter")}
    return prefixed("checker", {"": min(follows.values()), **follows, **steadiness})
