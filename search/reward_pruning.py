"""Unit 2, reward pruning: short and long scores, their fusion, and who is kept (paper section 3.2)."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch

from . import beam, trace

Score = TypeVar("Score", float, torch.Tensor)


def fusion_weight(chunk_index: int, num_chunks: int, cap: float) -> float:
    """Weight of the short score, `w = min(n / (N - 1), tau)`: chunk 0 is ranked on the long score alone.

    0 for a video of one chunk. `num_chunks` is the horizon when a stream has no known end.
    """
    return 0.0 if num_chunks == 1 else min(chunk_index / (num_chunks - 1), cap)


def fuse_scores(short: Score, long: Score, chunk_index: int, num_chunks: int, cap: float) -> Score:
    """`w * short + (1 - w) * long` with the weight of `fusion_weight`; floats or tensors of one shape.

    Args:
        short: image reward of the new chunk.
        long: video reward of the window that ends with it.
        chunk_index: n, from 0 to N - 1.
        num_chunks: N.
        cap: tau.
    """
    weight = fusion_weight(chunk_index, num_chunks, cap)
    return weight * short + (1.0 - weight) * long


def fused_score(short: float | None, long: float | None, weight: float) -> float:
    """`weight * short + (1 - weight) * long`; the one that is there alone; 0 without both."""
    if short is None or long is None:
        return next((score for score in (short, long) if score is not None), 0.0)
    return weight * short + (1.0 - weight) * long


def normalize_scores(scores: Sequence[float], method: str | None) -> list[float]:
    """The scores of one chunk's candidates on a common scale.

    Args:
        scores: of one reward, all finite.
        method: None leaves them; "zscore" gives mean 0 and standard deviation 1 (all 0 when they are equal); "rank"
            gives 0 for the lowest to 1 for the highest, equal scores sharing the mean of their ranks.
    """
    if method is None or len(scores) == 0:
        return list(scores)
    # Rewards that are summed have the same on tensors (rewards/combining.py): a folder imports none of another.
    values = np.asarray(scores, dtype=np.float64)
    if method == "zscore":
        deviation = values.std()
        return ((values - values.mean()) / (deviation if deviation > 0 else 1.0)).tolist()
    below = (values[None, :] < values[:, None]).sum(axis=1)
    equal = (values[None, :] == values[:, None]).sum(axis=1) - 1
    return ((below + equal / 2) / max(values.size - 1, 1)).tolist()


def mean_score(scores: Sequence[float | None]) -> float | None:
    """The mean of the scores that are there; None without any."""
    known = [score for score in scores if score is not None]
    return sum(known) / len(known) if known else None


def rank(candidates: "Sequence[beam.Candidate]") -> list[int]:
    """Indices of the candidates that have a score, best first, ties in order of arrival."""
    return keep_best([candidate.score for candidate in candidates], len(candidates))


def known_scores(candidates: "Sequence[beam.Candidate]") -> list[float]:
    """The scores of the candidates that have one."""
    return [candidate.score for candidate in candidates if candidate.score is not None]


def keep_best(scores: Sequence[float | None], num_beams: int) -> list[int]:
    """Indices of the `num_beams` best scores, best first, ties in order of arrival; None is never kept."""
    alive = [index for index, score in enumerate(scores) if score is not None]
    return sorted(alive, key=lambda index: -scores[index])[:num_beams]


def order_by(selection: str, scores: Sequence[float | None]) -> "trace.FinalTrace":
    """The last beams, best score first, those without a score at the end."""
    order = keep_best(scores, len(scores))
    order += [index for index in range(len(scores)) if index not in order]
    return trace.FinalTrace(selection, order, [scores[index] for index in order])
