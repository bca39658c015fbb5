"""Pixels between the decoder, the search and the caller; the search keeps them in 8 bits.

Axes: B videos, F frames, H and W height and width.
"""

import base64
import io
from typing import Literal

import numpy as np
import PIL.Image
import torch

THUMBNAIL_PIXELS = 96


def to_uint8(video: torch.Tensor) -> torch.Tensor:
    """Converts a decoded clip (3, F, H, W) in [-1, 1], all finite, to (F, 3, H, W) in 0 to 255."""
    return (video.float() / 2 + 0.5).mul(255.0).round().to(torch.uint8).transpose(0, 1).contiguous()


def thumbnail(frames: torch.Tensor) -> str:
    """The middle picture of a chunk (F, 3, H, W) uint8, at most 96 pixels a side, as a JPEG data URL."""
    picture = PIL.Image.fromarray(frames[len(frames) // 2].permute(1, 2, 0).cpu().numpy())
    picture.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"


def to_output(
    videos: list[torch.Tensor], output_type: Literal["np", "pt", "pil"]
) -> np.ndarray | torch.Tensor | list[np.ndarray] | list[torch.Tensor] | list[list[PIL.Image.Image]]:
    """Converts B clips, each (F, 3, H, W) uint8, to the caller's output type.

    "np" is (B, F, H, W, 3) and "pt" (B, F, 3, H, W), floats in [0, 1]; "pil" is B lists of F pictures. Clips of
    different lengths stay a list.
    """
    if output_type == "pt":
        return stack([video.float() / 255.0 for video in videos])
    arrays = [video.permute(0, 2, 3, 1).cpu().numpy() for video in videos]
    if output_type == "pil":
        return [[PIL.Image.fromarray(picture) for picture in array] for array in arrays]
    return stack([array.astype(np.float32) / 255.0 for array in arrays])


def stack(
    videos: list[torch.Tensor] | list[np.ndarray],
) -> torch.Tensor | np.ndarray | list[torch.Tensor] | list[np.ndarray]:
    """One array of equally long videos; the list itself when lengths differ or it is empty."""
    if len({tuple(video.shape) for video in videos}) != 1:
        return videos
    return torch.stack(videos) if torch.is_tensor(videos[0]) else np.stack(videos)
