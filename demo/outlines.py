"""Objects that are none of the demo's shapes, or not quite: hard cases for a verdict on shapes.

Axes: F frames, H height, W width. Lengths in pixels of a 64-pixel frame.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from .clips import BACKGROUNDS, COLORS, EDGE_PIXELS, FRAME_PIXELS, SHAPES, Caption, draw_clips, shape_coverage

RADIUS = 14.0

Outline = Callable[[Caption, torch.Generator], torch.Tensor]  # a still object (H, W) in [0, 1], centred


def blob(caption: Caption, generator: torch.Generator) -> torch.Tensor:
    """An irregular outline: a radius with two to five waves around, of a fifth in root mean square."""
    x, y = _centred_grid()
    angle = torch.atan2(y, x)
    waves = torch.randn(4, generator=generator)
    waves = waves / waves.norm() * 0.28  # root mean square of 0.2 of the radius
    phases = 2 * math.pi * torch.rand(4, generator=generator)
    radius = RADIUS * (
        1 + sum(a * torch.cos((k + 2) * angle + p) for k, (a, p) in enumerate(zip(waves, phases, strict=True)))
    )
    return _soft(torch.hypot(x, y) - radius)


def bent(caption: Caption, generator: torch.Generator) -> torch.Tensor:
    """The caption's shape bent by a smooth field of 5 pixels."""
    return _warped(_still(caption.shape), 5.0, generator)


def wobbly(caption: Caption, generator: torch.Generator) -> torch.Tensor:
    """The caption's shape bent by a smooth field of 1 pixel, which keeps its name."""
    return _warped(_still(caption.shape), 1.0, generator)


def melted(caption: Caption, generator: torch.Generator) -> torch.Tensor:
    """Half the caption's shape, half another."""
    other = SHAPES[(SHAPES.index(caption.shape) + 1) % len(SHAPES)]
    return (_still(caption.shape) + _still(other)) / 2


def other_shape(caption: Caption, generator: torch.Generator) -> torch.Tensor:
    """A square, a ring, a bar or an ellipse."""
    x, y = _centred_grid()
    distances = (
        torch.maximum(x.abs(), y.abs()) - 0.85 * RADIUS,
        (torch.hypot(x, y) - 0.85 * RADIUS).abs() - 0.3 * RADIUS,
        torch.maximum(x.abs() - 1.3 * RADIUS, y.abs() - 0.4 * RADIUS),
        torch.hypot(x / 1.3, y / 0.7) - 0.9 * RADIUS,
    )
    return _soft(distances[int(torch.randint(len(distances), (), generator=generator))])


def moved_along(centers: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
    """The centred picture (H, W) moved along a path (F, 2) on a canvas whose borders are joined, (F, H, W)."""
    half = FRAME_PIXELS / 2
    pixels = torch.arange(FRAME_PIXELS) + 0.5
    x, y = ((pixels - centers[:, axis, None] + half).remainder(FRAME_PIXELS) - half for axis in (0, 1))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1) / half  # (F, H, W, 2)
    return functional.grid_sample(still.expand(len(centers), 1, -1, -1), grid, align_corners=False)[:, 0]


def clips_of(captions: Sequence[Caption], outline: Outline, num_frames: int, seed: int) -> torch.Tensor:
    """The captions' clips (V, F, 3, H, W) in [0, 1] with another object instead of their shape."""
    generator = torch.Generator().manual_seed(seed)
    videos = []
    for clip, caption in zip(draw_clips(captions, num_frames, seed), captions, strict=True):
        coverage = moved_along(clip.centers, outline(caption, generator))[:, None]  # (F, 1, H, W)
        color, background = (
            torch.tensor(values)[:, None, None] / 255
            for values in (COLORS[caption.color], BACKGROUNDS[caption.background])
        )
        videos.append(background + (color - background) * coverage)
    return torch.stack(videos)


def _still(shape: str) -> torch.Tensor:
    middle = FRAME_PIXELS / 2
    return shape_coverage(shape, torch.tensor([[middle, middle]]), RADIUS)[0]


def _centred_grid() -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets x (1, W) and y (H, 1) of the pixels from the middle of the frame."""
    offset = torch.arange(FRAME_PIXELS) + 0.5 - FRAME_PIXELS / 2
    return offset[None, :], offset[:, None]


def _soft(distance: torch.Tensor) -> torch.Tensor:
    return (0.5 - distance / EDGE_PIXELS).clamp(0, 1)


def _warped(still: torch.Tensor, pixels: float, generator: torch.Generator) -> torch.Tensor:
    """The picture (H, W) warped by a smooth random field of this root mean square."""
    field = torch.randn(1, 2, 5, 5, generator=generator)  # one node every 16 pixels
    field = functional.interpolate(field, size=(FRAME_PIXELS, FRAME_PIXELS), mode="bicubic", align_corners=True)
    field = field - field.mean(dim=(2, 3), keepdim=True)
    field = field * pixels / field.square().sum(dim=1).mean().sqrt()
    x, y = _centred_grid()
    grid = torch.stack([x + field[0, 0], y + field[0, 1]], dim=-1) / (FRAME_PIXELS / 2)
    return functional.grid_sample(still[None, None], grid[None], align_corners=False)[0, 0]
