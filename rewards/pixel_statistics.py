"""Rewards without weights: statistics of the pixels alone, a few milliseconds a clip.

Axes: B clips, F frames, H height, W width, P pairs of frames, K blocks.
"""

import torch
from torch.nn import functional

from . import base, checks

LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601)
DARK, BRIGHT = 4 / 255, 251 / 255
HALF_LEVEL = 0.5 / 255  # below what 8 bits can show
MOTION_SIDE = 128  # pixels of the shorter side where motion is measured
BLOCK = 32  # pixels
MOTION_FPS = 8.0
FASTEST_SHARE = 0.05  # of the blocks, since most of the picture may stand still
FLAT = 2 / 255  # deviation below which a block has nothing to track


class PixelReward(base.Reward):
    """A reward that reads neither the prompt nor has weights; it works where its frames are."""

    reads_prompt = False


class TemporalFlickerReward(PixelReward):
    """1 minus the mean difference of neighbouring frames, in [0, 1]; VBench's formula, meant there for still scenes.

    `(255 - mean |frame - next frame|) / 255` in whole levels of 8 bits. Motion lowers it as flicker does.
    """

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        levels = frames.mul(255.0).round_()
        return base.RewardOutput(1.0 - _mean(frame_differences(levels)) / 255.0)


class SharpnessReward(PixelReward):
    """Variance of the luma's Laplacian, mean over frames: fine detail, and noise, raise it."""

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        if min(frames.shape[-2:]) < 3:
            raise ValueError(
                f"Frames of {frames.shape[-2]}x{frames.shape[-1]} pixels are too small; 3x3 is the least."
            )
        image = luma(frames)
        neighbours = image[..., :-2, 1:-1] + image[..., 2:, 1:-1] + image[..., 1:-1, :-2] + image[..., 1:-1, 2:]
        laplacian = neighbours - 4 * image[..., 1:-1, 1:-1]
        return base.RewardOutput(laplacian.flatten(2).var(dim=2, correction=0).mean(dim=1))


class ExposureReward(PixelReward):
    """Share of the pixels that are neither black nor white, in [0, 1]. Parts: the shares `dark` and `bright`."""

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        image = luma(frames).flatten(1)
        dark, bright = ((image <= DARK).float().mean(dim=1), (image >= BRIGHT).float().mean(dim=1))
        return base.RewardOutput(1.0 - dark - bright, {"dark": dark, "bright": bright})


class DynamicDegreeReward(PixelReward):
    """Speed of the fastest parts, in shorter sides of the frame per second, by phase correlation.

    The luma of frames an eighth of a second apart, the shorter side resized to 128 pixels, is cut into overlapping
    blocks of 32; the peak of each pair's phase correlation is a block's shift, up to half a block. Of each pair of
    frames the fastest twentieth of the blocks counts. A clip of one frame has no speed.
    """

    reads_fps = True

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        lag = min(max(1, round(fps / MOTION_FPS)), max(1, frames.shape[1] - 1))
        shorter = min(frames.shape[-2:])
        size = [max(BLOCK, round(side * MOTION_SIDE / shorter)) for side in frames.shape[-2:]]
        image = functional.interpolate(luma(frames), size, mode="bilinear", antialias=True)
        if image.shape[1] == 1:
            return base.RewardOutput(image.new_zeros(len(image)))
        shifts = block_shifts(image[:, :-lag], image[:, lag:])  # (B, P, K)
        num_fastest = max(1, round(FASTEST_SHARE * shifts.shape[2]))
        speed = shifts.topk(num_fastest, dim=2).values.mean(dim=(1, 2))
        return base.RewardOutput(speed * fps / lag / MOTION_SIDE)


class ChunkSeamReward(PixelReward):
    """Visibility of the borders between chunks, by how much frames change there.

    Part `ratio`: the mean difference of frames at the borders of chunks over that of all other neighbours; 1 shows no
    seam, more is a jump, less a halt. The score is `-|log ratio|`, so 0 is best. Without a border the ratio is 1.

    Args:
        frames_per_chunk: pixel frames of a chunk, 4 times its latent frames. Borders are counted from the clip's
            end: all chunks of a video have this length but the first, which has 3 frames fewer.
    """

    def __init__(self, frames_per_chunk: int = 12) -> None:
        super().__init__()
        self.frames_per_chunk = checks.whole_number("frames_per_chunk", frames_per_chunk, least=2)

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        differences = frame_differences(frames)  # (B, P); the i-th is between the frames i and i + 1
        # Counted from the end, the last pair is 1 frame away from it; a border is a multiple of a chunk away.
        distance = torch.arange(differences.shape[1], 0, -1, device=frames.device)
        is_border = distance % self.frames_per_chunk == 0
        if not bool(is_border.any()):
            ratio = frames.new_ones(len(frames))
        else:
            at_borders, elsewhere = differences[:, is_border].mean(dim=1), _mean(differences[:, ~is_border])
            ratio = (at_borders + HALF_LEVEL) / (elsewhere + HALF_LEVEL)
        return base.RewardOutput(-ratio.log().abs(), {"ratio": ratio})


def luma(frames: torch.Tensor) -> torch.Tensor:
    """Brightness (B, F, H, W) of frames (B, F, 3, H, W)."""
    red, green, blue = frames.unbind(dim=2)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def frame_differences(frames: torch.Tensor) -> torch.Tensor:
    """Mean absolute difference of neighbouring frames, (B, F - 1).

    frames: (B, F, 3, H, W)
    """
    return (frames[:, 1:] - frames[:, :-1]).abs().flatten(2).mean(dim=2)


def block_shifts(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """Distance that each block moved, in whole pixels, (B, P, K); 0 where a block is flat.

    before, after: (B, P, H, W)
    """
    window = torch.hann_window(BLOCK + 2, periodic=False, dtype=before.dtype, device=before.device)[
        1:-1
    ]  # neither end is 0
    window = window[:, None] * window
    spectra, flat = [], []
    for image in (before, after):
        blocks = image.unfold(2, BLOCK, BLOCK // 2).unfold(3, BLOCK, BLOCK // 2).flatten(2, 3)  # (B, P, K, 32, 32)
        blocks = blocks - blocks.mean(dim=(3, 4), keepdim=True)
        flat.append(blocks.square().mean(dim=(3, 4)).sqrt() < FLAT)
        spectra.append(torch.fft.rfft2(blocks * window))
    cross = spectra[1] * spectra[0].conj()
    surface = torch.fft.irfft2(cross / cross.abs().clamp(min=1e-9), s=(BLOCK, BLOCK)).flatten(3)
    peak = surface.argmax(dim=3)
    rows, columns = ((index + BLOCK // 2) % BLOCK - BLOCK // 2 for index in (peak // BLOCK, peak % BLOCK))
    return torch.hypot(rows.float(), columns.float()).masked_fill(flat[0] | flat[1], 0.0)


def _mean(differences: torch.Tensor) -> torch.Tensor:
    """Mean over pairs (B, P), 0 where there are none."""
    return differences.sum(dim=1) / max(differences.shape[1], 1)
