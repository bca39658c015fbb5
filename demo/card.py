"""The human-readable files beside a trained checkpoint: its card, its loss curves, its contact sheet.

Every number in the card comes from `measurements.json`, which training and scoring write; what was not measured is not
in the card.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from ..checkpoints.cards import pipeline_card
from ..evaluation.pictures import load_pyplot
from ..search.files import new_file
from .clips import BACKGROUNDS, COLORS, MOTIONS, NUM_HELD_OUT, SHAPES, Caption, train_captions

PICTURES = ("contact_sheet.png", "loss_curves.png")
SCORE_TITLES = {
    "held_out": "81 frames",
    "long_start": "20 chunks, first 45 frames",
    "long_end": "20 chunks, last 45 frames",
}


def add_measurements(folder: Path, measurements: dict) -> None:
    """Merges into the folder's `measurements.json`, then writes its card anew.

    Raises:
        FileExistsError: as `check_folder`.
    """
    check_folder(folder)
    known = {**_known_measurements(folder), **measurements}
    texts = {"measurements.json": json.dumps(known, indent=2) + "\n", "README.md": model_card(known)}
    for name, text in texts.items():
        with new_file(folder / name, replace=True) as file:
            file.write_text(text)


def check_folder(folder: Path) -> None:
    """Checks that a checkpoint's card and pictures may be written into a folder.

    Raises:
        FileExistsError: a card or picture in the folder is not that of its measurements.
    """
    card, known = folder / "README.md", _known_measurements(folder)
    there = [name for name in (card.name, "measurements.json", *PICTURES) if os.path.lexists(folder / name)]
    is_ours = known and card.is_file() and card.read_text() == model_card(known)
    if there and not is_ours:
        raise FileExistsError(
            f"{folder} has {', '.join(there)}, which are not of a training, or were changed. Name another folder, or "
            "move them."
        )


def _known_measurements(folder: Path) -> dict:
    path = folder / "measurements.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def model_card(measurements: dict) -> str:
    """The card in Markdown."""
    sections = [_header(), _recipe(measurements)]
    if "scores" in measurements:
        sections.append(_scores(measurements["scores"]))
    sections.append("![samples](contact_sheet.png)\n\n![losses](loss_curves.png)\n")
    return str(pipeline_card("\n".join(sections), license="apache-2.0", tags=["stream-t1"]))


def draw_loss_curves(lines: Sequence[dict], path: Path) -> None:
    """Draws the training log: VAE fidelity, transformer losses, caption gaps."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(1, 3, figsize=(15, 4))
    vae = [line for line in lines if line["stage"] == "vae"]
    transformer = [line for line in lines if line["stage"] == "transformer"]
    axes[0].plot([line["step"] for line in vae], [line["psnr"] for line in vae])
    axes[0].set(title="VAE", xlabel="step", ylabel="training PSNR (dB)")
    for name, label in (("loss", "whole clips"), ("first_loss", "first chunks")):
        drawn = [line for line in transformer if name in line]
        axes[1].plot([line["step"] for line in drawn], [line[name] for line in drawn], label=label)
    axes[1].set(title="Transformer", xlabel="step", ylabel="velocity error")
    axes[1].legend()
    for name in ("gap_color", "gap_background", "gap_motion", "gap_motion_later", "gap_shape"):
        drawn = [line for line in transformer if name in line]
        axes[2].plot([line["step"] for line in drawn], [line[name] for line in drawn], label=name.removeprefix("gap_"))
    axes[2].set(title="Loss with a wrong word minus the right one", xlabel="step", yscale="symlog")
    axes[2].set_yscale("symlog", linthresh=1e-3)
    axes[2].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _header() -> str:
    example = Caption(shape="circle", color="red", background="white", motion="left").text
    return f"""# Stream-T1 demo model

A toy text-to-video model of stock classes (`AutoencoderKLWan`, `WanTransformer3DModel`, `UMT5EncoderModel`) that
streams 64x64 videos of one moving shape at 16 frames a second, chunk by chunk of three latent frames in four steps.
It exists so that the whole of Stream-T1 can be run, tested and explained on a laptop. It knows nothing but captions
such as "{example}":

- shapes: {", ".join(SHAPES)}
- colours: {", ".join(COLORS)}
- backgrounds: {", ".join(BACKGROUNDS)}
- motions: {", ".join(MOTIONS)}; they have no end, straight ones come back at the opposite border

Normal length is 81 frames (7 chunks); position tables end at 1024 latent frames.
"""


def _recipe(measurements: dict) -> str:
    lines = [
        "## How it was made\n",
        "Trained from nothing on clips that `stream_t1.demo.clips` draws; no other data. "
        f"{len(train_captions())} captions were trained on, {NUM_HELD_OUT} combinations were held out. Repeat it with "
        "`python -m stream_t1.demo.train --output FOLDER`; everything measured is in `measurements.json`.\n",
    ]
    if "settings" in measurements:
        settings, parameters = measurements["settings"], measurements["parameters"]
        minutes = {stage: seconds / 60 for stage, seconds in measurements["training_seconds"].items()}
        lines += [
            "| | VAE | transformer and text encoder |",
            "|---|---|---|",
            f"| parameters | {parameters['vae']:,} | {parameters['transformer']:,} + {parameters['text_encoder']:,} |",
            f"| steps | {settings['vae']['num_steps']:,} | {settings['transformer']['num_steps']:,} |",
            f"| minutes | {minutes['vae']:.0f} | {minutes['transformer']:.0f} |",
            "",
            f"Seed {measurements['seed']}, {settings['num_clips']:,} clips of 81 frames and "
            f"{settings['num_first_chunks']:,} first chunks for the transformer, on "
            f"{measurements['machine']}. Weights: {measurements['weights_megabytes']:.1f} MB in float32.\n",
        ]
    if "notes" in measurements:
        lines += [*(f"- {note}" for note in measurements["notes"]), ""]
    if "vae" in measurements:
        vae = measurements["vae"]
        lines.append(
            f"VAE on {vae['videos']} held-out clips: PSNR {vae['psnr']:.1f} dB over 81 frames, "
            f"{vae['psnr_last_frame']:.1f} dB on the last. In the reconstructions the checker finds "
            f"{_percents(vae)}, all four {vae['all_attributes']:.0%}.\n"
        )
    return "\n".join(lines)


def _scores(scores: dict) -> str:
    lines = [
        "## What its videos show\n",
        "Held-out captions, one plain sample each (no search), judged from pixels by `stream_t1.demo.checker`.\n",
        "| | videos | colour | background | motion | shape | all four | largest jump (px) | jitter (px) |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, title in SCORE_TITLES.items():
        if name in scores:
            row = scores[name]
            shares = ("color", "background", "motion", "shape", "all_attributes")
            cells = [str(row["videos"]), *(f"{row[share]:.0%}" for share in shares)]
            cells += [f"{row['largest_jump']:.1f}", f"{row['jitter']:.2f}"]
            lines.append(f"| {title} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percents(scores: dict) -> str:
    names = {"color": "the colour", "background": "the background", "motion": "the motion", "shape": "the shape"}
    return ", ".join(f"{label} {scores[name]:.0%}" for name, label in names.items())
