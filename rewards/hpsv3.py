"""HPSv3, the paper's image reward: human preference for a picture, given its prompt (arXiv 2508.03789).

Axes: N pictures, H height, W width.
"""

import torch

from . import base, chat, checks, loading, qwen2_vl, resizing, vision_input

RewardChat = chat.RewardChat  # in the constructor an argument hides the module
REWARD_TOKENS = ("<|Reward|>",)
NUM_PIXELS = 256 * 28 * 28  # both least and most: every picture is resized to about this area


class HPSv3Reward(base.PictureReward):
    """Mean over frames of HPSv3's score, about 0 to 15.

    The model predicts a normal distribution for every picture. Parts: `mu` and `sigma`, means over frames.

    Args:
        model: with outputs mu and log sigma.
        chat: with HPSv3's template.
        confidence: c in the score `mu - c * sigma`, a lower confidence bound; 0 is the original's score.
        num_pixels: area to which pictures are resized.
        frame_stride: every n-th frame is scored.
        micro_batch_size: pictures per forward.
    """

    kind = "hpsv3"

    def __init__(
        self,
        model: "qwen2_vl.Qwen2VLRewardModel",
        chat: "chat.RewardChat",
        *,
        confidence: float = 0.0,
        num_pixels: int = NUM_PIXELS,
        frame_stride: int = 1,
        micro_batch_size: int | None = 16,
    ) -> None:
        super().__init__(frame_stride=frame_stride, micro_batch_size=micro_batch_size)
        checks.check_type("model", model, torch.nn.Module)
        checks.check_type("chat", chat, RewardChat)
        self.model, self.chat = model, chat
        self.confidence = checks.real_number("confidence", confidence)
        self.num_pixels = checks.whole_number("num_pixels", num_pixels, least=1)

    @classmethod
    def from_folder(
        cls,
        folder: "loading.ConvertedFolder",
        *,
        dtype: torch.dtype | None = None,
        confidence: float = 0.0,
        frame_stride: int = 1,
        micro_batch_size: int | None = 16,
    ) -> "HPSv3Reward":
        folder.check_constants("num_pixels")
        tokens = folder.config["reward_tokens"]
        reader = chat.RewardChat(folder.tokenizer(), folder.template(), tokens, "image")
        tensors = folder.tensors(dtype, keep_float32=("rm_head.",))
        model = qwen2_vl.Qwen2VLRewardModel.from_tensors(
            tensors, folder.config["model"], reader.reward_token_ids, "image"
        )
        return cls(
            model,
            reader,
            confidence=confidence,
            num_pixels=folder.config["num_pixels"],
            frame_stride=frame_stride,
            micro_batch_size=micro_batch_size,
        )

    def check_prompts(self, prompts: list[str]) -> None:
        checks.check_plain_words(prompts, self.chat.tokenizer)

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        """Scores N pictures.

        frames: (N, 1, 3, H, W) float in [0, 1]
        """
        vision = self.model.config.vision_config
        factor = vision.patch_size * vision.spatial_merge_size
        size = vision_input.resized_size(
            *frames.shape[-2:], factor=factor, min_pixels=self.num_pixels, max_pixels=self.num_pixels
        )
        pixels = resizing.normalize(resizing.resize_as_pil(frames[:, 0], *size))[:, None]
        pixels = pixels.expand(-1, vision.temporal_patch_size, -1, -1, -1)  # a picture is a still clip
        mu, log_sigma = self.chat.ask(self.model, pixels, prompt).unbind(dim=1)
        sigma = log_sigma.exp()
        return base.RewardOutput(mu - self.confidence * sigma, {"mu": mu, "sigma": sigma})
