"""Prompts that change along a video, as a film strip.

    python examples/prompt_change.py [changes.png]

Three seconds of one prompt, then four of another, which has another motion, another colour, or both. A row is a video;
the prompt changes where the line is.
"""

import sys
from pathlib import Path

import torch
from PIL import Image, ImageDraw

from stream_t1 import PromptTimeline
from stream_t1.demo import load_pipeline
from stream_t1.evaluation.pictures import draw_contact_sheet

CHANGES = {
    "motion": ("a red circle moving left on a white background", "a red circle moving up on a white background"),
    "colour": ("a red circle moving left on a white background", "a blue circle moving left on a white background"),
    "both": (
        "a green cross moving down on a black background",
        "a yellow cross moving in circles on a black background",
    ),
}
CHANGE_FRAME = 45
NUM_COLUMNS = 20


def make_video(pipe, prompts: tuple[str, str], num_frames: int, **arguments) -> torch.Tensor:
    """The best video of a search, (F, 3, H, W)."""
    timeline = PromptTimeline({0: prompts[0], CHANGE_FRAME: prompts[1]})
    generator = torch.Generator().manual_seed(0)
    return pipe(timeline, num_frames=num_frames, generator=generator, output_type="pt", **arguments).frames[0]


def main(path: Path, num_frames: int = 117) -> torch.Tensor:
    """Writes the film strip; returns the videos, (V, F, 3, H, W)."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    videos = torch.stack([make_video(pipe, prompts, num_frames) for prompts in CHANGES.values()])
    titles = [f"{name}: {before} | {after}" for name, (before, after) in CHANGES.items()]
    draw_contact_sheet(videos, titles, path, NUM_COLUMNS)
    sheet = Image.open(path)
    column = (videos.shape[-1] + 2) * round(CHANGE_FRAME / (num_frames - 1) * (NUM_COLUMNS - 1) + 0.5)
    ImageDraw.Draw(sheet).line((column - 1, 0, column - 1, sheet.height), fill="red", width=2)
    sheet.save(path)
    return videos


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "changes.png"))
