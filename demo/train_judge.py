"""Train the judge: `python -m stream_t1.demo.train_judge --output FOLDER`.

Half of every batch are windows of clips that went through the demo's VAE, as every video of the demo does; their
number is limited, since the VAE takes most of the time. The other half is drawn anew at every step, so that outlines,
colours and paths never repeat. All captions are used: each shape of each colour on each background has about two
motions among the held-out captions, and a judge that knew only these would guess the motion that was asked for.
`judge.json` keeps what the judge was trained on and its accuracy on fresh clips.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from safetensors.torch import save_file
from torch.nn import functional

from ..search.files import check_place
from . import CHECKPOINT
from .clips import FRAME_PIXELS, VALUES, all_captions
from .judge import FRAME_STEP, WEIGHTS, WINDOW_FRAMES, WINDOW_STRIDE, Judge, targets_of
from .judge_clips import draw_labelled_clip, draw_oddities, reconstruct
from .judge_validation import JudgeValidation, validate_judge
from .latents import repeat_captions
from .train_vae import MatrixMuon, save_state, warmup_cosine

CLIP_FRAMES = WINDOW_FRAMES + WINDOW_STRIDE  # two windows: one from the start of a video, one from later
LOG_EVERY = 50
FIRST_SEED = 5_000_000  # far from those of every other set of clips


@dataclass(frozen=True)
class JudgeSettings:
    """Length and clips of the judge's training."""

    num_clips: int = 1200  # through the VAE
    num_steps: int = 1800
    batch_windows: int = 32
    matrix_learning_rate: float = 1e-2  # Muon
    learning_rate: float = 1e-2  # AdamW
    label_smoothing: float = 0.02


@dataclass(frozen=True, eq=False)
class Windows:
    """Input of the judge, and the right answers."""

    seen: torch.Tensor  # (B, 9, 3, H, W) uint8
    targets: torch.Tensor  # (B, attributes) indices in the order of VALUES, the number of values for neither


def decoded_windows(vae: AutoencoderKLWan, num_clips: int, seed: int) -> Windows:
    """Draws two windows of every clip, reconstructed by the VAE."""
    generator = random.Random(seed)
    captions = repeat_captions(all_captions(), num_clips, seed)
    seen, targets = [], []
    for index, caption in enumerate(captions):
        oddities = draw_oddities(generator)
        clip = draw_labelled_clip(caption, oddities, range(CLIP_FRAMES), f"{FIRST_SEED + seed}/{index}")
        frames = (255 * reconstruct(vae, clip, oddities)).round().to(torch.uint8)
        windows = frames.unfold(0, WINDOW_FRAMES, WINDOW_STRIDE)[..., ::FRAME_STEP]  # (2, 3, H, W, 9)
        seen.append(windows.movedim(-1, 1))
        targets += [targets_of(clip.truth)] * len(windows)
    return Windows(torch.cat(seen), torch.tensor(targets))


def drawn_windows(num_windows: int, seed: int, step: int) -> Windows:
    """Draws fresh windows, which do not go through the VAE."""
    generator = random.Random(f"{seed}/{step}")
    times = range(0, WINDOW_FRAMES, FRAME_STEP)
    clips = [
        draw_labelled_clip(
            generator.choice(all_captions()),
            draw_oddities(generator),
            times,
            f"{FIRST_SEED + seed}/{step}/{index}",
        )
        for index in range(num_windows)
    ]
    targets = torch.tensor([targets_of(clip.truth) for clip in clips])
    return Windows(torch.stack([clip.frames for clip in clips]), targets)


def disturb(seen: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Augments windows (B, 9, 3, H, W) in [0, 1] in ways that change no answer: place, light, blur, noise."""
    shape = (len(seen), 1, 1, 1, 1)
    shifts = torch.randint(FRAME_PIXELS, (len(seen), 2), generator=generator).tolist()
    seen = torch.stack([window.roll(shift, dims=(2, 3)) for window, shift in zip(seen, shifts, strict=True)])
    padded = functional.pad(seen.flatten(0, 1), (2, 2, 2, 2), mode="circular")
    blurred = functional.avg_pool2d(padded, 5, stride=1).view_as(seen)
    seen = seen.lerp(blurred, (2 * torch.rand(shape, generator=generator) - 1).clamp(min=0))  # half of them
    contrast = 1 + 0.05 * (2 * torch.rand(shape, generator=generator) - 1)
    noise = 0.05 * (2 * torch.rand(shape, generator=generator) - 1).clamp(min=0)
    return ((seen - 0.5) * contrast + 0.5 + noise * torch.randn(seen.shape, generator=generator)).clamp(0, 1)


def train_judge(decoded: Windows, settings: JudgeSettings, seed: int) -> Judge:
    """Trains a judge for `settings.num_steps`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    judge = Judge().train()
    optimizer = MatrixMuon(judge, settings.matrix_learning_rate, settings.learning_rate)
    half = settings.batch_windows // 2
    sums = torch.zeros(len(VALUES))
    for step in range(settings.num_steps):
        picked = torch.randint(len(decoded.seen), (half,), generator=generator)
        drawn = drawn_windows(half, seed, step)
        seen = disturb(torch.cat([decoded.seen[picked], drawn.seen]).float() / 255, generator)
        targets = torch.cat([decoded.targets[picked], drawn.targets])
        losses = [
            functional.cross_entropy(logits, target, label_smoothing=settings.label_smoothing)
            for logits, target in zip(judge.classify(seen).values(), targets.T, strict=True)
        ]
        sum(losses).backward()
        torch.nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step(warmup_cosine(step, settings.num_steps))
        judge.zero_grad(set_to_none=True)
        sums += torch.stack(losses).detach()
        if (step + 1) % LOG_EVERY == 0:
            means = {name: round(value, 3) for name, value in zip(VALUES, (sums / LOG_EVERY).tolist(), strict=True)}
            print("judge", step + 1, means, flush=True)
            sums.zero_()
    return judge.eval()


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stream_t1.demo.train_judge",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the judge and what is known about it")
    parser.add_argument("--state", type=Path, help="folder for the decoded clips (default: OUTPUT-state)")
    parser.add_argument("--vae", type=Path, default=CHECKPOINT / "vae", help="the VAE that clips go through")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--smoke", action="store_true", help="a few steps and clips of everything, to see that it runs"
    )
    options = parser.parse_args(arguments)
    settings = JudgeSettings(num_clips=2, num_steps=2, batch_windows=4) if options.smoke else JudgeSettings()
    validation = JudgeValidation(num_clips=2, num_odd_clips=0) if options.smoke else JudgeValidation()
    options.output.mkdir(parents=True, exist_ok=True)
    for name in (WEIGHTS, "judge.json"):
        check_place(options.output / name)
    state = options.state or options.output.with_name(options.output.name + "-state")
    vae = AutoencoderKLWan.from_pretrained(options.vae)
    vae_sha256 = hashlib.sha256((options.vae / "diffusion_pytorch_model.safetensors").read_bytes()).hexdigest()
    name = hashlib.sha256(f"{vae_sha256} {settings.num_clips} {options.seed}".encode()).hexdigest()[:12]
    cache = state / f"windows-{name}.pt"
    if not cache.exists():
        save_state(asdict(decoded_windows(vae, settings.num_clips, options.seed)), cache)
    judge = train_judge(Windows(**torch.load(cache, weights_only=True)), settings, options.seed)
    save_file(judge.state_dict(), options.output / WEIGHTS)
    trained = {"settings": asdict(settings), "seed": options.seed, "vae_sha256": vae_sha256}
    measured = validate_judge(judge, vae, validation)
    (options.output / "judge.json").write_text(json.dumps({"training": trained, **measured}, indent=1) + "\n")


if __name__ == "__main__":
    main()
