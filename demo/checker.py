"""The checker, a verdict on a demo video from its pixels alone: plain measurements, no learned part, no prompt.

This is one of the two verdicts that are reported; the other (`judge.py`) is learned. The rewards that the search
maximises (`rewards.py`) are built differently on purpose: colours by soft matches instead of medians, shapes by
moments instead of templates, motion by fits.

Axes: F frames, H height, W width. Lengths are in pixels of a 64-pixel frame whatever the size of the video.
"""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cache

import torch

from .clips import BACKGROUNDS, COLORS, DIRECTIONS, FRAME_PIXELS, SHAPES, Sight, shape_coverage

MIN_FRAMES = 9
VELOCITY_LAG = 8  # frames; two latent frames
MOTION_SHARE = 0.6  # of the frames that must agree
STEADY_TURN = 0.9
COLOR_SHARE = 0.8
SAME_COLOR = 0.22  # largest RGB distance from a named colour that still gets its name
TEMPLATE_PIXELS = 48
MIN_SHAPE_OVERLAP = {"circle": 0.86, "triangle": 0.86, "cross": 0.81}  # what an outline 0.8 pixels off leaves of each
MIN_SHAPE_MARGIN = 0.1


@dataclass(frozen=True)
class Verdict(Sight):
    """The attributes that were seen; None where nothing is clear enough to name."""

    shape: str | None
    color: str | None
    background: str | None
    motion: str | None
    presence: float  # share of frames with exactly one object of plausible size
    largest_jump: float  # of the centre between two frames, pixels
    jitter: float  # mean second difference of the centre, pixels

    def answer(self, attribute: str) -> str | None:
        return getattr(self, attribute)


@dataclass(frozen=True, eq=False)
class ObjectTrack:
    """The object in every frame."""

    background: torch.Tensor  # (F, 3) RGB in [0, 1]
    color: torch.Tensor  # (F, 3) RGB in [0, 1]
    coverage: torch.Tensor  # (F, H, W) in [0, 1]
    centers: torch.Tensor  # (F, 2) x and y, unwrapped across the borders
    area: torch.Tensor  # (F,) share of the frame
    present: torch.Tensor  # (F,) bool


def check(frames: torch.Tensor) -> Verdict:
    """Judges a video.

    frames: (F, 3, H, W) float in [0, 1], at least 9
    """
    if frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[0] < MIN_FRAMES:
        raise ValueError(f"`frames` has shape {tuple(frames.shape)}; it must be (F, 3, H, W) with F >= {MIN_FRAMES}")
    track = find_object(frames.detach().float().cpu())
    presence = track.present.float().mean().item()
    steps = track.centers.diff(dim=0)
    clear = presence >= COLOR_SHARE
    return Verdict(
        shape=name_shape(track) if clear else None,
        color=_common_name(track.color[track.present], COLORS) if clear else None,
        background=_common_name(track.background, BACKGROUNDS),
        motion=name_motion(track.centers) if clear else None,
        presence=presence,
        largest_jump=steps.norm(dim=1).max().item(),
        jitter=steps.diff(dim=0).norm(dim=1).mean().item(),
    )


def find_object(frames: torch.Tensor) -> ObjectTrack:
    """Measures everything that is not the background, frame by frame.

    The centre is a circular mean, so that an object cut in two by a border has its centre at the border.
    """
    height, width = frames.shape[2:]
    background = frames.flatten(2).median(dim=2).values  # (F, 3)
    offset = frames - background[:, :, None, None]
    distance = offset.square().sum(dim=1).sqrt()  # (F, H, W); `norm` over so short an axis is many times slower
    contrast = distance.flatten(1).quantile(0.97, dim=1)[:, None, None]
    core = (distance > 0.7 * contrast).float()
    object_offset = (offset * core[:, None]).sum(dim=(2, 3)) / core.sum(dim=(1, 2))[:, None].clamp(min=1)  # (F, 3)
    power = object_offset.square().sum(dim=1).clamp(min=1e-6)
    coverage = (torch.einsum("fchw,fc->fhw", offset, object_offset) / power[:, None, None]).clamp(0, 1)
    coverage = torch.where(coverage < 0.15, 0.0, coverage)
    area = coverage.mean(dim=(1, 2))
    x, x_spread = _circular_mean(coverage.sum(dim=1))
    y, y_spread = _circular_mean(coverage.sum(dim=2))
    present = (area > 0.04) & (area < 0.25) & (power.sqrt() > 0.2) & (x_spread < 0.5) & (y_spread < 0.5)
    longest = FRAME_PIXELS / min(height, width)
    return ObjectTrack(
        background=background,
        color=background + object_offset,
        coverage=coverage,
        centers=torch.stack([_unwrap(x) * width, _unwrap(y) * height], dim=1) * longest,
        area=area,
        present=present,
    )


def name_motion(centers: torch.Tensor) -> str | None:
    """Names the motion of a path (F, 2), by the directions of travel and their turns."""
    lag = min(VELOCITY_LAG, max(1, len(centers) // 4))
    velocity = (centers[lag:] - centers[:-lag]) / lag
    speed = velocity.norm(dim=1)
    if speed.median() < 0.3:
        return None
    angle = torch.atan2(velocity[:, 1], velocity[:, 0])
    moving = speed > 0.25
    shares = {
        name: _share(moving & (_angle_between(angle, math.atan2(y, x)) < math.pi / 8))
        for name, (x, y) in DIRECTIONS.items()
    }
    turn = ((angle[lag:] - angle[:-lag] + math.pi).remainder(2 * math.pi) - math.pi) / lag
    side = torch.sign(turn.median())
    shares["in circles"] = _share(moving[lag:] & (turn * side > math.radians(2.5)) & (turn * side < math.radians(16)))
    if shares["in circles"] >= STEADY_TURN:  # over a few frames a turn may look like one direction, never the reverse
        return "in circles"
    best = max(shares, key=lambda name: shares[name])
    return best if shares[best] >= MOTION_SHARE else None


def name_shape(track: ObjectTrack) -> str | None:
    """Names the template that overlaps most over the frames; None, "neither", when none overlaps well."""
    overlaps = shape_overlaps(track)[track.present].median(dim=0).values  # one per shape
    best, second = overlaps.topk(2).values.tolist()
    name = SHAPES[int(overlaps.argmax())]
    return name if best >= MIN_SHAPE_OVERLAP[name] and best - second >= MIN_SHAPE_MARGIN else None


def shape_overlaps(track: ObjectTrack) -> torch.Tensor:
    """Soft intersection over union with each shape's template (F, shapes), centred and at equal area."""
    frames, height, width = track.coverage.shape
    window = math.sqrt(0.11) * 2.2  # side of the crop as a share of the frame, for an object of usual area
    window = window * (track.area / 0.11).sqrt().clamp(0.5, 1.6)
    steps = (torch.arange(TEMPLATE_PIXELS, dtype=torch.float32) + 0.5) / TEMPLATE_PIXELS - 0.5
    scale = FRAME_PIXELS / min(height, width)
    x = track.centers[:, :1] / (scale * width) + window[:, None] * steps  # (F, T)
    y = track.centers[:, 1:] / (scale * height) + window[:, None] * steps
    crops = _sample_wrapped(track.coverage, x, y)  # (F, T, T)
    templates = _templates()[None]  # (1, shapes, T, T)
    crops = crops[:, None]
    union = torch.maximum(crops, templates).sum(dim=(2, 3))
    return torch.minimum(crops, templates).sum(dim=(2, 3)) / union.clamp(min=1e-6)


@cache
def _templates() -> torch.Tensor:
    """The shapes (shapes, T, T), cut out as `shape_overlaps` cuts out objects."""
    covers = []
    for shape in SHAPES:
        center = torch.tensor([[32.0, 32.0]], dtype=torch.float32)
        coverage = shape_coverage(shape, center, 12.0)
        area = coverage.mean()
        window = math.sqrt(0.11) * 2.2 * math.sqrt(area / 0.11)
        steps = (torch.arange(TEMPLATE_PIXELS, dtype=torch.float32) + 0.5) / TEMPLATE_PIXELS - 0.5
        middle_x, _ = _circular_mean(coverage.sum(dim=1))
        middle_y, _ = _circular_mean(coverage.sum(dim=2))
        covers.append(
            _sample_wrapped(coverage, middle_x[:, None] + window * steps, middle_y[:, None] + window * steps)
        )
    return torch.cat(covers)


def _sample_wrapped(coverage: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Bilinear samples (F, Ty, Tx) of a canvas with joined borders; x (F, Tx), y (F, Ty) are shares of its sides."""
    frames, height, width = coverage.shape
    rows = _linear_weights(y, height)  # (F, Ty, H)
    columns = _linear_weights(x, width)  # (F, Tx, W)
    return rows @ coverage @ columns.transpose(1, 2)


def _linear_weights(position: torch.Tensor, count: int) -> torch.Tensor:
    """Weight of each of `count` pixels in a sample at `position` (share of the frame), (F, T, count)."""
    offset = position[:, :, None] * count - (torch.arange(count, dtype=position.dtype) + 0.5)
    offset = (offset + count / 2).remainder(count) - count / 2
    return (1 - offset.abs()).clamp(min=0)


def _circular_mean(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean position (F,) in [0, 1) along a joined axis, and the spread of the weights: 0 a point, 1 everywhere.

    weights: (F, length)
    """
    length = weights.shape[1]
    angle = 2 * math.pi * (torch.arange(length, dtype=weights.dtype, device=weights.device) + 0.5) / length
    cosine = (weights * angle.cos()).sum(dim=1)
    sine = (weights * angle.sin()).sum(dim=1)
    spread = 1 - torch.hypot(cosine, sine) / weights.sum(dim=1).clamp(min=1e-6)
    return torch.atan2(sine, cosine).div(2 * math.pi).remainder(1), spread


def _unwrap(position: torch.Tensor) -> torch.Tensor:
    """Positions in [0, 1) on a joined axis as a path that goes on past the borders."""
    steps = (position.diff() + 0.5).remainder(1) - 0.5
    return torch.cat([position[:1], position[:1] + steps.cumsum(dim=0)])


def _common_name(colors: torch.Tensor, palette: dict[str, tuple[int, int, int]]) -> str | None:
    """Returns the palette's name for most of the frames (F, 3); None when frames disagree or no colour is near."""
    table = torch.tensor(list(palette.values()), dtype=colors.dtype) / 255
    distance, index = torch.cdist(colors, table).min(dim=1)
    names = [list(palette)[i] if d < SAME_COLOR else None for i, d in zip(index.tolist(), distance, strict=True)]
    name, count = Counter(names).most_common(1)[0]
    return name if count >= COLOR_SHARE * len(names) else None


def _angle_between(angle: torch.Tensor, other: float) -> torch.Tensor:
    return ((angle - other + math.pi).remainder(2 * math.pi) - math.pi).abs()


def _share(flags: torch.Tensor) -> float:
    return flags.float().mean().item()
