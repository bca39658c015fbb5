"""VideoAlign, the paper's video reward: visual quality, motion quality and text alignment (arXiv 2501.13918).

Axes: B clips, F frames, H height, W width.
"""

from collections.abc import Mapping, Sequence

import torch

from . import base, chat, checks, loading, qwen2_vl, resizing, vision_input

RewardChat = chat.RewardChat  # in the constructor an argument hides the module
DIMENSIONS = ("VQ", "MQ", "TA")  # in the order in which the model reads their tokens
REWARD_TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")
SCORES = DIMENSIONS + tuple(f"{name}_raw" for name in DIMENSIONS)
MIN_PIXELS, MAX_PIXELS = 128 * 28 * 28, 256 * 28 * 28


class VideoAlignReward(base.Reward):
    """Sum of VideoAlign's normalised scores, or of some of them.

    Parts: `VQ`, `MQ` and `TA`, normalised by the mean and deviation that the authors measured, and the same with
    `_raw`, as the model outputs them.

    Args:
        model: with an output per dimension.
        chat: with VideoAlign's template.
        normalization: mean and deviation of each dimension.
        score: the parts that are summed. Without "TA" the prompt is not read, since it comes last in the text.
        sample_fps: frames that are read, per second.
        min_pixels, max_pixels: least and largest area of frames; others are resized to it.
        micro_batch_size: clips per forward.
    """

    kind = "videoalign"
    reads_fps = True

    def __init__(
        self,
        model: "qwen2_vl.Qwen2VLRewardModel",
        chat: "chat.RewardChat",
        *,
        normalization: Mapping[str, Sequence[float]],
        score: Sequence[str] = DIMENSIONS,
        sample_fps: float = 2.0,
        min_pixels: int = MIN_PIXELS,
        max_pixels: int = MAX_PIXELS,
        micro_batch_size: int | None = 4,
    ) -> None:
        super().__init__(micro_batch_size=micro_batch_size)
        checks.check_type("model", model, torch.nn.Module)
        checks.check_type("chat", chat, RewardChat)
        if not isinstance(score, list | tuple) or not score or not all(name in SCORES for name in score):
            raise ValueError(f"`score` is {score!r}; it must be a list of one or more of {', '.join(SCORES)}.")
        self.model, self.chat, self.score = model, chat, tuple(score)
        self.normalization = _means_and_deviations(normalization)
        self.sample_fps = checks.real_number("sample_fps", sample_fps, above=0)
        self.min_pixels = checks.whole_number("min_pixels", min_pixels, least=1)
        self.max_pixels = checks.whole_number("max_pixels", max_pixels, least=self.min_pixels)
        self.reads_prompt = any(name.startswith("TA") for name in score)

    @classmethod
    def from_folder(
        cls,
        folder: "loading.ConvertedFolder",
        *,
        dtype: torch.dtype | None = None,
        score: Sequence[str] = DIMENSIONS,
        micro_batch_size: int | None = 4,
    ) -> "VideoAlignReward":
        folder.check_constants("normalization", "sample_fps", "min_pixels", "max_pixels")
        config = folder.config
        reader = chat.RewardChat(folder.tokenizer(), folder.template(), config["reward_tokens"], "video")
        model = qwen2_vl.Qwen2VLRewardModel.from_tensors(
            folder.tensors(dtype), config["model"], reader.reward_token_ids, "video"
        )
        return cls(
            model,
            reader,
            normalization=config["normalization"],
            score=score,
            sample_fps=config["sample_fps"],
            min_pixels=config["min_pixels"],
            max_pixels=config["max_pixels"],
            micro_batch_size=micro_batch_size,
        )

    def check_prompts(self, prompts: list[str]) -> None:
        checks.check_plain_words(prompts, self.chat.tokenizer)

    def selected_frames(self, num_frames: int, fps: float | None) -> list[int]:
        return vision_input.sampled_indices(num_frames, fps, self.sample_fps)

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        """Scores B clips.

        frames: (B, F, 3, H, W) float in [0, 1], the sampled ones, an even number
        """
        vision = self.model.config.vision_config
        size = vision_input.resized_size(
            *frames.shape[-2:],
            factor=vision.patch_size * vision.spatial_merge_size,
            min_pixels=self.min_pixels,
            max_pixels=self.max_pixels,
        )
        pixels = resizing.normalize(resizing.resize_as_torchvision(frames.flatten(0, 1), *size))
        pixels = pixels.unflatten(0, frames.shape[:2])
        parts: dict[str, torch.Tensor] = {}
        for name, raw in zip(DIMENSIONS, self.chat.ask(self.model, pixels, prompt).unbind(dim=1), strict=True):
            mean, deviation = self.normalization[name]
            parts |= {name: (raw - mean) / deviation, f"{name}_raw": raw}
        return base.RewardOutput(sum(parts[name] for name in self.score), parts)


def _means_and_deviations(normalization: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
    wanted = f"it must have a mean and a deviation for each of {', '.join(DIMENSIONS)}"
    if not isinstance(normalization, Mapping):
        raise TypeError(f"`normalization` is {normalization!r}; {wanted}.")
    read = {}
    for name in DIMENSIONS:
        pair = normalization.get(name)
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise ValueError(f"`normalization[{name!r}]` is {pair!r}; {wanted}.")
        mean, deviation = pair
        named = f"normalization[{name!r}]"
        read[name] = checks.real_number(f"{named}[0]", mean), checks.real_number(f"{named}[1]", deviation, above=0)
    return read
