"""The judge, a learned verdict on a demo video: a small convolutional network that names what two-second windows show.

It is built on another principle than the checker (`checker.py`) and the rewards (`rewards.py`), and it is only ever
used to report: no search maximises it and no setting of the demo model was chosen by it. `train_judge.py` trains it on
drawn clips, whose content is known, as the demo's VAE reconstructs them.

Axes: B windows, F frames, H height, W width.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from .clips import FRAME_PIXELS, VALUES, Caption, Sight

JUDGE = Path(__file__).parent / "judge"
WEIGHTS = "judge.safetensors"
WINDOW_FRAMES = 33  # frames of one reading
WINDOW_STRIDE = 12  # frames of a chunk: one reading ends with every chunk from the third on
FRAME_STEP = 4  # frames of a latent; every fourth is read
WIDTHS = (16, 32, 48, 64)
COLOR_FEATURES = 32
INPUT_GAIN = 4.0  # so that neighbouring colours lie on different sides of the activations' bends


@dataclass(frozen=True, eq=False)
class Reading(Sight):
    """The judge's answers for a video, window by window."""

    probabilities: dict[str, torch.Tensor]  # per attribute (windows, values + 1); the last is "neither"

    def answer(self, attribute: str) -> str | None:
        """The most likely value over all windows; None for neither."""
        index = int(self.probabilities[attribute].mean(dim=0).argmax())
        return (*VALUES[attribute], None)[index]

    def probability(self, caption: Caption) -> torch.Tensor:
        """Probability (windows,) that a window shows all that the caption says: the product over its attributes."""
        product = torch.ones_like(self.probabilities["shape"][:, 0])
        for attribute, values in VALUES.items():
            wanted = getattr(caption, attribute)
            if wanted is not None:
                product = product * self.probabilities[attribute][:, values.index(wanted)]
        return product


def targets_of(truth: Caption) -> list[int]:
    """The index of the right answer for every attribute, in the order of VALUES."""
    said = ((getattr(truth, name), values) for name, values in VALUES.items())
    return [len(values) if value is None else values.index(value) for value, values in said]


class Judge(nn.Module):
    """3-D convolutions over every fourth frame, on a canvas whose borders are joined as the world's are."""

    def __init__(self) -> None:
        super().__init__()
        first, second, third, last = WIDTHS
        self.colors = nn.Sequential(  # of single places
            nn.Conv3d(3, COLOR_FEATURES, 1), nn.SiLU(), nn.Conv3d(COLOR_FEATURES, COLOR_FEATURES, 1), nn.SiLU()
        )
        self.layers = nn.Sequential(
            *_layer(3, first, (1, 5, 5), spatial_stride=2),  # 9 frames of 32x32
            *_layer(first, second, (3, 3, 3), spatial_stride=2),  # 7 of 16x16
            *_layer(second, third, (3, 3, 3), spatial_stride=2),  # 5 of 8x8
            *_layer(third, last, (3, 3, 3), spatial_stride=1),  # 3 of 8x8
        )
        self.hidden = nn.Linear(COLOR_FEATURES + 3 * last, last)
        self.heads = nn.ModuleDict({name: nn.Linear(last, len(values) + 1) for name, values in VALUES.items()})

    def forward(self, frames: torch.Tensor) -> dict[str, torch.Tensor]:
        """Logits (B, values + 1) of every attribute, the last for "neither".

        frames: (B, WINDOW_FRAMES, 3, H, W) in [0, 1]
        """
        seen = frames[:, ::FRAME_STEP]
        if seen.shape[-2:] != (FRAME_PIXELS, FRAME_PIXELS):
            size = (FRAME_PIXELS, FRAME_PIXELS)
            resized = nn.functional.interpolate(seen.flatten(0, 1), size, mode="bilinear", antialias=True)
            seen = resized.unflatten(0, seen.shape[:2])
        return self.classify(seen)

    def classify(self, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """`forward` for the frames that are read (B, 9, 3, 64, 64)."""
        seen = INPUT_GAIN * (2 * seen.transpose(1, 2) - 1)  # (B, 3, 9, 64, 64)
        # the norms of the layers remove the overall brightness of a clip, so colours have a path of their own
        colors = self.colors(nn.functional.avg_pool3d(seen, (1, 4, 4))).mean(dim=(2, 3, 4))
        features = self.layers(seen).mean(dim=(3, 4)).flatten(1)
        hidden = nn.functional.silu(self.hidden(torch.cat([colors, features], dim=1)))
        return {name: head(hidden) for name, head in self.heads.items()}

    @torch.no_grad()
    def read(self, frames: torch.Tensor) -> Reading:
        """Reads one video; frames after the last whole window are ignored.

        frames: (F, 3, H, W) float in [0, 1], at least WINDOW_FRAMES
        """
        if frames.ndim != 4 or frames.shape[1] != 3 or frames.shape[0] < WINDOW_FRAMES:
            raise ValueError(
                f"`frames` has shape {tuple(frames.shape)}; it must be (F, 3, H, W) with F >= {WINDOW_FRAMES}"
            )
        windows = frames.unfold(0, WINDOW_FRAMES, WINDOW_STRIDE).movedim(-1, 1)  # (windows, F, 3, H, W)
        logits = self(windows.to(self.hidden.weight))
        return Reading({name: values.softmax(dim=1).cpu() for name, values in logits.items()})


def load_judge(folder: str | Path = JUDGE) -> Judge:
    """Loads the trained judge that ships with the package, or another of its training, in eval mode on the CPU."""
    judge = Judge()
    judge.load_state_dict(load_file(Path(folder) / WEIGHTS))
    return judge.eval()


def _layer(
    inputs: int, outputs: int, kernel: tuple[int, int, int], *, spatial_stride: int
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """A convolution with joined borders in space and without padding in time."""
    convolution = nn.Conv3d(
        inputs,
        outputs,
        kernel,
        stride=(1, spatial_stride, spatial_stride),
        padding=(0, kernel[1] // 2, kernel[2] // 2),
        padding_mode="circular",
        bias=False,
    )
    return convolution, nn.GroupNorm(8, outputs), nn.SiLU()
