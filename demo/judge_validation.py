"""Validation of the judge: its answers on fresh clips whose content is known, never seen in its training.

These are the sets of the checker's validation, captions that are not held out, a mixture as in training for the
calibration of the judge's probabilities, and every oddity of its training by itself. All but the first go through the
VAE, except colours without a name.

`python -m stream_t1.demo.judge_validation` measures the shipped judge again, on samples labelled by eye too.
"""

import argparse
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from ..search.files import new_file
from . import CHECKPOINT
from .checker_validation import LABELS, NUM_FRAMES, count_sights, generated_confusion, measures, validate
from .clips import VALUES, Caption, held_out_captions, train_captions
from .judge import JUDGE, Judge, Reading, load_judge, targets_of
from .judge_clips import ODDITIES, draw_labelled_clip, draw_oddities, reconstruct
from .latents import repeat_captions


@dataclass(frozen=True)
class JudgeValidation:
    """Clips that the judge is measured on."""

    num_clips: int = 96  # of every set
    num_odd_clips: int = 16  # of every oddity; 0 leaves these figures out
    seed: int = 6_000_000  # that of training is 5,000,000


def validate_judge(judge: Judge, vae: AutoencoderKLWan, settings: JudgeValidation) -> dict[str, dict]:
    """Confusion matrices of every set, of every oddity, and calibration."""
    held_out = repeat_captions(held_out_captions(), settings.num_clips, settings.seed)
    sets = validate(vae, held_out, settings.seed, judge.read)
    others = repeat_captions(train_captions(), settings.num_clips, settings.seed)
    sets["captions not held out"] = measures(
        count_sights(*_read(judge, vae, others, [{}] * len(others), settings.seed + 1))
    )
    generator = random.Random(settings.seed)
    mixed = [draw_oddities(generator) for _ in held_out]
    readings, truths = _read(judge, vae, held_out, mixed, settings.seed + 2)
    sets["as in training"] = measures(count_sights(readings, truths))
    odd = held_out[: settings.num_odd_clips]
    return {
        "validation": asdict(settings) | {"num_frames": NUM_FRAMES},
        "sets": sets,
        "oddities": {
            f"{attribute}: {kind}": measures(
                count_sights(*_read(judge, vae, odd, [{attribute: kind}] * len(odd), settings.seed + 3))
            )["balanced_accuracy"]
            for attribute, shares in ODDITIES.items()
            for kind in shares
            if odd
        },
        "calibration": {name: calibration(readings, truths, name) for name in VALUES},
    }


def calibration(readings: Sequence[Reading], truths: Sequence[Caption], attribute: str) -> dict[str, float]:
    """Mean confidence of the judge in its answers, their accuracy, and the mean surprise, over windows."""
    probabilities = torch.cat([reading.probabilities[attribute] for reading in readings])
    right = [targets_of(truth)[list(VALUES).index(attribute)] for truth in truths]
    windows = [len(reading.probabilities[attribute]) for reading in readings]
    targets = torch.tensor(right).repeat_interleave(torch.tensor(windows))
    sure, answers = probabilities.max(dim=1)
    surprise = -probabilities.gather(1, targets[:, None]).clamp(min=1e-9).log()
    return {
        "mean_probability": sure.mean().item(),
        "accuracy": (answers == targets).float().mean().item(),
        "log_loss": surprise.mean().item(),
    }


def _read(
    judge: Judge, vae: AutoencoderKLWan, captions: Sequence[Caption], oddities: Sequence[dict[str, str]], seed: int
) -> tuple[list[Reading], list[Caption]]:
    """The judge's readings of fresh clips that went through the VAE, and the clips' truths."""
    readings, truths = [], []
    for index, (caption, odd) in enumerate(zip(captions, oddities, strict=True)):
        clip = draw_labelled_clip(caption, odd, range(NUM_FRAMES), f"{seed}/{index}")
        readings.append(judge.read(reconstruct(vae, clip, odd)))
        truths.append(clip.truth)
    return readings, truths


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stream_t1.demo.judge_validation",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--judge", type=Path, default=JUDGE, help="folder of the judge, whose judge.json is renewed")
    parser.add_argument("--folder", type=Path, default=CHECKPOINT, help="checkpoint whose VAE and samples are used")
    options = parser.parse_args(arguments)
    judge = load_judge(options.judge)
    vae = AutoencoderKLWan.from_pretrained(options.folder / "vae")
    measured = validate_judge(judge, vae, JudgeValidation())
    if LABELS.exists():
        matrix = generated_confusion(options.folder, json.loads(LABELS.read_text()), judge.read)
        measured["sets"]["generated"] = measures({"shape": matrix})
    path = options.judge / "judge.json"
    with new_file(path, replace=True) as file:
        file.write_text(json.dumps(json.loads(path.read_text()) | measured, indent=1) + "\n")
    for name, values in measured["sets"].items():
        print(name, {attribute: round(share, 3) for attribute, share in values["balanced_accuracy"].items()})


if __name__ == "__main__":
    main()
