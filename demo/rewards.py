"""Two rewards for the demo's moving shapes, made of plain image arithmetic: a few milliseconds a candidate.

`LegibilityReward` looks at single frames (the image reward), `MotionReward` at the path over all of them (the video
reward). Both are continuous, so that a search has something to climb, and read the prompt with `parse_caption`; what
a prompt leaves open is scored by the best fit, so any prompt gives finite scores.

Axes: B videos, F frames, N = B * F frames, H height, W width. Lengths are in pixels of a 64-pixel frame.
"""

import math
from functools import cache

import torch
from torch.nn import functional

from ..rewards.base import Reward, RewardOutput
from .clips import BACKGROUNDS, COLORS, DIRECTIONS, FRAME_PIXELS, MOTIONS, ORBIT_RADIUS, SHAPES, parse_caption
from .clips import shape_coverage as draw_shape

COLOR_TOLERANCE = 0.15  # RGB distance at which a match has fallen to exp(-1/2)
USUAL_AREA = 0.14  # of the frame
VELOCITY_LAG = 4  # frames; one latent frame decodes to four


class LegibilityReward(Reward):
    """Legibility of the prompt's colour, background and shape in each frame, mean over frames.

    Parts, each in [0, 1]: `background`, `color`, `shape`, `size` (one object of the usual area) and `sharpness`.
    """

    weights = {"background": 0.25, "color": 0.25, "shape": 0.25, "size": 0.15, "sharpness": 0.1}

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float) -> RewardOutput:
        """Scores B videos; one frame is enough.

        frames: (B, F, 3, H, W) float in [0, 1]
        """
        captions = [parse_caption(text) for text in prompt]
        num_frames = frames.shape[1]
        pixels = _shrink(frames).flatten(0, 1).float()  # (N, 3, H, W)
        background_match = _matches(pixels, BACKGROUNDS)  # (N, backgrounds, H, W)
        background_shares = background_match.mean(dim=(2, 3)) / (1 - USUAL_AREA)
        backdrop = background_match[torch.arange(len(pixels), device=pixels.device), background_shares.argmax(dim=1)]
        coverage = ((0.8 - backdrop) / 0.6).clamp(0, 1)  # (N, H, W); small errors of a decoder are not an object
        area = coverage.mean(dim=(1, 2))
        color_shares = torch.einsum("nchw,nhw->nc", _matches(pixels, COLORS), coverage)
        color_shares = color_shares / coverage.sum(dim=(1, 2)).clamp(min=1.0)[:, None]
        parts = {
            "background": _wanted(background_shares, [c.background for c in captions], list(BACKGROUNDS), num_frames),
            "color": _wanted(color_shares, [c.color for c in captions], list(COLORS), num_frames),
            "shape": _wanted(_shape_scores(coverage), [c.shape for c in captions], list(SHAPES), num_frames),
            "size": torch.exp(-(((area.clamp(min=1e-4) / USUAL_AREA).log() / 0.6) ** 2)).unflatten(
                0, (-1, num_frames)
            ),
            "sharpness": _sharpness(coverage, area).unflatten(0, (-1, num_frames)),
        }
        means = {name: values.clamp(0, 1).mean(dim=1) for name, values in parts.items()}
        return RewardOutput(score=sum(self.weights[name] * means[name] for name in means), parts=means)


class MotionReward(Reward):
    """Fit of the object's path to the prompt's motion, and steadiness of the video.

    Parts, each in [0, 1]: `motion` (fit of the path to the motion), `smooth` (no jitter), `continuous` (no jumps),
    `steady_size`, `steady_color`, and `presence` (one object of the usual size), which multiplies all of them.
    """

    # Mostly the motion: over the few frames of a first chunk the others say little about the video.
    weights = {"motion": 0.7, "smooth": 0.075, "continuous": 0.075, "steady_size": 0.075, "steady_color": 0.075}

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float) -> RewardOutput:
        """Scores B videos of at least 9 frames.

        frames: (B, F, 3, H, W) float in [0, 1]
        """
        if frames.shape[1] < 9:
            raise ValueError(f"`frames` has {frames.shape[1]} per video; a path takes 9 or more.")
        captions = [parse_caption(text) for text in prompt]
        pixels = _shrink(frames, longest=FRAME_PIXELS // 2).float()
        centers, color, area = _follow_object(pixels)
        fits = torch.stack([_motion_fit(centers, motion) for motion in MOTIONS], dim=1)  # (B, motions)
        steps = centers.diff(dim=1)
        jump = steps.norm(dim=2).amax(dim=1)
        jitter = steps.diff(dim=1).norm(dim=2).mean(dim=1)
        drift = (color - color.mean(dim=1, keepdim=True)).norm(dim=2).mean(dim=1)
        wobble = area.clamp(min=1e-4).log().std(dim=1)
        parts = {
            "motion": _wanted(fits, [c.motion for c in captions], list(MOTIONS), 1)[:, 0],
            "smooth": torch.exp(-jitter / 0.8),
            "continuous": torch.exp(-(jump - 1.5).clamp(min=0) / 3),
            "steady_size": torch.exp(-wobble / 0.3),
            "steady_color": torch.exp(-drift / 0.15),
        }
        presence = torch.exp(-(((area.clamp(min=1e-4) / USUAL_AREA).log() / 0.8) ** 2)).mean(dim=1)
        score = presence * sum(self.weights[name] * parts[name] for name in parts)
        return RewardOutput(score=score, parts={**parts, "presence": presence})


def _shrink(frames: torch.Tensor, longest: int = FRAME_PIXELS) -> torch.Tensor:
    """Frames whose shorter side is at most `longest`, by averaging; smaller ones as they are."""
    height, width = frames.shape[-2:]
    if min(height, width) <= longest:
        return frames
    size = [round(side * longest / min(height, width)) for side in (height, width)]
    return functional.adaptive_avg_pool2d(frames.flatten(0, 1), size).unflatten(0, frames.shape[:2])


def _wanted(scores: torch.Tensor, wanted: list[str | None], names: list[str], num_frames: int) -> torch.Tensor:
    """The column of each video's wanted name, or the best one where nothing is wanted.

    scores: (B * num_frames, names)
    Returns (B, num_frames).
    """
    scores = scores.unflatten(0, (-1, num_frames))
    columns = [
        s.amax(dim=1) if name is None else s[:, names.index(name)] for s, name in zip(scores, wanted, strict=True)
    ]
    return torch.stack(columns)


def _matches(pixels: torch.Tensor, palette: dict[str, tuple[int, int, int]]) -> torch.Tensor:
    """Closeness of each pixel to each colour, (N, colours, H, W) in [0, 1].

    pixels: (N, 3, H, W)
    """
    table = torch.tensor(list(palette.values()), dtype=pixels.dtype, device=pixels.device) / 255
    flat = pixels.flatten(2)  # (N, 3, HW)
    squared = flat.square().sum(dim=1, keepdim=True) - 2 * (table @ flat) + table.square().sum(dim=1)[:, None]
    return torch.exp(squared.clamp(min=0) / (-2 * COLOR_TOLERANCE**2)).unflatten(2, pixels.shape[2:])


def _sharpness(coverage: torch.Tensor, area: torch.Tensor) -> torch.Tensor:
    """1 for a hard edge, falling as more of the object is neither object nor background, (N,)."""
    undecided = (coverage * (1 - coverage)).mean(dim=(1, 2)) / area.clamp(min=0.01)
    return torch.exp(-((undecided - 0.06).clamp(min=0) / 0.15))


def _shape_scores(coverage: torch.Tensor) -> torch.Tensor:
    """Closeness of the object's moments to those of each shape, (N, shapes) in [0, 1]."""
    measured = _shape_moments(coverage)[:, None]
    usual = _usual_moments().to(coverage)
    tolerance = coverage.new_tensor([0.06, 0.12, 0.12])
    return torch.exp(-0.5 * ((measured - usual) / tolerance).square().mean(dim=2))


@cache
def _usual_moments() -> torch.Tensor:
    """Moments (shapes, 3) of the shapes as they are drawn."""
    middle = torch.tensor([[FRAME_PIXELS / 2, FRAME_PIXELS / 2]], dtype=torch.float32, device="cpu")
    return torch.cat([_shape_moments(draw_shape(shape, middle, 12.0)) for shape in SHAPES])


def _shape_moments(coverage: torch.Tensor) -> torch.Tensor:
    """Spread for its area, three-fold and four-fold asymmetry about the centroid, (N, 3).

    None of them depends on place, size or rotation.
    """
    height, width = coverage.shape[1:]
    center_x, center_y = _circular_center(coverage)
    x = _wrapped_offsets(width, center_x, coverage)  # (N, W)
    y = _wrapped_offsets(height, center_y, coverage)  # (N, H)
    near_x, near_y = (x.abs() < 0.42).to(coverage), (y.abs() < 0.42).to(coverage)
    powers_x = torch.stack([near_x * x**k for k in range(5)], dim=2)  # (N, W, 5)
    powers_y = torch.stack([near_y * y**k for k in range(5)], dim=1)  # (N, 5, H)
    moments = powers_y @ coverage @ powers_x  # (N, y power, x power)
    mass = moments[:, 0, 0].clamp(min=1e-3)
    second = moments[:, 0, 2] + moments[:, 2, 0]
    pixel_area = 1 / (min(height, width) ** 2)
    spread = 2 * math.pi * second / (mass.square() * pixel_area)  # 1 for a disc
    scale = (second / mass).clamp(min=1e-6).sqrt()
    # real and imaginary parts of the mean of (x + iy)^3 and (x + iy)^4
    cubic = torch.hypot(moments[:, 0, 3] - 3 * moments[:, 2, 1], 3 * moments[:, 1, 2] - moments[:, 3, 0]) / (
        mass * scale**3
    )
    quartic = torch.hypot(
        moments[:, 0, 4] - 6 * moments[:, 2, 2] + moments[:, 4, 0], 4 * (moments[:, 1, 3] - moments[:, 3, 1])
    ) / (mass * scale**4)
    return torch.stack([spread, cubic, quartic], dim=1)


def _wrapped_offsets(length: int, center: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Signed distance (N, length) of every pixel to the centre across the joined border, as a share of the side."""
    position = (torch.arange(length, dtype=like.dtype, device=like.device) + 0.5) / length
    return (position - center[:, None] + 0.5).remainder(1) - 0.5


def _circular_center(coverage: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Centres x and y (N,) in [0, 1) on a canvas with joined borders.

    coverage: (N, H, W)
    """
    centers = []
    for weights in (coverage.sum(dim=1), coverage.sum(dim=2)):
        length = weights.shape[1]
        angle = 2 * math.pi * (torch.arange(length, dtype=weights.dtype, device=weights.device) + 0.5) / length
        mean = torch.atan2((weights * angle.sin()).sum(dim=1), (weights * angle.cos()).sum(dim=1))
        centers.append(mean.div(2 * math.pi).remainder(1))
    return centers[0], centers[1]


def _follow_object(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unwrapped centres (B, F, 2), mean colours (B, F, 3) and areas (B, F) of what is not background.

    pixels: (B, F, 3, H, W)
    """
    batch, _, _, height, width = pixels.shape
    flat = pixels.flatten(0, 1)  # (N, 3, H, W)
    backdrop = flat[:, :, ::2, ::2].flatten(2).median(dim=2).values
    offset = flat - backdrop[:, :, None, None]
    distance = offset.abs().sum(dim=1)  # (N, H, W)
    core = (distance > 0.7 * distance.amax(dim=(1, 2), keepdim=True).clamp(min=0.3)).to(flat)
    color = torch.einsum("nchw,nhw->nc", offset, core) / core.sum(dim=(1, 2)).clamp(min=1.0)[:, None]
    power = color.square().sum(dim=1).clamp(min=0.01)[:, None, None]
    # linear in the pixels, so that the centre of a softened edge stays where it is
    coverage = torch.einsum("nchw,nc->nhw", offset, color) / power
    coverage = torch.where(coverage > 0.15, coverage.clamp(max=1), 0.0)
    position = torch.stack(_circular_center(coverage), dim=1).unflatten(0, (batch, -1))  # (B, F, 2)
    steps = (position.diff(dim=1) + 0.5).remainder(1) - 0.5
    centers = torch.cat([position[:, :1], position[:, :1] + steps.cumsum(dim=1)], dim=1)
    sides = torch.tensor([width, height], dtype=centers.dtype, device=centers.device)
    centers = centers * sides * (FRAME_PIXELS / min(height, width))
    return centers, color.unflatten(0, (batch, -1)), coverage.mean(dim=(1, 2)).unflatten(0, (batch, -1))


def _motion_fit(centers: torch.Tensor, motion: str) -> torch.Tensor:
    """Fit of the velocities to the motion at its best speed, (B,) in (0, 1].

    centers: (B, F, 2)
    """
    velocity = (centers[:, VELOCITY_LAG:] - centers[:, :-VELOCITY_LAG]) / VELOCITY_LAG
    if motion in DIRECTIONS:
        direction = torch.tensor(DIRECTIONS[motion], dtype=centers.dtype, device=centers.device)
        speed = (velocity @ direction).mean(dim=1).clamp(0.6, 1.3)
        error = (velocity - speed[:, None, None] * direction).norm(dim=2)
    else:
        error = _circling_error(velocity)
    return torch.exp(-error.mean(dim=1) / 0.5)


def _circling_error(velocity: torch.Tensor) -> torch.Tensor:
    """Distance (B, F') between each velocity and an earlier one turned as far as an orbit of this speed turns it.

    velocity: (B, F, 2)
    """
    lag = VELOCITY_LAG
    before, after = (torch.complex(*velocity[:, part].unbind(dim=2)) for part in (slice(None, -lag), slice(lag, None)))
    speed = velocity.norm(dim=2).mean(dim=1).clamp(0.6, 1.3)
    turn = torch.polar(torch.ones_like(speed), lag * speed / ORBIT_RADIUS)
    still = (speed[:, None] - velocity[:, lag:].norm(dim=2)).abs()
    return (after - before * turn[:, None]).abs() + still
