"""The regression model under HPSv3 and VideoAlign: Qwen2-VL with a head that reads the states of reward tokens.

Built from transformers' own Qwen2-VL towers, with two differences of the originals from today's class:

- Positions are sequential, 0 to L - 1 on all three axes. The originals call the language model without positions, and
  so never see M-RoPE; with it their weights give other scores.
- Their `model.to(bfloat16)` rounded the rotary frequencies too, in training as in serving. The rotary embeddings here
  round them the same way whenever the model runs in a type below float32, and have no buffer that a cast could touch.

Axes: B sequences, L tokens, D hidden size, R reward tokens, P patches.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import nn
from transformers import Qwen2VLConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import (
    Qwen2VisionTransformerPretrainedModel,
    Qwen2VLRotaryEmbedding,
    Qwen2VLTextModel,
    Qwen2VLVisionRotaryEmbedding,
)

MODALITIES = ("image", "video")
ADAPTER_PREFIX = "base_model.model."  # before every key of a model that PEFT wrapped
NEW_STYLE = ("model.visual.", "model.language_model.")
BASE_LAYER = ".base_layer."
LORA_A = ".lora_A.default.weight"
LORA_B = ".lora_B.default.weight"


class Qwen2VLRewardModel(nn.Module):
    """Qwen2-VL's towers and a head that gives one row of numbers per sequence.

    Args:
        config: Qwen2-VL's; a dict may be flat, as in old Qwen2-VL folders, or nested.
        reward_token_ids: read in this order; each is in every sequence once.
        modality: "image" or "video", whose placeholder tokens take the pixels.
        head: maps (B, R, D) to numbers that are flattened to (B, num_outputs).
    """

    def __init__(
        self, config: Qwen2VLConfig | Mapping, reward_token_ids: Sequence[int], modality: str, head: nn.Module
    ) -> None:
        super().__init__()
        if modality not in MODALITIES:
            raise ValueError(f'`modality` is {modality!r}; it must be "image" or "video".')
        self.config = config if isinstance(config, Qwen2VLConfig) else read_config(config)
        self.reward_token_ids = tuple(reward_token_ids)
        self.pixel_token_id = self.config.image_token_id if modality == "image" else self.config.video_token_id
        self.visual = Qwen2VisionTransformerPretrainedModel._from_config(
            self.config.vision_config, attn_implementation="sdpa"
        )
        self.visual.rotary_pos_emb = RoundedVisionRotary(self.config.vision_config)
        self.language_model = Qwen2VLTextModel._from_config(self.config.text_config, attn_implementation="sdpa")
        self.language_model.rotary_emb = RoundedTextRotary(self.config.text_config)
        self.rm_head = head
        self.requires_grad_(False).eval()

    @classmethod
    def from_original(
        cls,
        state_dict: Mapping[str, torch.Tensor],
        config: Mapping,
        reward_token_ids: Sequence[int],
        modality: str,
        lora_alpha: float | None = None,
    ) -> "Qwen2VLRewardModel":
        """Builds the model of an original checkpoint, in float32 and eval mode.

        Args:
            state_dict: original keys; a LoRA is merged.
            config: `text_config`, `vision_config` and the token ids of Qwen2-VL.
            lora_alpha: of the LoRA in the state dict.

        Raises:
            ValueError: keys are missing or not known, or there is a LoRA without its alpha.
        """
        names = original_names(state_dict)
        tensors = {name: merged_weight(keys, state_dict.__getitem__, lora_alpha) for name, keys in names.items()}
        return cls.from_tensors(tensors, config, reward_token_ids, modality).float()

    @classmethod
    def from_tensors(
        cls,
        tensors: Mapping[str, torch.Tensor],
        config: Qwen2VLConfig | Mapping,
        reward_token_ids: Sequence[int],
        modality: str,
    ) -> "Qwen2VLRewardModel":
        """Builds the model of a state dict under its own names, from the tensors themselves, in their dtypes.

        Raises:
            ValueError: the tensors do not fit.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        with torch.device("meta"):
            model = cls(config, reward_token_ids, modality, head_for(shapes))
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        faults = [f"{name} is missing" for name in wanted if name not in shapes]
        faults += [f"{name} is not known" for name in shapes if name not in wanted]
        faults += [
            f"{name} is {shapes[name]}, not {shape}"
            for name, shape in wanted.items()
            if shapes.get(name, shape) != shape
        ]
        if faults:
            raise ValueError(f"The weights do not fit the config: {'; '.join(faults[:3])}; {len(faults)} such faults.")
        model.load_state_dict(tensors, assign=True)
        return model.requires_grad_(False)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        pixel_values: torch.Tensor,
        grid_thw: torch.Tensor,
    ) -> torch.Tensor:
        """The head's output, (B, num_outputs) float32.

        Args:
            input_ids: (B, L), padded on the right, with one placeholder token per merged patch.
            attention_mask: (B, L), 1 for tokens and 0 for padding.
            pixel_values: (P, channels * temporal patch * patch * patch), of all sequences one after the other.
            grid_thw: (pictures or clips, 3), patches along time, height and width.

        Raises:
            ValueError: padding is not on the right, a sequence lacks a reward token or has them twice or out of order,
                or there are more or fewer placeholders than patches.
        """
        if bool((attention_mask[:, 1:] > attention_mask[:, :-1]).any()):
            raise ValueError("`attention_mask` has padding before a token; batches are padded on the right.")
        places = self._reward_places(input_ids)
        hidden_states = self.language_model.embed_tokens(input_ids)
        pixel_values = pixel_values.to(self.visual.dtype)
        merged = self.visual(pixel_values, grid_thw=grid_thw).pooler_output  # (merged patches, D)
        is_pixel = input_ids == self.pixel_token_id
        if int(is_pixel.sum()) != len(merged):
            raise ValueError(
                f"`input_ids` has {int(is_pixel.sum())} placeholder tokens for {len(merged)} merged patches; give one "
                "for each."
            )
        hidden_states = hidden_states.masked_scatter(is_pixel[..., None], merged.to(hidden_states))
        # A causal mask alone hides the padding, since it is on the right of all tokens.
        hidden_states = self.language_model(
            inputs_embeds=hidden_states, position_ids=self.positions(input_ids, grid_thw), use_cache=False
        ).last_hidden_state
        read = hidden_states.gather(1, places[..., None].expand(-1, -1, hidden_states.shape[-1]))  # (B, R, D)
        head_dtype = next(self.rm_head.parameters()).dtype
        return self.rm_head(read.to(head_dtype)).flatten(1).float()

    def positions(self, input_ids: torch.Tensor, grid_thw: torch.Tensor) -> torch.Tensor:
        """Positions of every token on the axes time, height and width, (3, B, L)."""
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand(3, *input_ids.shape)

    def _reward_places(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Indices of the reward tokens, (B, R)."""
        wanted = torch.tensor(self.reward_token_ids, device=input_ids.device)
        found = input_ids[:, :, None] == wanted  # (B, L, R)
        places = found.int().argmax(dim=1)
        if bool((found.sum(dim=1) != 1).any()) or bool((places.diff(dim=1) <= 0).any()):
            raise ValueError(f"`input_ids` must have each of the tokens {self.reward_token_ids} once, in this order.")
        return places


class Float32Head(nn.Sequential):
    """Layers that stay in float32 when the model is cast, as HPSv3's head did."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Float32Head":
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device, torch.float32)

        return super()._apply(move, recurse)


class RoundedTextRotary(Qwen2VLRotaryEmbedding):
    """Rotary angles of the language model, their frequencies rounded to its dtype."""

    def __init__(self, config: object) -> None:
        with torch.device("cpu"):  # also when the model is built on the meta device
            super().__init__(config)
        self.frequencies = _take_buffers(self)  # (head dim / 2,)

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = self.frequencies.to(hidden_states.dtype).to(hidden_states.device).float()
        angles = position_ids[..., None].float() * frequencies  # (3, B, L, head dim / 2)
        cos, sin = self.recomposition_frequencies(angles.cos()), self.recomposition_frequencies(angles.sin())
        return cos.to(hidden_states.dtype), sin.to(hidden_states.dtype)


class RoundedVisionRotary(Qwen2VLVisionRotaryEmbedding):
    """Rotary angles of the vision tower, computed in its dtype.

    The original kept the angles themselves, their cosines and their sines in that dtype: in bfloat16 an angle of 40 is
    off by up to an eighth, and the weights were tuned with it.
    """

    def __init__(self, config: object) -> None:
        with torch.device("cpu"):
            super().__init__(config)
        self.frequencies = _take_buffers(self)  # (head dim / 4,)

    def forward(self, hidden_states: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        frequencies = self.frequencies.to(hidden_states)
        angles = position_ids[..., None].to(hidden_states.dtype) * frequencies  # (P, 2, head dim / 4)
        cos, sin = self.recomposition_frequencies(angles.cos()), self.recomposition_frequencies(angles.sin())
        return cos.float(), sin.float()


def read_config(config: Mapping) -> Qwen2VLConfig:
    """Reads a Qwen2-VL config from a dict: a folder's `config.json`, old (flat) or new, or a reference case's."""
    config = dict(config)
    if isinstance(config.get("text_config"), Mapping):
        text = dict(config["text_config"])
        if "mrope_section" in text:
            rope = {"rope_theta": text.pop("rope_theta", 1e6), "mrope_section": text.pop("mrope_section")}
            text["rope_parameters"] = {"rope_type": "default", **rope}
        config["text_config"] = text
    return Qwen2VLConfig.from_dict(config)


def original_names(keys: Collection[str]) -> dict[str, list[str]]:
    """Maps the name of each tensor of this model to the original keys that make it, two more with a LoRA.

    The language model's output layer is left out: the head replaces it.

    Raises:
        ValueError: an adapter without the layer that it changes, or half of one, or one tensor under two keys.
    """
    names: dict[str, list[str]] = {}
    for key in keys:
        if not key.endswith((LORA_A, LORA_B)):
            name = _model_name(key.replace(BASE_LAYER, "."))
            if name in names:
                raise ValueError(f"{names[name][0]} and {key} are both {name}: one model at a time.")
            if name != "lm_head.weight":
                names[name] = [key]
    for key in keys:
        if key.endswith(LORA_A):
            other, name = key.removesuffix(LORA_A) + LORA_B, _model_name(key.removesuffix(LORA_A) + ".weight")
            if other not in keys or name not in names:
                raise ValueError(f"{key} has no {other if other not in keys else 'layer that it changes'}.")
            names[name] += [key, other]
    orphans = [key for key in keys if key.endswith(LORA_B) and key.removesuffix(LORA_B) + LORA_A not in keys]
    if orphans:
        raise ValueError(f"{orphans[0]} has no {orphans[0].removesuffix(LORA_B)}{LORA_A}.")
    return names


def merged_weight(keys: Sequence[str], read: Callable[[str], torch.Tensor], lora_alpha: float | None) -> torch.Tensor:
    """The tensor under the first key; with a LoRA under the other two, `W + alpha / r * B A`, summed in float32.

    Args:
        keys: from `original_names`.
        read: gives the tensor of a key.

    Returns:
        The tensor in its own type.
    """
    weight = read(keys[0])
    if len(keys) == 1:
        return weight
    if lora_alpha is None:
        raise ValueError("The state dict has a LoRA; its `lora_alpha` is needed to merge it.")
    down, up = (read(key).float() for key in keys[1:])
    return torch.addmm(weight.float(), up, down, alpha=lora_alpha / down.shape[0]).to(weight.dtype)


def head_for(shapes: Mapping[str, tuple[int, ...]]) -> nn.Module:
    """Builds the head whose weights these are, by the names and shapes of a state dict.

    Raises:
        ValueError: there is none, or one of an unknown kind.
    """
    head = {name: shape for name, shape in shapes.items() if name.startswith("rm_head.")}
    if set(head) == {"rm_head.weight"}:
        num_outputs, width = head["rm_head.weight"]
        return nn.Linear(width, num_outputs, bias=False)
    if set(head) == {f"rm_head.{index}.{kind}" for index in (0, 3, 5) for kind in ("weight", "bias")}:
        sizes = [head[f"rm_head.{index}.weight"] for index in (0, 3, 5)]
        layers = [nn.Linear(inputs, outputs) for outputs, inputs in sizes]
        # The dropout is here only to keep the original's numbers in the names.
        return Float32Head(layers[0], nn.ReLU(), nn.Dropout(0.05), layers[1], nn.ReLU(), layers[2])
    raise ValueError(
        f"The weights have no head of a known kind: {', '.join(head) or 'no key begins with rm_head'}. They are no "
        "reward model of Qwen2-VL, or not one with a linear head or HPSv3's three layers."
    )


def _model_name(key: str) -> str:
    name = key.removeprefix(ADAPTER_PREFIX)
    if name.startswith(NEW_STYLE):  # as transformers has written since 4.52
        return name.removeprefix("model.")
    return "language_model." + name.removeprefix("model.") if name.startswith("model.") else name


def _take_buffers(rotary: nn.Module) -> torch.Tensor:
    """Takes the frequencies out of the reach of casts: they stay float32 and on the CPU."""
    frequencies = rotary.inv_freq.clone()
    del rotary.inv_freq, rotary.original_inv_freq
    return frequencies
