"""Train the demo model: `python -m stream_t1.demo.train --output FOLDER`.

Stages: the VAE, the latents of a fixed set of clips, the transformer with its text encoder, then export and scores.
Every stage keeps its state, and the same command resumes a run that was killed. Lengths are counted in steps, so a
seed gives the same model (up to rounding) on any machine.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan

from ..evaluation.pictures import draw_contact_sheet
from .card import add_measurements, check_folder, draw_loss_curves
from .clips import held_out_captions, train_captions
from .export import export_folder, folder_megabytes
from .latents import decode_latents, encode_captions, measure_latents, repeat_captions
from .probe import probe_first_chunks
from .score import ScoreSettings, sample_videos, score_pipeline, summary
from .teacher_forcing import CHUNK_FRAMES
from .train_transformer import (
    LatentClips,
    TextToVideo,
    TrainingSet,
    TransformerSettings,
    build_text_to_video,
    train_transformer,
)
from .train_vae import VAESettings, save_state, train_vae


@dataclass(frozen=True)
class TrainSettings:
    """Settings of a whole training."""

    vae: VAESettings = field(default_factory=VAESettings)
    transformer: TransformerSettings = field(default_factory=TransformerSettings)
    score: ScoreSettings = field(default_factory=ScoreSettings)
    num_clips: int = 1500
    num_first_chunks: int = 10_000
    num_checked_clips: int = 96  # of held-out captions, on which the VAE and the caption gaps are measured
    heads: int = 3
    num_layers: int = 6


SMOKE = TrainSettings(
    vae=VAESettings(base_dim=4, num_steps=3, batch_clips=2, num_streams=1, pieces_per_stream=2, short_streams=0),
    transformer=TransformerSettings(
        num_steps=3, first_stage_steps=1, first_stage_batch=2, batch_clips=2, extra_first_chunks=2
    ),
    score=ScoreSettings(num_videos=2, num_long_captions=0, batch_videos=2),
    num_clips=4,
    num_first_chunks=4,
    num_checked_clips=2,
    heads=1,
    num_layers=1,
)


class TrainingLog:
    """Means over `every` steps, with the seconds they took, one JSON line each; a resumed stage rewrites its end."""

    def __init__(self, path: Path, stage: str, every: int) -> None:
        self.path, self.stage, self.every = path, stage, every
        self.sums: dict[str, list[float]] = {}
        self.last_time = time.monotonic()

    def __call__(self, step: int, measures: dict[str, float]) -> None:
        for name, value in measures.items():
            self.sums.setdefault(name, []).append(value)
        if (step + 1) % self.every:
            return
        now = time.monotonic()
        means = {name: sum(values) / len(values) for name, values in self.sums.items()}
        line = {"stage": self.stage, "step": step + 1, "seconds": now - self.last_time, **means}
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(
            self.stage,
            step + 1,
            {name: round(value, 4) for name, value in line.items() if name != "stage"},
            flush=True,
        )
        self.sums, self.last_time = {}, now


def read_log(path: Path) -> list[dict]:
    """Reads the lines of the log in order of stage and step; for steps that were run twice the later line."""
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    latest = {(line["stage"], line["step"]): line for line in lines}
    return [latest[key] for key in sorted(latest, key=lambda key: (key[0] != "vae", key[1]))]


def train(output: Path, state: Path, settings: TrainSettings, *, device: torch.device, seed: int) -> None:
    """Runs all stages; `state` keeps what is needed to resume after a kill, `output` gets the checkpoint."""
    check_folder(output)
    state.mkdir(parents=True, exist_ok=True)
    output.mkdir(parents=True, exist_ok=True)
    log_path = state / "log.jsonl"
    every = max(1, min(20, settings.transformer.num_steps // 3))
    vae = train_vae(
        settings.vae, device=device, seed=seed, state_path=state / "vae.pt", log=TrainingLog(log_path, "vae", every)
    )
    data = _training_set(vae, state / "latents.pt", settings, seed)
    held_out = repeat_captions(held_out_captions(), settings.num_checked_clips, seed)
    checked = LatentClips(encode_captions(vae, held_out, seed + 1), held_out)
    torch.manual_seed(seed)
    model = train_transformer(
        data,
        checked,
        settings.transformer,
        model=build_text_to_video(heads=settings.heads, num_layers=settings.num_layers),
        device=device,
        seed=seed,
        state_path=state / "transformer.pt",
        log=TrainingLog(log_path, "transformer", every),
        probe=lambda model: probe_first_chunks(model, vae, held_out, seed),
    )
    vae_scores = score_vae(vae, checked, seed + 1)
    export_folder(model.cpu(), vae.cpu(), output)
    record(output, log_path, settings, model, vae, device=device, seed=seed, vae_scores=vae_scores)


def record(
    output: Path,
    log_path: Path,
    settings: TrainSettings,
    model: TextToVideo,
    vae: AutoencoderKLWan,
    *,
    device: torch.device,
    seed: int,
    vae_scores: dict[str, float],
) -> None:
    """Writes loss curves, contact sheet, measurements and card beside the exported checkpoint."""
    from ..pipeline_stream_t1 import StreamT1Pipeline

    lines = read_log(log_path)
    pipeline = StreamT1Pipeline.from_pretrained(output).to(device)
    pipeline.set_progress_bar_config(disable=True)
    scores = score_pipeline(pipeline, settings.score)
    captions = held_out_captions(min(12, settings.score.num_videos))
    videos = sample_videos(pipeline, captions, num_frames=81, seed=0)
    seconds = {
        stage: sum(line["seconds"] for line in lines if line["stage"] == stage) for stage in ("vae", "transformer")
    }
    parts = {"vae": vae, "transformer": model.transformer, "text_encoder": model.text_encoder}
    measurements = {
        "seed": seed,
        "settings": asdict(settings),
        "parameters": {name: sum(weight.numel() for weight in part.parameters()) for name, part in parts.items()},
        "weights_megabytes": folder_megabytes(output),
        "training_seconds": seconds,
        "machine": machine(device),
        "vae": vae_scores,
        "scores": scores,
    }
    add_measurements(output, measurements)  # first: a folder with this card may be written to again
    draw_loss_curves(lines, output / "loss_curves.png")
    draw_contact_sheet(videos, [caption.text for caption in captions], output / "contact_sheet.png")


@torch.no_grad()
def score_vae(vae: AutoencoderKLWan, checked: LatentClips, seed: int) -> dict[str, float]:
    """PSNR of held-out clips of 81 frames, whole and at the end, and the checker's shares on the reconstructions."""
    from .clips import draw_clips

    truth = torch.cat(
        [
            torch.stack([clip.frames for clip in draw_clips(checked.captions[i : i + 16], 81, seed + i)])
            for i in range(0, len(checked.captions), 16)
        ]
    )
    decoded = torch.cat([decode_latents(vae, batch.float()).cpu() for batch in checked.latents.split(8)])
    squared = (decoded - truth.float() / 255).square().mean(dim=(2, 3, 4))  # (clips, F)
    psnr = {"psnr": squared.mean(dim=1), "psnr_last_frame": squared[:, -1]}
    values = {name: (-10 * error.clamp(min=1e-10).log10()).mean().item() for name, error in psnr.items()}
    return {**values, **summary(decoded, checked.captions)}


def machine(device: torch.device) -> str:
    """Describes the machine that the training ran on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cores = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    return f"{platform.machine()} CPU, {cores}, PyTorch {torch.__version__}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stream_t1.demo.train",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the checkpoint, its card and pictures")
    parser.add_argument("--state", type=Path, help="folder for the state to resume from (default: OUTPUT-state)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="three steps of everything, to see that it runs")
    options = parser.parse_args(arguments)
    output = options.output
    state = options.state or output.with_name(output.name + "-state")
    settings = SMOKE if options.smoke else TrainSettings()
    train(output, state, settings, device=torch.device(options.device), seed=options.seed)


def _training_set(vae: AutoencoderKLWan, path: Path, settings: TrainSettings, seed: int) -> TrainingSet:
    """The training set, made once; the VAE's config gets the mean and the scale of its latents."""
    every_caption = train_captions()
    every_caption += [caption for caption in every_caption if caption.motion == "in circles"]  # the hardest: twice
    captions = repeat_captions(every_caption, settings.num_clips, seed)
    first_captions = repeat_captions(every_caption, settings.num_first_chunks, seed + 1)
    if not path.exists():
        measure_latents(vae, repeat_captions(train_captions(), min(128, settings.num_clips), seed), seed)
        state = {
            "statistics": {name: getattr(vae.config, name) for name in ("latents_mean", "latents_std")},
            "clips": encode_captions(vae, captions, seed + 100_000),
            "first_chunks": encode_captions(vae, first_captions, seed + 200_000, num_frames=4 * CHUNK_FRAMES - 3),
        }
        save_state(state, path)
    state = torch.load(path, weights_only=True)
    vae.register_to_config(**state["statistics"])
    return TrainingSet(
        clips=LatentClips(state["clips"], captions), first_chunks=LatentClips(state["first_chunks"], first_captions)
    )


if __name__ == "__main__":
    main()
