"""The demo's world: one shape of one colour that moves forever over a plain background, and the captions for it.

Every motion is perpetual, since videos are streamed for as many chunks as asked: straight motions leave at one border
and come back at the other, circles close. Frames are 64x64 at 16 per second.

Axes: N clips, F frames, H height, W width; coordinates are pixels, x to the right, y down.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

FPS = 16
FRAME_PIXELS = 64
SHAPES = ("circle", "triangle", "cross")
MOTIONS = ("left", "right", "up", "down", "in circles", "diagonally")
COLORS = {
    "red": (220, 40, 40),
    "green": (40, 180, 70),
    "blue": (50, 90, 230),
    "yellow": (240, 210, 50),
}
BACKGROUNDS = {"black": (20, 20, 20), "white": (230, 230, 230)}
ATTRIBUTES = ("color", "background", "motion", "shape")
VALUES = {"color": tuple(COLORS), "background": tuple(BACKGROUNDS), "motion": MOTIONS, "shape": SHAPES}

NUM_HELD_OUT = 48
EDGE_PIXELS = 3.0  # over which a shape fades into the background, so that latents need not hold the finest detail
ORBIT_RADIUS = 12.5  # about the middle of the frame, so that a place on it tells the direction
DIRECTIONS = {
    "left": (-1.0, 0.0),
    "right": (1.0, 0.0),
    "up": (0.0, -1.0),
    "down": (0.0, 1.0),
    "diagonally": (math.sqrt(0.5), math.sqrt(0.5)),
}

# Other words that a prompt may use; longer phrases are looked for first.
MOTION_WORDS = {
    "in circles": "in circles",
    "in a circle": "in circles",
    "around in circles": "in circles",
    "circling": "in circles",
    "orbiting": "in circles",
    "diagonally": "diagonally",
    "diagonal": "diagonally",
    "left": "left",
    "leftwards": "left",
    "right": "right",
    "rightwards": "right",
    "up": "up",
    "upwards": "up",
    "down": "down",
    "downwards": "down",
}
SHAPE_WORDS = {"circle": "circle", "disc": "circle", "ball": "circle", "triangle": "triangle", "cross": "cross"}
SHAPE_WORDS["plus"] = "cross"
COLOR_WORDS = {name: name for name in (*COLORS, *BACKGROUNDS)}
JOINING_WORDS = frozenset(
    "a an the and on in of over with is are it its that which to from at against before "
    "moving moves move going goes drifting drifts shape background ground backdrop".split()
)


@dataclass(frozen=True)
class Caption:
    """The attributes of a clip; None for those that are left open."""

    shape: str | None = None
    color: str | None = None
    background: str | None = None
    motion: str | None = None

    @property
    def text(self) -> str:
        """The one wording that the demo model is trained on."""
        words = ["a", self.color or "", self.shape or "shape"]
        if self.motion is not None:
            words.append(f"moving {self.motion}")
        if self.background is not None:
            words.append(f"on a {self.background} background")
        return " ".join(word for word in words if word)


class Sight:
    """The attributes that a verdict sees in a video; a subclass gives the answers."""

    def answer(self, attribute: str) -> str | None:
        """The value that was seen; None for a value without a name."""
        raise NotImplementedError

    def follows(self, caption: Caption, attribute: str) -> bool:
        """Tells whether this attribute is as the caption says; one that the caption leaves open is always followed."""
        wanted = getattr(caption, attribute)
        return wanted is None or self.answer(attribute) == wanted


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip as it was drawn, with what the caption leaves open."""

    frames: torch.Tensor  # (F, 3, H, W) uint8
    centers: torch.Tensor  # (F, 2) x and y in pixels; straight motions go on past the border
    radius: float  # scale of the shape, pixels
    coverage: torch.Tensor  # (F, H, W) in [0, 1], how much of each pixel is shape


def parse_caption(text: str) -> Caption:
    """Reads the attributes that a prompt names, in any order; the colour before "background" is the background."""
    rest = " ".join(re.findall(r"[a-z]+", text.lower()))
    motion, rest = _take_phrase(rest, MOTION_WORDS)
    colors = "|".join(COLOR_WORDS)
    background = re.search(rf"\b({colors})\s+(?:back)?ground\b|\b(?:back)?ground\s+(?:is\s+)?({colors})\b", rest)
    if background is not None:
        rest = rest[: background.start()] + " " + rest[background.end() :]
    shape, rest = _take_phrase(rest, SHAPE_WORDS)
    color, rest = _take_phrase(rest, COLOR_WORDS)
    found = None if background is None else COLOR_WORDS[background.group(1) or background.group(2)]
    return Caption(
        shape=shape,
        color=color if color in COLORS else None,
        background=found if found in BACKGROUNDS else None,
        motion=motion,
    )


def unread_words(text: str) -> list[str]:
    """The words of a prompt that change nothing: unknown ones, and colours where they are not known."""
    caption, unread = parse_caption(text), {}
    phrases = {*MOTION_WORDS, *SHAPE_WORDS, *COLOR_WORDS}
    known = JOINING_WORDS | {word for phrase in phrases for word in phrase.split()}
    for word in re.findall(r"[^\W_]+(?:['’-][^\W_]+)*", text.lower()):
        is_used = COLOR_WORDS.get(word) in (None, caption.color, caption.background)
        if word not in known or not is_used:
            unread[word] = None
    return list(unread)


def all_captions() -> list[Caption]:
    """Every full caption."""
    return [
        Caption(shape=shape, color=color, background=background, motion=motion)
        for shape in SHAPES
        for color in COLORS
        for background in BACKGROUNDS
        for motion in MOTIONS
    ]


def held_out_captions(num_captions: int = NUM_HELD_OUT) -> list[Caption]:
    """The first of the combinations that training never sees, the same list for everybody."""
    if not 1 <= num_captions <= NUM_HELD_OUT:
        raise ValueError(f"`num_captions` is {num_captions}; 1 to {NUM_HELD_OUT} captions are held out")
    return _shuffled_captions()[:num_captions]


def train_captions() -> list[Caption]:
    """The combinations that are not held out."""
    return _shuffled_captions()[NUM_HELD_OUT:]


def drop_attributes(caption: Caption, *, keep_probability: float, generator: random.Random) -> Caption:
    """The caption with each attribute left unsaid with probability `1 - keep_probability`."""
    unsaid = {name: None for name in ATTRIBUTES if generator.random() > keep_probability}
    return replace(caption, **unsaid)


def render_clip(caption: Caption, num_frames: int, seed: int = 0) -> torch.Tensor:
    """A clip (F, 3, H, W) uint8 of the caption; the seed decides place, speed and what the caption leaves open."""
    return draw_clip(caption, num_frames, seed).frames


def draw_clip(caption: Caption, num_frames: int, seed: int = 0) -> Clip:
    """`render_clip` with the path that was drawn."""
    return draw_clips([caption], num_frames, seed)[0]


def draw_clips(captions: Sequence[Caption], num_frames: int, seed: int = 0) -> list[Clip]:
    """One clip per caption, drawn in one go; clip i of a seed depends on its caption and place in the list alone."""
    generators = [random.Random(f"{seed}/{index}") for index in range(len(captions))]
    filled = [_fill(caption, generator) for caption, generator in zip(captions, generators, strict=True)]
    centers = torch.stack([draw_path(c.motion, num_frames, g) for c, g in zip(filled, generators, strict=True)])
    radii = torch.tensor([generator.uniform(13.5, 14.5) for generator in generators])
    coverage = torch.stack(
        [shape_coverage(c.shape, path, float(r)) for c, path, r in zip(filled, centers, radii, strict=True)]
    )  # (N, F, H, W)
    color = torch.tensor([COLORS[c.color] for c in filled], dtype=torch.float32)[:, None, :, None, None]
    background = torch.tensor([BACKGROUNDS[c.background] for c in filled], dtype=torch.float32)
    background = background[:, None, :, None, None]
    frames = (background + (color - background) * coverage[:, :, None]).round().to(torch.uint8)
    return [Clip(frames[i], centers[i], float(radii[i]), coverage[i]) for i in range(len(captions))]


def shape_coverage(shape: str, centers: torch.Tensor, radius: float) -> torch.Tensor:
    """Share of each pixel that the shape covers, with soft edges, on a canvas whose borders are joined.

    The shapes differ in size too: at the latents' resolution that is most of what tells a circle from a triangle.

    centers: (F, 2)
    Returns (F, H, W) in [0, 1].
    """
    pixels = torch.arange(FRAME_PIXELS, dtype=torch.float32, device=centers.device) + 0.5
    half = FRAME_PIXELS / 2
    x = (pixels - centers[:, :1] + half).remainder(FRAME_PIXELS) - half  # (F, W)
    y = (pixels - centers[:, 1:] + half).remainder(FRAME_PIXELS) - half  # (F, H)
    x, y = x[:, None, :], y[:, :, None]
    if shape == "circle":
        distance = (x.square() + y.square()).sqrt() - radius * 0.85
    elif shape == "triangle":
        inner = radius * 0.82  # of the inscribed circle; the centre is the centroid
        distance = torch.maximum(y - inner, 0.866 * x.abs() - 0.5 * y - inner)
    elif shape == "cross":
        arm, half_width = radius * 1.3, radius * 0.36
        horizontal = torch.maximum(x.abs() - arm, y.abs() - half_width)
        vertical = torch.maximum(y.abs() - arm, x.abs() - half_width)
        distance = torch.minimum(horizontal, vertical)
    else:
        raise ValueError(f"`shape` is {shape!r}; it must be one of {SHAPES}")
    return (0.5 - distance / EDGE_PIXELS).clamp(0, 1)


def _shuffled_captions() -> list[Caption]:
    captions = all_captions()
    random.Random(20260504).shuffle(captions)
    return captions


def _fill(caption: Caption, generator: random.Random) -> Caption:
    """The full caption; what was left open is drawn at random."""
    return Caption(
        shape=caption.shape or generator.choice(SHAPES),
        color=caption.color or generator.choice(list(COLORS)),
        background=caption.background or generator.choice(list(BACKGROUNDS)),
        motion=caption.motion or generator.choice(MOTIONS),
    )


def draw_path(motion: str, num_frames: int, generator: random.Random) -> torch.Tensor:
    """Centres (F, 2) along the motion."""
    time = torch.arange(num_frames, dtype=torch.float32)
    middle = FRAME_PIXELS / 2
    if motion in DIRECTIONS:
        speed = generator.uniform(0.75, 1.15)
        across = FRAME_PIXELS / 2 if motion == "diagonally" else 10
        start = [generator.uniform(0, FRAME_PIXELS), generator.uniform(middle - across, middle + across)]
        if motion in ("up", "down"):
            start.reverse()
        return torch.tensor(start) + speed * time[:, None] * torch.tensor(DIRECTIONS[motion])
    if motion == "in circles":
        angle = generator.uniform(0, 2 * math.pi) + generator.uniform(0.95, 1.2) / ORBIT_RADIUS * time
        return middle + ORBIT_RADIUS * torch.stack([angle.cos(), angle.sin()], dim=1)
    raise ValueError(f"`motion` is {motion!r}; it must be one of {MOTIONS}")


def _take_phrase(text: str, phrases: dict[str, str]) -> tuple[str | None, str]:
    """The meaning of the first phrase found, longest first, and the text without it."""
    for phrase in sorted(phrases, key=len, reverse=True):
        match = re.search(rf"\b{phrase}\b", text)
        if match is not None:
            return phrases[phrase], text[: match.start()] + " " + text[match.end() :]
    return None, text
