"""Rotary position embedding of Wan at chosen frame positions (RoFormer, Su et al. 2021; Wan 2.1 report, 4.2).

The stock model numbers the frames of its input from 0. A chunk of a stream begins anywhere, and a memory's frames need
not be neighbours, so the tables here are made for a list of frame positions. They are float32 whatever the model's
dtype (a model moved to bfloat16 rounds its own tables), computed in float64 on the CPU, which every machine has.

Axes: L tokens (frame-major, then rows, then columns), N heads, D head dim.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

THETA = 10000.0


@lru_cache(maxsize=64)
def _axis_angles(positions: tuple[int, ...], axis_dim: int) -> torch.Tensor:
    """Angle of every position and frequency: (positions, axis_dim / 2), float64 on the CPU."""
    frequencies = THETA ** (-torch.arange(0, axis_dim, 2, dtype=torch.float64) / axis_dim)
    return torch.tensor(positions, dtype=torch.float64)[:, None] * frequencies


def rotary_table(
    frame_positions: Sequence[int], height: int, width: int, head_dim: int, device: torch.device | str = "cpu"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines, each (L, D / 2) float32, for frames at `frame_positions`.

    `height` and `width` count patches; L is `len(frame_positions) * height * width`. A head's channels are shared out
    over time, rows and columns as in the stock model: rows and columns get `2 * (D // 6)` each, time the rest.
    """
    spatial_dim = 2 * (head_dim // 6)
    time, rows, columns = (
        torch.stack((angles.cos(), angles.sin())).to(torch.float32).to(device)  # (2, positions, axis_dim / 2)
        for angles in (
            _axis_angles(tuple(frame_positions), head_dim - 2 * spatial_dim),
            _axis_angles(tuple(range(height)), spatial_dim),
            _axis_angles(tuple(range(width)), spatial_dim),
        )
    )
    grid = (2, len(frame_positions), height, width, -1)
    table = torch.cat(
        (
            time[:, :, None, None].expand(grid),
            rows[:, None, :, None].expand(grid),
            columns[:, None, None].expand(grid),
        ),
        dim=-1,
    )
    cosines, sines = table.flatten(1, 3).unbind(0)
    return cosines, sines


def rotate(heads: torch.Tensor, cosines: torch.Tensor, sines: torch.Tensor) -> torch.Tensor:
    """Queries or keys (..., L, N, D), each pair of neighbouring channels turned by its token's angle.

    The product is taken in float32 and rounded once, to the dtype of `heads`.
    """
    even, odd = heads.unflatten(-1, (-1, 2)).unbind(-1)  # (..., L, N, D / 2)
    cosines, sines = cosines[:, None], sines[:, None]
    turned = torch.stack((even * cosines - odd * sines, even * sines + odd * cosines), dim=-1)
    return turned.flatten(-2).type_as(heads)
