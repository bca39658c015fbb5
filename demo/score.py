"""Scores of a demo checkpoint: how many held-out captions its videos follow, judged by the checker.

`python -m stream_t1.demo.score FOLDER` writes its measurements into FOLDER/measurements.json and rewrites the card.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DiffusionPipeline

from .checker import Verdict, check
from .clips import ATTRIBUTES, MOTIONS, SHAPES, Caption, held_out_captions
from .latents import repeat_captions

NORMAL_FRAMES = 81
LONG_FRAMES = 237  # 20 chunks
WINDOW_FRAMES = 45


@dataclass(frozen=True)
class ScoreSettings:
    """Samples that the scores are made from."""

    num_videos: int = 144
    num_long_captions: int = 24
    batch_videos: int = 10
    seed: int = 0


def sample_videos(
    pipeline: DiffusionPipeline, captions: Sequence[Caption], *, num_frames: int, seed: int, batch_videos: int = 10
) -> torch.Tensor:
    """Makes one plain sample per caption, no search, (videos, F, 3, H, W) in [0, 1]; video i has seed `seed + i`."""
    batches = []
    for start in range(0, len(captions), batch_videos):
        texts = [caption.text for caption in captions[start : start + batch_videos]]
        generators = [torch.Generator().manual_seed(seed + start + i) for i in range(len(texts))]
        output = pipeline(
            prompt=texts,
            num_frames=num_frames,
            num_beams=1,
            num_candidates=1,
            image_reward=False,
            video_reward=False,
            output_type="pt",
            generator=generators,
        )
        batches.append(output.frames.float().cpu())
    return torch.cat(batches)


def summary(videos: torch.Tensor, captions: Sequence[Caption]) -> dict[str, float]:
    """Shares of the videos that follow each attribute and all of them, and steadiness of their paths."""
    verdicts = [check(video) for video in videos]
    return summarize_verdicts(verdicts, captions)


def summarize_verdicts(verdicts: Sequence[Verdict], captions: Sequence[Caption]) -> dict[str, float]:
    """`summary` of verdicts that are there already."""
    pairs = list(zip(verdicts, captions, strict=True))
    follows = {name: [verdict.follows(caption, name) for verdict, caption in pairs] for name in ATTRIBUTES}
    shares = {name: sum(flags) / len(verdicts) for name, flags in follows.items()}
    by_shape = [[v.shape == shape for v, c in pairs if c.shape == shape] for shape in SHAPES]
    recalls = [sum(flags) / len(flags) for flags in by_shape if flags]
    return {
        "videos": len(verdicts),
        **shares,
        "shape_balanced": sum(recalls) / len(recalls),
        "all_attributes": sum(map(all, zip(*follows.values(), strict=True))) / len(verdicts),
        "presence": sum(verdict.presence for verdict in verdicts) / len(verdicts),
        "largest_jump": sum(verdict.largest_jump for verdict in verdicts) / len(verdicts),
        "jitter": sum(verdict.jitter for verdict in verdicts) / len(verdicts),
    }


def captions_of_every_motion(num_captions: int) -> list[Caption]:
    """Held-out captions, one of each motion in turn."""
    held_out = held_out_captions()
    by_motion = [[caption for caption in held_out if caption.motion == motion] for motion in MOTIONS]
    return [caption for turn in zip(*by_motion, strict=False) for caption in turn][:num_captions]


def score_pipeline(pipeline: DiffusionPipeline, settings: ScoreSettings) -> dict[str, dict[str, float]]:
    """Scores held-out captions at the normal length, and the first and last windows of videos of 20 chunks."""
    captions = repeat_captions(held_out_captions(), settings.num_videos, settings.seed)
    videos = sample_videos(
        pipeline, captions, num_frames=NORMAL_FRAMES, seed=settings.seed, batch_videos=settings.batch_videos
    )
    scores = {"held_out": summary(videos, captions)}
    if settings.num_long_captions:
        captions = captions_of_every_motion(settings.num_long_captions)
        videos = sample_videos(
            pipeline, captions, num_frames=LONG_FRAMES, seed=settings.seed, batch_videos=settings.batch_videos
        )
        scores["long_start"] = summary(videos[:, :WINDOW_FRAMES], captions)
        scores["long_end"] = summary(videos[:, -WINDOW_FRAMES:], captions)
    return scores


def main(arguments: Sequence[str] | None = None) -> None:
    defaults = ScoreSettings()
    parser = argparse.ArgumentParser(prog="python -m stream_t1.demo.score", description=__doc__)
    parser.add_argument("folder", type=Path, help="a checkpoint written by stream_t1.demo.train")
    parser.add_argument("--num-videos", type=int, default=defaults.num_videos)
    parser.add_argument("--num-long-captions", type=int, default=defaults.num_long_captions)
    parser.add_argument("--seed", type=int, default=defaults.seed)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args(arguments)

    from ..pipeline_stream_t1 import StreamT1Pipeline
    from .card import add_measurements, check_folder

    check_folder(options.folder)
    pipeline = StreamT1Pipeline.from_pretrained(options.folder).to(options.device)
    pipeline.set_progress_bar_config(disable=True)
    settings = ScoreSettings(
        num_videos=options.num_videos, num_long_captions=options.num_long_captions, seed=options.seed
    )
    scores = score_pipeline(pipeline, settings)
    add_measurements(options.folder, {"scores": scores})
    for name, values in scores.items():
        print(name, {key: round(value, 3) for key, value in values.items()})


if __name__ == "__main__":
    main()
