"""The text that a Qwen2-VL reward model reads: the chat format, the template around the prompt, the placeholders.

Axes: B sequences, one clip each, L tokens, F frames, H height, W width.
"""

from collections.abc import Sequence

import torch
from transformers import PreTrainedTokenizerBase

from . import loading, qwen2_vl, vision_input

# Qwen2-VL's chat of one turn, with the system message that it has when a conversation names none.
OPENING = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
AFTER_PIXELS = "<|vision_end|>"
CLOSING = "<|im_end|>\n<|im_start|>assistant\n"
PLACEHOLDERS = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
CHAT_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")


class RewardChat:
    """Converts prompts to tokens.

    Args:
        tokenizer: Qwen2-VL's, with the reward tokens.
        template: the words around the prompt; the reward tokens are in them.
        reward_tokens: as text, in the order in which the model reads them.
        modality: "image" or "video".

    Raises:
        ValueError: the tokenizer lacks a token, or the template a reward token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        template: "loading.Template",
        reward_tokens: Sequence[str],
        modality: str,
    ) -> None:
        self.tokenizer, self.template, self.placeholder = tokenizer, template, PLACEHOLDERS[modality]
        vocabulary = tokenizer.get_vocab()
        absent = [token for token in (*reward_tokens, *CHAT_TOKENS, self.placeholder) if token not in vocabulary]
        if absent:
            raise ValueError(
                f"The tokenizer has no token {', '.join(absent)}: it is not the one that this reward was trained "
                "with. Convert the reward again; the converter adds the reward tokens to Qwen2-VL's tokenizer."
            )
        words = template.before + template.after
        unread = [token for token in reward_tokens if words.count(token) != 1]
        if unread or [words.index(token) for token in reward_tokens] != sorted(map(words.index, reward_tokens)):
            raise ValueError(
                f"The template must have each of {', '.join(reward_tokens)} once, in this order; it is not the one of "
                "this reward."
            )
        self.reward_token_ids = [vocabulary[token] for token in reward_tokens]

    def ask(self, model: "qwen2_vl.Qwen2VLRewardModel", pixels: torch.Tensor, prompts: Sequence[str]) -> torch.Tensor:
        """Runs the model on B clips in one forward: (B, num_outputs) float32.

        Args:
            pixels: (B, F, 3, H, W), resized and normalised.
            prompts: B texts.
        """
        vision = model.config.vision_config
        patches, grids = vision_input.patchify(
            pixels,
            patch_size=vision.patch_size,
            merge_size=vision.spatial_merge_size,
            temporal_patch_size=vision.temporal_patch_size,
        )
        num_placeholders = len(patches) // len(pixels) // vision.spatial_merge_size**2
        ids, mask = (tensor.to(pixels.device) for tensor in self.tokens(prompts, num_placeholders))
        return model(ids, mask, patches, grids)

    def tokens(self, prompts: Sequence[str], num_placeholders: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids (B, L), padded on the right, and their attention mask (B, L).

        Args:
            prompts: B texts; each different one is tokenized once.
            num_placeholders: merged patches of each clip or picture.
        """
        rows = {prompt: self._row(prompt, num_placeholders) for prompt in dict.fromkeys(prompts)}
        longest = max(map(len, rows.values()))
        pad = self.tokenizer.pad_token_id or 0
        ids = [rows[prompt] + [pad] * (longest - len(rows[prompt])) for prompt in prompts]
        mask = [[int(place < len(rows[prompt])) for place in range(longest)] for prompt in prompts]
        return torch.tensor(ids, device="cpu"), torch.tensor(mask, device="cpu")

    def _row(self, prompt: str, num_placeholders: int) -> list[int]:
        text = OPENING + self.placeholder + AFTER_PIXELS + self.template.fill(prompt) + CLOSING
        ids = self.tokenizer(text, add_special_tokens=False).input_ids
        place = ids.index(self.tokenizer.convert_tokens_to_ids(self.placeholder))
        return ids[:place] + [ids[place]] * num_placeholders + ids[place + 1 :]
