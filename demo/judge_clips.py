"""Training clips of the judge: their content is known, and much of it is nothing that a caption could say.

A clip follows its caption except for its oddities: an outline that is none of the shapes, a colour without a name, a
path that leads nowhere, an object that fades. The failures of generators are among them. What is left of the caption
is the clip's truth: it comes from how the clip was drawn, never from another verdict.

Axes: F frames, H height, W width; coordinates as in `clips.py`.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional

from .clips import (
    BACKGROUNDS,
    COLORS,
    DIRECTIONS,
    FRAME_PIXELS,
    MOTIONS,
    SHAPES,
    Caption,
    draw_path,
    shape_coverage,
)
from .latents import decode_latents, encode_frames, latent_statistics
from .outlines import bent, blob, melted, moved_along, other_shape, wobbly

WITHOUT_A_NAME = "without a name"

# How often a clip of the training set has each oddity.
ODDITIES = {
    "shape": {
        "blob": 0.1,
        "bent": 0.09,
        "melted": 0.07,
        "other shape": 0.08,
        "flickering": 0.05,  # between two of the shapes
        "two objects": 0.05,
    },
    "color": {WITHOUT_A_NAME: 0.16, "flickering": 0.06},
    "background": {WITHOUT_A_NAME: 0.18},
    "motion": {
        "still": 0.05,
        "jumping": 0.05,
        "wandering": 0.05,
        "between directions": 0.06,
        "crawling": 0.04,
        "racing": 0.03,
        "turning": 0.06,  # from one motion to another and back, or to and fro
    },
    "presence": {"fading": 0.05},  # away, in late, or never there
}
OUTLINES = {"blob": blob, "bent": bent, "melted": melted, "other shape": other_shape, "wobbly": wobbly}
OTHER_COLOR = 0.3  # RGB distance from every named colour at which a colour has none of their names
CONTRAST = 0.4  # least RGB distance of object and background
OTHER_DIRECTION = math.radians(20)  # from every named direction
JITTER_PIXELS = 0.6  # of paths that keep the name of their motion
TILT = math.radians(10)


@dataclass(frozen=True, eq=False)
class LabelledClip:
    """A clip and its true content."""

    frames: torch.Tensor  # (F, 3, H, W) uint8
    truth: Caption  # None for neither


def draw_oddities(generator: random.Random) -> dict[str, str]:
    """Draws the oddities of one clip of the training set, by attribute; most attributes have none."""
    drawn = {}
    for attribute, shares in ODDITIES.items():
        kinds, weights = list(shares), list(shares.values())
        kind = generator.choices([*kinds, None], [*weights, 1 - sum(weights)])[0]
        if kind is not None:
            drawn[attribute] = kind
    return drawn


def draw_labelled_clip(caption: Caption, oddities: dict[str, str], times: Sequence[int], seed: str) -> LabelledClip:
    """Draws the clip of a full caption with these oddities, at these frames."""
    generator = random.Random(seed)
    noise = torch.Generator().manual_seed(generator.getrandbits(48))
    kinds = {attribute: oddities.get(attribute) for attribute in ODDITIES}
    num_frames = max(times) + 1
    path = _path(caption.motion, kinds["motion"], num_frames, generator, noise)[list(times)]
    coverage = _coverage(caption, kinds["shape"], path, times, generator, noise)
    background = _background(caption, kinds["background"], generator)
    color = _color(caption, kinds["color"], background, generator)
    other = generator.choice([value for name, value in COLORS.items() if name != caption.color])
    other_color = torch.tensor(other) / 255
    if kinds["color"] == "flickering":
        color = torch.where(_switching(times, generator)[:, None] > 0, color, other_color)
    color = color.expand(len(times), 3)
    parts = [(coverage, color)]
    if kinds["shape"] == "two objects":
        second = shape_coverage(generator.choice(SHAPES), path + FRAME_PIXELS / 2, generator.uniform(13, 15))
        same_color = generator.random() < 0.5
        parts.append((second, color if same_color else other_color.expand_as(color)))
    visible = _visible(times, generator) if kinds["presence"] else torch.ones(len(times))
    frames = background[:, None, None].expand(len(times), 3, FRAME_PIXELS, FRAME_PIXELS)
    for cover, own in parts:
        frames = frames + (own[:, :, None, None] - frames) * (cover * visible[:, None, None])[:, None]
    unseen = {attribute: None for attribute in oddities if attribute != "presence"}
    if kinds["presence"]:
        unseen |= {"shape": None, "color": None, "motion": None}
    if len(parts) == 2 and not same_color:
        unseen["color"] = None
    return LabelledClip((255 * frames).round().to(torch.uint8), replace(caption, **unseen))


def reconstruct(vae: AutoencoderKLWan, clip: LabelledClip, oddities: dict[str, str]) -> torch.Tensor:
    """The clip's frames (F, 3, H, W) in [0, 1] as the VAE reconstructs them.

    A colour without a name stays as it was drawn: the VAE has seen the named ones only and turns it into one of them,
    and the clip would no longer show its truth.
    """
    if WITHOUT_A_NAME in oddities.values():
        return clip.frames / 255
    mean, std = latent_statistics(vae)
    return decode_latents(vae, (encode_frames(vae, clip.frames[None]) - mean) / std)[0].cpu()


def _path(
    motion: str, kind: str | None, num_frames: int, generator: random.Random, noise: torch.Generator
) -> torch.Tensor:
    """Centres (F, 2) of a named motion or of another path."""
    usual = draw_path(motion, num_frames, generator)
    start = usual[:1]
    if kind is None:
        path = start + _loosened(usual - start, motion, generator)
        return path + generator.uniform(0, JITTER_PIXELS) * _smooth_noise(num_frames, noise)
    if kind == "still":
        return start + generator.uniform(0, JITTER_PIXELS) * _smooth_noise(num_frames, noise)
    if kind == "jumping":
        return FRAME_PIXELS * _held(num_frames, (3, 8), generator, noise)
    if kind == "wandering":
        angle = 2 * math.pi * _held(num_frames, (3, 6), generator, noise)[:, :1]
        return start + (generator.uniform(0.75, 1.15) * torch.cat([angle.cos(), angle.sin()], dim=1)).cumsum(dim=0)
    if kind == "between directions":
        angle = _other_direction(generator)
        speed = generator.uniform(0.75, 1.15)
        steps = torch.arange(num_frames, dtype=torch.float32)[:, None]
        return start + speed * steps * torch.tensor([math.cos(angle), math.sin(angle)])
    if kind in ("crawling", "racing"):
        speed = generator.uniform(0.05, 0.22) if kind == "crawling" else generator.uniform(2.2, 3.8)
        return start + speed * (usual - start)
    other = draw_path(generator.choice([name for name in MOTIONS if name != motion]), num_frames + 1, generator)
    velocity = draw_path(motion, num_frames + 1, generator).diff(dim=0)
    turned = -velocity if generator.random() < 0.5 else other.diff(dim=0)
    first = _switching(range(num_frames), generator, periods=(12, 16))[:, None] > 0
    return start + torch.where(first, velocity, turned).cumsum(dim=0)


def _loosened(steps: torch.Tensor, motion: str, generator: random.Random) -> torch.Tensor:
    """A motion (F, 2) somewhat faster or slower, tilted, or circling the other way: all within its name."""
    steps = generator.uniform(0.85, 1.2) * steps
    if motion == "in circles":
        return steps * torch.tensor([1.0, generator.choice([-1.0, 1.0])])
    angle = generator.uniform(-TILT, TILT)
    turn = torch.tensor([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
    return steps @ turn


def _coverage(
    caption: Caption,
    kind: str | None,
    path: torch.Tensor,
    times: Sequence[int],
    generator: random.Random,
    noise: torch.Generator,
) -> torch.Tensor:
    """Share of each pixel that is object, (F, H, W)."""
    if kind is None and generator.random() < 0.25:
        kind = "wobbly"
    if kind in OUTLINES:
        return moved_along(path, OUTLINES[kind](caption, noise))
    radius = generator.uniform(13, 15)
    coverage = shape_coverage(caption.shape, path, radius)
    if kind == "flickering":
        other = generator.choice([shape for shape in SHAPES if shape != caption.shape])
        first = _switching(times, generator)[:, None, None] > 0
        return torch.where(first, coverage, shape_coverage(other, path, radius))
    return coverage


def _background(caption: Caption, kind: str | None, generator: random.Random) -> torch.Tensor:
    """The background's colour (3,) in [0, 1]."""
    if kind == WITHOUT_A_NAME:
        return _other_color(BACKGROUNDS, torch.tensor(COLORS[caption.color]) / 255, generator)
    return torch.tensor(BACKGROUNDS[caption.background]) / 255 + _shade(generator)


def _color(caption: Caption, kind: str | None, background: torch.Tensor, generator: random.Random) -> torch.Tensor:
    """The object's colour (3,) in [0, 1]."""
    named = torch.tensor(COLORS[caption.color]) / 255 + _shade(generator)
    return _other_color(COLORS, background, generator) if kind == WITHOUT_A_NAME else named


def _shade(generator: random.Random) -> torch.Tensor:
    """A difference (3,) too small to change a colour's name."""
    return torch.tensor([generator.uniform(-0.05, 0.05) for _ in range(3)])


def _other_color(
    named: dict[str, tuple[int, int, int]], beside: torch.Tensor, generator: random.Random
) -> torch.Tensor:
    """A colour (3,) without a name that stands out against its neighbour: any, a grey, a mixture of two named ones."""
    table = torch.tensor(list(named.values())) / 255
    while True:
        share = generator.uniform(0.35, 0.65)
        first, second = generator.sample(range(len(table)), 2)
        color = generator.choice(
            [
                torch.tensor([generator.random() for _ in range(3)]),
                torch.full((3,), generator.random()),
                share * table[first] + (1 - share) * table[second],
            ]
        )
        if (table - color).norm(dim=1).min() > OTHER_COLOR and (color - beside).norm() > CONTRAST:
            return color


def _other_direction(generator: random.Random) -> float:
    """An angle that is well away from every named direction."""
    named = [math.atan2(y, x) for x, y in DIRECTIONS.values()]
    while True:
        angle = generator.uniform(-math.pi, math.pi)
        if all(abs(math.remainder(angle - other, 2 * math.pi)) > OTHER_DIRECTION for other in named):
            return angle


def _visible(times: Sequence[int], generator: random.Random) -> torch.Tensor:
    """Visible share of the object (F,): 0 over much of every window of 33 frames."""
    time = torch.tensor(times, dtype=torch.float32)
    fate = generator.choice(["leaves", "comes", "never"])
    if fate == "never":
        return torch.zeros(len(time))
    if fate == "comes":
        time = time.max() - time
    return ((generator.uniform(10, 20) - time) / 6).clamp(0, 1)


def _switching(times: Sequence[int], generator: random.Random, periods: tuple[int, int] = (4, 16)) -> torch.Tensor:
    """Alternating 1 and 0 (F,), for equally many frames."""
    period = generator.randint(*periods)
    phase = generator.randrange(2 * period)
    return ((torch.tensor(times) + phase) // period % 2).float()


def _held(num_frames: int, lengths: tuple[int, int], generator: random.Random, noise: torch.Generator) -> torch.Tensor:
    """Uniform values (F, 2) that change every few frames."""
    values = torch.rand(num_frames, 2, generator=noise)
    return values.repeat_interleave(generator.randint(*lengths), dim=0)[:num_frames]


def _smooth_noise(num_frames: int, noise: torch.Generator) -> torch.Tensor:
    """Standard normal values (F, 2) at every fourth frame, as the latents are, with lines in between."""
    knots = torch.randn(1, 2, math.ceil(num_frames / 4) + 1, generator=noise)
    return functional.interpolate(knots, scale_factor=4, mode="linear")[0, :, :num_frames].T
