"""Validation of the checker: its verdicts on clips whose content is known, as confusion matrices.

`python -m stream_t1.demo.checker_validation` writes `demo/checker_validation.json`. Some clips keep their shape
(clean, blurred, noisy, slightly deformed, reconstructed by the demo's VAE), in others there is a moving object that
is none of the shapes (irregular blobs, shapes bent out of shape, two shapes melted into one, squares, rings, bars,
ellipses): for these the right answer is "neither". For samples of the shipped checkpoint the truth was labelled by eye
and is kept in `demo/generated_labels.json`.

Axes: F frames, H height, W width. Lengths in pixels of a 64-pixel frame.
"""

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from torch.nn import functional

from ..search.files import check_place, new_file
from . import CHECKPOINT
from .checker import check
from .clips import SHAPES, VALUES, Caption, Sight, draw_clips, held_out_captions
from .latents import decode_latents, encode_captions, repeat_captions
from .outlines import bent, blob, clips_of, melted, other_shape, wobbly

NEITHER = "neither"
RESULTS = Path(__file__).parent / "checker_validation.json"
LABELS = Path(__file__).parent / "generated_labels.json"
NUM_FRAMES = 45

Look = Callable[[torch.Tensor], Sight]  # at one video (F, 3, H, W)


@dataclass(frozen=True, eq=False)
class KnownClips:
    """Videos whose content is known."""

    videos: torch.Tensor  # (V, F, 3, H, W) in [0, 1]
    captions: Sequence[Caption]
    has_shape: bool  # False: the object is none of the shapes, whatever the captions say


def known_clips(vae: AutoencoderKLWan, captions: Sequence[Caption], seed: int) -> dict[str, KnownClips]:
    """Draws every set of clips, each with clips of its own."""
    drawn = [torch.stack([clip.frames for clip in draw_clips(captions, NUM_FRAMES, seed + i)]) / 255 for i in range(3)]
    noise = torch.randn(drawn[2].shape, generator=torch.Generator().manual_seed(seed))
    latents = encode_captions(vae, captions, seed + 3, num_frames=NUM_FRAMES)
    with_shape = {
        "clean": drawn[0],
        "blurred": functional.avg_pool2d(drawn[1].flatten(0, 1), 5, 1, 2, count_include_pad=False).view_as(drawn[1]),
        "noisy": (drawn[2] + 0.05 * noise).clamp(0, 1),
        "slightly deformed": clips_of(captions, wobbly, NUM_FRAMES, seed + 4),
        "reconstructed": torch.cat([decode_latents(vae, batch.float()) for batch in latents.split(8)]),
    }
    outlines = {"blobs": blob, "strongly deformed": bent, "melted": melted, "other shapes": other_shape}
    without = {
        name: clips_of(captions, outline, NUM_FRAMES, seed + 5 + i)
        for i, (name, outline) in enumerate(outlines.items())
    }
    known = {name: KnownClips(videos, captions, True) for name, videos in with_shape.items()}
    return known | {name: KnownClips(videos, captions, False) for name, videos in without.items()}


def confusion(clips: KnownClips, look: Look) -> dict[str, dict]:
    """Counts of each verdict for every true value, per attribute."""
    truths = clips.captions if clips.has_shape else [replace(caption, shape=None) for caption in clips.captions]
    return count_sights([look(video) for video in clips.videos], truths)


def count_sights(sights: Sequence[Sight], truths: Sequence[Caption]) -> dict[str, dict]:
    """`confusion` of sights that are there already; a truth that is left open is "neither"."""
    return {
        name: count_answers(
            [getattr(truth, name) or NEITHER for truth in truths],
            [sight.answer(name) or NEITHER for sight in sights],
            (*values, NEITHER),
        )
        for name, values in VALUES.items()
    }


def generated_confusion(folder: Path, labels: dict, look: Look) -> dict[str, dict[str, int]]:
    """Counts of each verdict for every shape that was seen by eye in samples of the checkpoint."""
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
    return count_answers(truths, [look(video).answer("shape") or NEITHER for video in videos], (*SHAPES, NEITHER))


def balanced_accuracy(matrix: dict[str, dict[str, int]]) -> float:
    """Mean over the true values of the share of right verdicts."""
    shares = [answers.get(truth, 0) / sum(answers.values()) for truth, answers in matrix.items()]
    return sum(shares) / len(shares)


def count_answers(truths: Sequence[str], verdicts: Sequence[str], answers: Sequence[str]) -> dict[str, dict[str, int]]:
    """Counts of each of the answers for every truth."""
    pairs = Counter(zip(truths, verdicts, strict=True))
    return {
        truth: {answer: pairs[truth, answer] for answer in answers if pairs[truth, answer]}
        for truth in dict.fromkeys(truths)
    }


def measures(matrices: dict[str, dict]) -> dict[str, dict]:
    """The measures that are kept of one set of clips."""
    return {
        "balanced_accuracy": {attribute: balanced_accuracy(matrix) for attribute, matrix in matrices.items()},
        "confusion": matrices,
    }


def validate(vae: AutoencoderKLWan, captions: Sequence[Caption], seed: int, look: Look) -> dict[str, dict]:
    """Confusion matrices and balanced accuracies of every set of clips."""
    return {name: measures(confusion(clips, look)) for name, clips in known_clips(vae, captions, seed).items()}


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
    check_place(options.output, replace=options.output == RESULTS)
    vae = AutoencoderKLWan.from_pretrained(options.folder / "vae")
    captions = repeat_captions(held_out_captions(), options.num_clips, options.seed)
    results = validate(vae, captions, options.seed, check)
    if LABELS.exists():
        matrix = generated_confusion(options.folder, json.loads(LABELS.read_text()), check)
        results["generated"] = measures({"shape": matrix})
    settings = {"num_clips": options.num_clips, "num_frames": NUM_FRAMES, "seed": options.seed}
    with new_file(options.output, replace=options.output == RESULTS) as file:
        file.write_text(json.dumps({"settings": settings, "sets": results}, indent=1) + "\n")
    for name, values in results.items():
        print(name, {attribute: round(share, 3) for attribute, share in values["balanced_accuracy"].items()})


if __name__ == "__main__":
    main()
