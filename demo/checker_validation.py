"""How far the checker can be trusted: its verdicts on clips whose content is known, as confusion matrices.

`python -m stream_t1.demo.checker_validation` writes `demo/checker_validation.json`. Some clips keep their shape
(clean, blurred, noisy, slightly deformed, reconstructed by the demo's VAE), in others there is a moving object that
is none of the shapes (irregular blobs, shapes bent out of shape, two shapes melted into one, squares, rings, bars,
ellipses): for these the right answer is "neither". For samples of the shipped checkpoint the truth is what was seen in
them by eye, kept in `demo/generated_labels.json`.

Axes: F frames, H height, W width. Lengths in pixels of a 64-pixel frame.
"""

import argparse
import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional

from . import CHECKPOINT
from .checker import check
from .clips import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    EDGE_PIXELS,
    FRAME_PIXELS,
    MOTIONS,
    SHAPES,
    Caption,
    draw_clips,
    held_out_captions,
    shape_coverage,
)
from .latents import decode_latents, encode_captions, repeat_captions

NEITHER = "neither"
RESULTS = Path(__file__).parent / "checker_validation.json"
LABELS = Path(__file__).parent / "generated_labels.json"
NUM_FRAMES = 45
RADIUS = 14.0
VALUES = {"shape": SHAPES, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "motion": MOTIONS}

Outline = Callable[[Caption, torch.Generator], torch.Tensor]  # a still object (H, W) in [0, 1], centred


def blob(caption: Caption, generator: torch.Generator) -> torch.Tensor:
    """An irregular outline: a radius that waves two to five times around, by a fifth on the whole."""
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
    """The caption's shape bent by a smooth field of 1 pixel, which leaves it what it is."""
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


def clips_of(captions: Sequence[Caption], outline: Outline, seed: int) -> torch.Tensor:
    """The captions' clips (V, F, 3, H, W) in [0, 1] with another object in the place of their shape."""
    generator = torch.Generator().manual_seed(seed)
    videos = []
    for clip, caption in zip(draw_clips(captions, NUM_FRAMES, seed), captions, strict=True):
        coverage = _along(clip.centers, outline(caption, generator))[:, None]  # (F, 1, H, W)
        color, background = (
            torch.tensor(values)[:, None, None] / 255
            for values in (COLORS[caption.color], BACKGROUNDS[caption.background])
        )
        videos.append(background + (color - background) * coverage)
    return torch.stack(videos)


def confusion(videos: torch.Tensor, captions: Sequence[Caption], *, has_shape: bool) -> dict[str, dict]:
    """Per attribute: for every true value, how often each verdict was given."""
    verdicts = [check(video) for video in videos]
    matrices = {}
    for name in ATTRIBUTES:
        answers = (*VALUES[name], NEITHER)
        truths = [NEITHER if name == "shape" and not has_shape else getattr(caption, name) for caption in captions]
        matrices[name] = _count(truths, [getattr(verdict, name) or NEITHER for verdict in verdicts], answers)
    return matrices


def generated_confusion(folder: Path, labels: dict) -> dict[str, dict[str, int]]:
    """For every shape seen by eye in samples of the checkpoint, how often each verdict was given."""
    from ..pipeline_stream_t1 import StreamT1Pipeline
    from .score import sample_videos

    weights = (folder / "transformer" / "diffusion_pytorch_model.safetensors").read_bytes()
    if hashlib.sha256(weights).hexdigest() != labels["transformer_sha256"]:
        raise ValueError(
            f"`folder` is {folder}, whose transformer is not the one whose samples were labelled in {LABELS.name}; "
            "look at its samples and write their labels and its hash, or remove the file to go without."
        )
    pipeline = StreamT1Pipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    captions = repeat_captions(held_out_captions(), len(labels["shapes"]), seed=0)
    videos = sample_videos(pipeline, captions, num_frames=labels["num_frames"], seed=labels["seed"])
    truths = [shape or NEITHER for shape in labels["shapes"]]
    return _count(truths, [check(video).shape or NEITHER for video in videos], (*SHAPES, NEITHER))


def balanced_accuracy(matrix: dict[str, dict[str, int]]) -> float:
    """Mean over the true values of the share of right verdicts."""
    shares = [answers.get(truth, 0) / sum(answers.values()) for truth, answers in matrix.items()]
    return sum(shares) / len(shares)


@torch.no_grad()
def validate(vae: AutoencoderKLWan, captions: Sequence[Caption], seed: int) -> dict[str, dict]:
    """Confusion matrices and balanced accuracies of every set of clips, each with clips of its own."""
    drawn = [torch.stack([clip.frames for clip in draw_clips(captions, NUM_FRAMES, seed + i)]) / 255 for i in range(3)]
    noise = torch.randn(drawn[2].shape, generator=torch.Generator().manual_seed(seed))
    latents = encode_captions(vae, captions, seed + 3, num_frames=NUM_FRAMES)
    with_shape = {
        "clean": drawn[0],
        "blurred": functional.avg_pool2d(drawn[1].flatten(0, 1), 5, 1, 2, count_include_pad=False).view_as(drawn[1]),
        "noisy": (drawn[2] + 0.05 * noise).clamp(0, 1),
        "slightly deformed": clips_of(captions, wobbly, seed + 4),
        "reconstructed": torch.cat([decode_latents(vae, batch.float()) for batch in latents.split(8)]),
    }
    outlines = {"blobs": blob, "strongly deformed": bent, "melted": melted, "other shapes": other_shape}
    without = {name: clips_of(captions, outline, seed + 5 + i) for i, (name, outline) in enumerate(outlines.items())}
    matrices = {name: confusion(videos, captions, has_shape=True) for name, videos in with_shape.items()}
    matrices |= {name: confusion(videos, captions, has_shape=False) for name, videos in without.items()}
    return {
        name: {
            "balanced_accuracy": {attribute: balanced_accuracy(matrix) for attribute, matrix in sets.items()},
            "confusion": sets,
        }
        for name, sets in matrices.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stream_t1.demo.checker_validation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, default=CHECKPOINT, help="checkpoint whose VAE is used")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--num-clips", type=int, default=144, help="per set")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    vae = AutoencoderKLWan.from_pretrained(options.folder / "vae")
    captions = repeat_captions(held_out_captions(), options.num_clips, options.seed)
    results = validate(vae, captions, options.seed)
    if LABELS.exists():
        matrix = generated_confusion(options.folder, json.loads(LABELS.read_text()))
        results["generated"] = {
            "balanced_accuracy": {"shape": balanced_accuracy(matrix)},
            "confusion": {"shape": matrix},
        }
    settings = {"num_clips": options.num_clips, "num_frames": NUM_FRAMES, "seed": options.seed}
    options.output.write_text(json.dumps({"settings": settings, "sets": results}, indent=1) + "\n")
    for name, values in results.items():
        print(name, {attribute: round(share, 3) for attribute, share in values["balanced_accuracy"].items()})


def _count(truths: Sequence[str], verdicts: Sequence[str], answers: Sequence[str]) -> dict[str, dict[str, int]]:
    pairs = Counter(zip(truths, verdicts, strict=True))
    return {
        truth: {answer: pairs[truth, answer] for answer in answers if pairs[truth, answer]}
        for truth in dict.fromkeys(truths)
    }


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
    """The picture (H, W) moved at every place by a smooth random field of this root mean square."""
    field = torch.randn(1, 2, 5, 5, generator=generator)  # one node every 16 pixels
    field = functional.interpolate(field, size=(FRAME_PIXELS, FRAME_PIXELS), mode="bicubic", align_corners=True)
    field = field - field.mean(dim=(2, 3), keepdim=True)
    field = field * pixels / field.square().sum(dim=1).mean().sqrt()
    x, y = _centred_grid()
    grid = torch.stack([x + field[0, 0], y + field[0, 1]], dim=-1) / (FRAME_PIXELS / 2)
    return functional.grid_sample(still[None, None], grid[None], align_corners=False)[0, 0]


def _along(centers: torch.Tensor, still: torch.Tensor) -> torch.Tensor:
    """The centred picture (H, W) moved along a path (F, 2) on a canvas whose borders are joined, (F, H, W)."""
    half = FRAME_PIXELS / 2
    pixels = torch.arange(FRAME_PIXELS) + 0.5
    x, y = ((pixels - centers[:, axis, None] + half).remainder(FRAME_PIXELS) - half for axis in (0, 1))
    grid = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1) / half  # (F, H, W, 2)
    return functional.grid_sample(still.expand(len(centers), 1, -1, -1), grid, align_corners=False)[:, 0]


if __name__ == "__main__":
    main()
