"""Image rewards on CLIP: a picture's fit to its prompt, people's preference, aesthetics.

Axes: N pictures, H height, W width, D embedding size.
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional
from transformers import CLIPModel, PreTrainedTokenizerBase

from . import base, checks, loading, resizing, torch_files

CLIPSCORE_WEIGHT = 2.5  # Hessel et al. 2021
LAYER_NAME = re.compile(r"layers\.\d+\.(weight|bias)")  # of the aesthetic layers


class ClipTextReward(base.PictureReward):
    """Base of rewards that compare a picture's embedding with its prompt's.

    Args:
        model: both towers.
        tokenizer: the text tower's; longer prompts are truncated to its length.
        frame_stride: every n-th frame is scored.
        micro_batch_size: pictures per forward.
    """

    crop = staticmethod(resizing.center_crop)  # of OpenAI's CLIP, whose preprocessor is torchvision's

    def __init__(
        self,
        model: CLIPModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        frame_stride: int = 1,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__(frame_stride=frame_stride, micro_batch_size=micro_batch_size)
        checks.check_type("model", model, nn.Module)
        checks.check_type("tokenizer", tokenizer, PreTrainedTokenizerBase)
        self.model, self.tokenizer = model.eval().requires_grad_(False), tokenizer

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        tokenizer: str | Path | None = None,
        dtype: torch.dtype | None = None,
        frame_stride: int = 1,
        micro_batch_size: int | None = None,
    ) -> "ClipTextReward":
        """Loads the reward on a CLIP model of the Hub or of a folder; safetensors only.

        Args:
            tokenizer: folder or Hub id of its tokenizer, if not that of the model.
        """
        model = loading.load_whole(CLIPModel, name_or_folder, dtype)
        tokenizer = loading.load_tokenizer(tokenizer or name_or_folder)
        return cls(model, tokenizer, frame_stride=frame_stride, micro_batch_size=micro_batch_size)

    def check_prompts(self, prompts: list[str]) -> None:
        checks.check_plain_words(prompts, self.tokenizer)

    def similarities(self, frames: torch.Tensor, prompt: list[str]) -> torch.Tensor:
        """Cosine between each picture and its text, (N,) float32.

        frames: (N, 1, 3, H, W) float in [0, 1]
        """
        pixels = clip_pixels(frames[:, 0], self.model.config.vision_config.image_size, self.crop)
        pictures = self.model.get_image_features(pixels.to(self.dtype)).pooler_output
        different = list(dict.fromkeys(prompt))
        tokens = self.tokenizer(
            different,
            padding=True,
            truncation=True,
            max_length=self.model.config.text_config.max_position_embeddings,
        )
        read = (tokens.input_ids, tokens.attention_mask)
        read = (torch.tensor(rows, device=self.model.device) for rows in read)  # else on the default device
        texts = self.model.get_text_features(*read).pooler_output
        rows = torch.tensor([different.index(text) for text in prompt], device=texts.device)
        return functional.cosine_similarity(pictures.float(), texts.float()[rows])


class CLIPScoreReward(ClipTextReward):
    """CLIPScore, `2.5 * max(cosine, 0)`, mean over frames (Hessel et al. 2021).

    `from_pretrained("openai/clip-vit-base-patch32")` is the paper's model; any CLIP serves.
    """

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        return base.RewardOutput(CLIPSCORE_WEIGHT * self.similarities(frames, prompt).clamp(min=0.0))


class PickScoreReward(ClipTextReward):
    """PickScore, the cosine times the model's own scale, about 15 to 25, mean over frames (Kirstain et al. 2023).

    `from_pretrained("yuvalkirstain/PickScore_v1", tokenizer="laion/CLIP-ViT-H-14-laion2B-s32B-b79K")`.
    """

    crop = staticmethod(resizing.floored_center_crop)  # its authors use the preprocessor of transformers

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        return base.RewardOutput(self.model.logit_scale.float().exp() * self.similarities(frames, prompt))


class AestheticReward(base.PictureReward):
    """LAION's aesthetic predictor, about 1 to 10, mean over frames: linear layers on CLIP's image embedding.

    Args:
        model: CLIP ViT-L/14; the text tower is not used and may be None.
        layers: consecutive linear layers to one number, with nothing between them.
        frame_stride: every n-th frame is scored.
        micro_batch_size: pictures per forward.
    """

    reads_prompt = False

    def __init__(
        self,
        model: CLIPModel,
        layers: nn.Sequential,
        *,
        frame_stride: int = 1,
        micro_batch_size: int | None = None,
    ) -> None:
        super().__init__(frame_stride=frame_stride, micro_batch_size=micro_batch_size)
        checks.check_type("model", model, nn.Module)
        checks.check_type("layers", layers, nn.Module)
        self.model, self.layers = model.eval().requires_grad_(False), layers.requires_grad_(False)

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        head: str | Path,
        dtype: torch.dtype | None = None,
        frame_stride: int = 1,
        micro_batch_size: int | None = None,
    ) -> "AestheticReward":
        """Loads the reward on a CLIP model of the Hub or a folder, "openai/clip-vit-large-patch14" for LAION's layers.

        Args:
            head: the file of the layers: LAION's `sac+logos+ava1-l14-linearMSE.pth`, or the same as safetensors.
        """
        model = load_image_side(name_or_folder, dtype)
        layers = read_layers(Path(head), model.config.projection_dim).to(dtype or torch.float32)
        return cls(model, layers, frame_stride=frame_stride, micro_batch_size=micro_batch_size)

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> base.RewardOutput:
        pixels = clip_pixels(frames[:, 0], self.model.config.vision_config.image_size)
        embeds = functional.normalize(self.model.get_image_features(pixels.to(self.dtype)).pooler_output, dim=-1)
        return base.RewardOutput(self.layers(embeds)[:, 0].float())  # of (N, D)


def load_image_side(name_or_folder: str | Path, dtype: torch.dtype | None) -> CLIPModel:
    """Loads a CLIP model without its text tower.

    transformers' vision-only class is not used: it takes the embedding's size from another place of the config, and
    where the two differ it initialises a random projection.
    """
    model = loading.load_whole(CLIPModel, name_or_folder, dtype)
    model.text_model = model.text_projection = None
    return model


def clip_pixels(
    pictures: torch.Tensor, side: int, crop: Callable[[torch.Tensor, int], torch.Tensor] = resizing.center_crop
) -> torch.Tensor:
    """Preprocesses pictures as CLIP does, (N, 3, side, side): PIL's bicubic resize, centre crop, normalisation.

    pictures: (N, 3, H, W) float in [0, 1]
    """
    size = resizing.shorter_side_size(*pictures.shape[-2:], side)
    return resizing.normalize(crop(resizing.resize_as_pil(pictures, *size), side))


def read_layers(path: Path, embed_dim: int) -> nn.Sequential:
    """Reads linear layers from `embed_dim` numbers to one, in the order of the numbers in their names.

    Accepts LAION's files: `layers.N.weight` and `layers.N.bias` with nothing but dropouts between them, and `weight`
    and `bias` of the one layer of the first predictor.

    Raises:
        ValueError: the file is damaged, or holds no such layers.
    """
    state_dict = _read_tensors(path)
    shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
    if set(shapes) == {"weight", "bias"}:
        shapes = {f"layers.0.{name}": shape for name, shape in shapes.items()}
        state_dict = {f"layers.0.{name}": tensor for name, tensor in state_dict.items()}
    numbers = sorted({int(name.split(".")[1]) for name in shapes if LAYER_NAME.fullmatch(name)})
    outputs = [shapes.get(f"layers.{number}.bias", ()) for number in numbers]
    inputs = [(embed_dim,), *outputs][:-1]
    wanted = {
        f"layers.{number}.{kind}": shape
        for number, before, after in zip(numbers, inputs, outputs, strict=True)
        for kind, shape in (("weight", after + before), ("bias", after))
    }
    if not numbers or outputs[-1] != (1,) or shapes != wanted:
        raise ValueError(
            f"{path} has layers of the shapes {shapes or 'none'}; they must be `layers.N.weight` and `layers.N.bias` "
            f"that lead from the {embed_dim} numbers of this CLIP model to 1. LAION's layers are for CLIP ViT-L/14."
        )
    gaps = [(before, after) for before, after in zip(numbers, numbers[1:], strict=False) if after - before > 2]
    if gaps:
        before, after = gaps[0]
        raise ValueError(
            f"{path} has {after - before - 1} modules between layers.{before} and layers.{after} that its keys do not "
            "name: an activation and a dropout, as in LAION's files called reluMSE. Only linear layers with at most a "
            "dropout between them are known here, such as `sac+logos+ava1-l14-linearMSE.pth`."
        )
    layers = nn.Sequential(*(nn.Linear(*before, *after) for before, after in zip(inputs, outputs, strict=True)))
    layers.load_state_dict(
        {f"{i}.{kind}": state_dict[f"layers.{n}.{kind}"] for i, n in enumerate(numbers) for kind in ("weight", "bias")}
    )
    return layers


def _read_tensors(path: Path) -> Mapping[str, torch.Tensor]:
    """Reads the tensors of a file's state dict by name; empty where the file holds something else."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch_files.open_torch_file(path)
        stored = content.items() if isinstance(content, Mapping) else ()
        stored = {name: tensor for name, tensor in stored if isinstance(tensor, torch_files.StoredTensor)}
        return torch_files.read_tensors(path, stored)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} can't be read as a file of tensors alone; download it again: {error}") from error
