"""Rotary position embedding of Wan at chosen frame positions (RoFormer, Su et al. 2021; Wan 2.1 report, 4.2).

The stock model numbers the frames of its input from 0. A chunk of a stream begins anywhere, and a memory's frames need
not be neighbours, so the tables here are made for a list of frame positions. They have float32's precision whatever
the model's dtype (a model moved to bfloat16 rounds its own tables), computed in float64 on the CPU, which every
machine has.

Axes: L tokens (frame-major, then rows, then columns), N heads, D head dim.
"""

from collections.abc import Sequence
from functools import lru_cache

import torch

THETA = 10000.0


@lru_cache(maxsize=16)
def _axis_turns(num_positions: int, axis_dim: int) -> torch.Tensor:
    """Cosine and sine for positions 0, 1, ... and every frequency: (positions, axis_dim / 2, 2) float32 on the CPU."""
    exact = {"dtype": torch.float64, "device": "cpu"}  # explicit, since torch's default device may be another
    frequencies = THETA ** (-torch.arange(0, axis_dim, 2, **exact) / axis_dim)
    angles = torch.arange(num_positions, **exact)[:, None] * frequencies
    return torch.stack((angles.cos(), angles.sin()), dim=-1).float()


def rotary_table(
    frame_positions: Sequence[int], height: int, width: int, head_dim: int, device: torch.device | str = "cpu"
) -> torch.Tensor:
    """Cosine and sine of the angle of every token and channel pair: (L, D / 2, 2) float32.

    `height` and `width` count patches; L is `len(frame_positions) * height * width`. A head's channels are split
    over time, rows and columns as in the stock model: rows and columns get `2 * (D // 6)` each, time the rest.
    """
    spatial_dim = 2 * (head_dim // 6)
    # In powers of two, so that a growing video rarely needs a new table.
    num_positions = 1 << max(frame_positions).bit_length()
    time = _axis_turns(num_positions, head_dim - 2 * spatial_dim)[list(frame_positions)].to(device)
    rows, columns = (_axis_turns(size, spatial_dim).to(device) for size in (height, width))
    grid = (len(frame_positions), height, width, -1, 2)
    axes = (time[:, None, None].expand(grid), rows[None, :, None].expand(grid), columns[None, None].expand(grid))
    return torch.cat(axes, dim=-2).flatten(0, 2)


def rotate(heads: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Rotates each pair of neighbouring channels of queries or keys (..., L, N, D) by its token's angle.

    The product is taken in float32 and rounded once, to the dtype of `heads`.
    """
    pairs = heads.float().unflatten(-1, (-1, 2))  # (..., L, N, D / 2, 2)
    if not torch.compiler.is_compiling() and heads.device.type != "mps":
        turned = torch.view_as_complex(pairs) * torch.view_as_complex(table)[:, None]
        return torch.view_as_real(turned).flatten(-2).type_as(heads)
    # In real numbers: inductor generates no kernels for complex ones, and MPS lacks some.
    (real, imaginary), (cosine, sine) = pairs.unbind(-1), table[:, None].unbind(-1)
    turned = (real * cosine - imaginary * sine, real * sine + imaginary * cosine)
    return torch.stack(turned, dim=-1).flatten(-2).type_as(heads)
