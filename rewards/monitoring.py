"""Rewards that watch a search and decide nothing."""

from collections.abc import Callable, Mapping

import torch
from diffusers.utils import logging

from . import base, scoring

logger = logging.get_logger(__name__)


def watched_scores(
    monitors: Mapping[str, Callable], clips: torch.Tensor, words: str, fps: float, *, chunk_index: int
) -> dict[str, list[float | None]]:
    """Scores of the kept beams' clips by monitor, and by "MONITOR.PART"; None, with a warning, where there is none.

    Args:
        clips: (B, F, 3, H, W) uint8.
        chunk_index: for the warnings.
    """
    watched = {}
    for name, monitor in monitors.items():
        try:
            results = scoring.score_clips(monitor, clips, words, fps, name=f"monitors[{name!r}]")
        except base.RewardFormatError as error:  # a bug of the monitor, but nothing depends on it
            results = [scoring.RewardScore(None, problem=str(error))] * len(clips)
        watched[name] = [result.score for result in results]
        for part in dict.fromkeys(part for result in results for part in result.parts):
            watched[f"{name}.{part}"] = [result.parts.get(part) for result in results]
        for index, result in enumerate(results):
            if result.problem is not None:
                logger.warning(f"Chunk {chunk_index}: beam {index} is not monitored, {result.problem}.")
    return watched
