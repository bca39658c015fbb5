"""Contact sheets of videos, and matplotlib for whatever draws curves."""

import importlib
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch
from PIL import Image, ImageDraw


def draw_contact_sheet(videos: torch.Tensor, titles: Sequence[str], path: Path, num_columns: int = 10) -> None:
    """One row per video (V, F, 3, H, W) in [0, 1]: evenly spaced frames under its title."""
    picked = torch.linspace(0, videos.shape[1] - 1, num_columns).round().long()
    pixels = (videos[:, picked] * 255).round().to(torch.uint8).permute(0, 3, 1, 4, 2)  # (V, H, columns, W, 3)
    height, width = pixels.shape[1], pixels.shape[3]
    row_height = height + 14
    sheet = Image.new("RGB", (num_columns * (width + 2), len(videos) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    for row, (strip, title) in enumerate(zip(pixels, titles, strict=True)):
        draw.text((2, row * row_height), title, fill="black")
        for column in range(num_columns):
            frame = Image.fromarray(strip[:, column].contiguous().numpy())
            sheet.paste(frame, (column * (width + 2), row * row_height + 13))
    sheet.save(path)


def load_pyplot() -> ModuleType:
    """Imports matplotlib, which only pictures need.

    Raises:
        ImportError: it is not installed.
    """
    try:
        matplotlib = importlib.import_module("matplotlib")
    except ImportError as error:
        raise ImportError("Pictures of curves need matplotlib: pip install stream-t1[train]") from error
    matplotlib.use("Agg")
    return importlib.import_module("matplotlib.pyplot")
