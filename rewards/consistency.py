"""Video rewards for a subject and a background that stay the same, by VBench's formulas.

Every frame but the first has two cosines, of its features to those of the frame before and to those of the first
frame, negative ones set to 0; the score is the mean of them all (Huang et al. 2024). A clip of one frame scores 1.

Axes: B clips, F frames, N = B * F, H height, W width, D feature size.
"""

from pathlib import Path

import torch
from torch.nn import functional
from transformers import PreTrainedModel, ViTModel

from . import base, checks, clip, loading, resizing

SHORTER_SIDE = 224
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConsistencyReward(base.Reward):
    """Consistency of features from frame to frame; a subclass computes the features.

    Args:
        model: the vision tower.
        frame_stride: every n-th frame is read, as of a video of lower frame rate.
        micro_batch_size: clips per forward.
    """

    reads_prompt = False

    def __init__(self, model: PreTrainedModel, *, frame_stride: int = 1, micro_batch_size: int | None = None) -> None:
        super().__init__(micro_batch_size=micro_batch_size)
        checks.check_type("model", model, torch.nn.Module)
        self.model = model.eval().requires_grad_(False)
        self.frame_stride = checks.whole_number("frame_stride", frame_stride, least=1)

    def selected_frames(self, num_frames: int, fps: float | None) -> slice:
        return slice(None, None, self.frame_stride)

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        """Scores B clips in [0, 1].

        frames: (B, F, 3, H, W) float in [0, 1]
        """
        features = self.features(frames.flatten(0, 1)).float().unflatten(0, frames.shape[:2])
        return base.RewardOutput(consistency(features))

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features (N, D) of pictures (N, 3, H, W) in [0, 1]."""
        raise NotImplementedError


class SubjectConsistencyReward(ConsistencyReward):
    """DINO's class token from frame to frame, for a subject that keeps its appearance, at any aspect ratio.

    Position embeddings are interpolated as transformers does; DINO's own code, which VBench runs, stretches them by a
    tenth of a patch where a frame is not square.
    """

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "facebook/dino-vitb16",
        *,
        dtype: torch.dtype | None = None,
        frame_stride: int = 1,
        micro_batch_size: int | None = None,
    ) -> "SubjectConsistencyReward":
        model = loading.load_whole(ViTModel, name_or_folder, dtype, add_pooling_layer=False)
        return cls(model, frame_stride=frame_stride, micro_batch_size=micro_batch_size)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        size = resizing.shorter_side_size(*pictures.shape[-2:], SHORTER_SIDE)
        levels = resizing.resize_as_vbench(pictures, *size, mode="bilinear")
        pixels = resizing.normalize(levels, IMAGENET_MEAN, IMAGENET_STD).to(self.dtype)
        return self.model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]


class BackgroundConsistencyReward(ConsistencyReward):
    """CLIP's image embedding from frame to frame, for a scene that stays the same."""

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path = "openai/clip-vit-base-patch32",
        *,
        dtype: torch.dtype | None = None,
        frame_stride: int = 1,
        micro_batch_size: int | None = None,
    ) -> "BackgroundConsistencyReward":
        model = clip.load_image_side(name_or_folder, dtype)
        return cls(model, frame_stride=frame_stride, micro_batch_size=micro_batch_size)

    def features(self, pictures: torch.Tensor) -> torch.Tensor:
        side = self.model.config.vision_config.image_size
        size = resizing.shorter_side_size(*pictures.shape[-2:], side)
        levels = resizing.resize_as_vbench(pictures, *size, mode="bicubic")
        pixels = resizing.normalize(resizing.center_crop(levels, side))
        return self.model.get_image_features(pixels.to(self.dtype)).pooler_output


def consistency(features: torch.Tensor) -> torch.Tensor:
    """Mean over frames of the two cosines, (B,) in [0, 1].

    features: (B, F, D)
    """
    if features.shape[1] == 1:
        return features.new_ones(len(features))
    first, before, after = features[:, :1], features[:, :-1], features[:, 1:]
    to_first = functional.cosine_similarity(first, after, dim=-1).clamp(min=0.0)
    to_before = functional.cosine_similarity(before, after, dim=-1).clamp(min=0.0)
    return ((to_first + to_before) / 2).mean(dim=1)
