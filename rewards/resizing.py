"""Resizing and normalising pictures as the models' own preprocessors do, with torch alone, on the pictures' device.

Axes: N pictures, C channels, H height, W width.
"""

import torch
from torch.nn import functional

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)  # Qwen2-VL has the same
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


def resize_as_pil(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """PIL's bicubic resize of 8-bit pictures: first along rows, then along columns, rounded to 8 bits after each.

    That is the order of every Pillow that the originals ran with; Pillow 13 begins with columns where that is cheaper.

    Args:
        frames: (N, C, H, W) float in [0, 1], taken to the nearest of 256 levels.

    Returns:
        (N, C, height, width) in whole levels, 0 to 255.
    """
    levels = frames.mul(255.0).round_()
    for size in ((frames.shape[-2], width), (height, width)):
        levels = functional.interpolate(levels, size, mode="bicubic", antialias=True)
        levels = levels.add_(0.5).floor_().clamp_(0.0, 255.0)
    return levels


def resize_as_torchvision(frames: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """torchvision's bicubic resize of 8-bit tensors: both axes at once, rounded to 8 bits at the end.

    Args and returns as `resize_as_pil`.
    """
    levels = functional.interpolate(frames.mul(255.0).round_(), (height, width), mode="bicubic", antialias=True)
    return levels.clamp_(0.0, 255.0).round_()


def resize_as_vbench(frames: torch.Tensor, height: int, width: int, *, mode: str) -> torch.Tensor:
    """VBench's resize of a video's pictures: levels of 8 bits as floats, without antialiasing.

    VBench makes float tensors of the frames that it reads, so nothing is rounded or clamped after the resize: bicubic
    values beyond black and white stay.

    Args:
        frames: (N, C, H, W) float in [0, 1], taken to the nearest of 256 levels.
        mode: "bilinear" or "bicubic".

    Returns:
        (N, C, height, width), levels from 0 to 255, neither rounded nor clamped.
    """
    return functional.interpolate(frames.mul(255.0).round_(), (height, width), mode=mode, antialias=False)


def shorter_side_size(height: int, width: int, shorter_side: int) -> tuple[int, int]:
    """Height and width of the same aspect ratio, with this shorter side; the longer side is rounded down."""
    if height <= width:
        return shorter_side, int(shorter_side * width / height)
    return int(shorter_side * height / width), shorter_side


def center_crop(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Middle square of (N, C, H, W) by torchvision: half an odd margin is rounded to the nearest even number."""
    top, left = (round((length - side) / 2) for length in pictures.shape[-2:])
    return pictures[..., top : top + side, left : left + side]


def floored_center_crop(pictures: torch.Tensor, side: int) -> torch.Tensor:
    """Middle square of (N, C, H, W) by transformers, which rounds half an odd margin down."""
    top, left = ((length - side) // 2 for length in pictures.shape[-2:])
    return pictures[..., top : top + side, left : left + side]


def normalize(
    levels: torch.Tensor, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> torch.Tensor:
    """Normalises levels (N, 3, H, W) from 0 to 255 by the mean and deviation of colours from 0 to 1."""
    mean, std = (levels.new_tensor(values)[:, None, None] for values in (mean, std))
    return (levels / 255.0 - mean) / std
