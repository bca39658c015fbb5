"""Input pixels of Qwen2-VL: sampled frames, their size, their patches.

Axes: B clips, F frames, C channels, H height, W width, t h w a grid of patches along time, height, width.
"""

import math

import torch

MOST_ELONGATED = 200  # sides' ratio
LEAST_SAMPLED = 4  # frames
MOST_SAMPLED = 768


def sampled_indices(num_frames: int, fps: float, sample_fps: float) -> list[int]:
    """Indices of the frames of a clip to read: an even number of them, evenly spaced, first and last included.

    A clip of one frame is repeated.
    """
    if num_frames == 1:
        return [0, 0]
    most = min(MOST_SAMPLED, num_frames) // 2 * 2
    wanted = min(max(num_frames / fps * sample_fps, LEAST_SAMPLED), most)
    wanted = min(round(wanted / 2) * 2, num_frames)
    # In float32, as in the original; another rounding could choose other frames.
    return torch.linspace(0, num_frames - 1, wanted, dtype=torch.float32, device="cpu").round().long().tolist()


def resized_size(height: int, width: int, *, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """Height and width that are multiples of `factor`, near the given ones in shape and within the bounds in area.

    Raises:
        ValueError: one side is more than 200 times the other.
    """
    if max(height, width) > MOST_ELONGATED * min(height, width):
        raise ValueError(
            f"Frames of {height}x{width} are too elongated; one side may be {MOST_ELONGATED} times the other at most."
        )
    rows, columns = (max(factor, round(side / factor) * factor) for side in (height, width))
    if rows * columns > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(factor, math.floor(side / shrink / factor) * factor) for side in (height, width))
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / factor) * factor for side in (height, width))
    return rows, columns


def patchify(
    frames: torch.Tensor, *, patch_size: int, merge_size: int, temporal_patch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cuts clips into rows of patches, in the order in which the vision tower merges them.

    Args:
        frames: (B, F, C, H, W); F a multiple of `temporal_patch_size`, H and W of `patch_size * merge_size`.

    Returns:
        Patches (B * t * h * w, C * temporal_patch_size * patch_size**2), and the grids (B, 3) of t, h and w.
    """
    batch, num_frames, _, height, width = frames.shape
    grid = (num_frames // temporal_patch_size, height // patch_size, width // patch_size)
    patches = frames.unflatten(1, (grid[0], temporal_patch_size))  # (B, t, time, C, H, W)
    patches = patches.unflatten(4, (-1, merge_size, patch_size))  # (B, t, time, C, h/m, m, y, W)
    patches = patches.unflatten(7, (-1, merge_size, patch_size))  # (B, t, time, C, h/m, m, y, w/m, m, x)
    patches = patches.permute(0, 1, 4, 7, 5, 8, 3, 2, 6, 9)  # (B, t, h/m, w/m, m, m, C, time, y, x)
    return patches.flatten(0, 5).flatten(1), torch.tensor([grid] * batch, device=frames.device)
