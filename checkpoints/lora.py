"""LoRA adapters in PEFT's key layout: merged into the weights they belong to, or written for `load_lora_weights`."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from .reading import Checkpoint, TensorInfo, listing
from .wan import convert_wan_transformer
from .writing import WrittenWeights, write_shards

LORA_STEM = "pytorch_lora_weights"  # of the file that diffusers looks for; always one
LORA_KEY = re.compile(r"(?:base_model\.model\.)?(?P<module>.+)\.lora_(?P<matrix>[AB])(?:\.\w+)?\.weight")


@dataclass(frozen=True)
class Lora:
    """An adapter of linear layers: `W + (alpha / rank) * B @ A`."""

    checkpoint: Checkpoint
    dict_name: str
    keys: Mapping[str, tuple[str, str]]  # the checkpoint's A and B, by the weight's name in diffusers
    alpha: float | None  # None: as large as the rank

    def rank(self, weight: str) -> int:
        return self.checkpoint.dicts[self.dict_name][self.keys[weight][0]].shape[0]

    def scale(self, weight: str) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank(weight)

    def matrices(self, weights: Iterable[str]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """A (rank, in) and B (out, rank) of those weights that the adapter changes, mapped from its file."""
        keys = {weight: self.keys[weight] for weight in weights if weight in self.keys}
        read = self.checkpoint.read((key for pair in keys.values() for key in pair), dict_name=self.dict_name)
        return {weight: (read[down], read[up]) for weight, (down, up) in keys.items()}

    def __str__(self) -> str:
        ranks = sorted({self.rank(weight) for weight in self.keys})
        alpha = "alpha as large as the rank" if self.alpha is None else f"alpha {self.alpha:g}"
        return f"rank {listing(map(str, ranks))}, {alpha}, {len(self.keys)} linear layers"


def find_loras(checkpoint: Checkpoint) -> dict[str, dict[str, dict[str, str]]]:
    """By the dicts that hold LoRA matrices: for each module of the adapted model, its keys "A" and "B"."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for dict_name, infos in checkpoint.dicts.items():
        for key in infos:
            if match := LORA_KEY.fullmatch(key):
                modules = found.setdefault(dict_name, {})
                modules.setdefault(match["module"], {})[match["matrix"]] = key
    return found


def open_lora(
    checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]], *, alpha: float | None, preferred: str
) -> Lora:
    """A LoRA of which every key is accounted for.

    Args:
        shapes: of the model's state dict, diffusers' names.
        alpha: of the training, above 0, which such files do not say; None takes the rank.
        preferred: the dict to take where several hold a LoRA.

    Raises:
        ValueError: the file holds no LoRA, several in one dict, or not one of this model; or `alpha` is none.
    """
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"The LoRA's alpha is {alpha}; it must be a number above 0, or left out, for its rank.")
    found = find_loras(checkpoint)
    if not found:
        raise ValueError(
            f"{checkpoint.path} holds no LoRA: none of its keys ends in `lora_A.weight` or `lora_B.weight`."
        )
    dict_name = preferred if preferred in found else next(iter(found))
    modules, infos = found[dict_name], checkpoint.dicts[dict_name]
    unknown = [key for key in infos if not LORA_KEY.fullmatch(key)]
    if unknown:
        raise ValueError(f"{checkpoint.path} has {len(unknown)} keys that are none of a LoRA's: {listing(unknown)}.")
    taken = {key for keys in modules.values() for key in keys.values()}
    others = [key for key in infos if key not in taken]
    if others:
        raise ValueError(
            f"{checkpoint.path} has several adapters for one module: {listing(others)} and others. Save the wanted "
            "one in a file of its own."
        )
    converted = convert_wan_transformer({f"{module}.weight": keys for module, keys in modules.items()})
    faults = [fault for weight, keys in converted.items() if (fault := _misfit(weight, keys, infos, shapes))]
    if faults:
        raise ValueError(
            f"{checkpoint.path} is no LoRA of this model: {len(faults)} of its {len(converted)} modules do not fit "
            f"({listing(faults)})."
        )
    return Lora(checkpoint, dict_name, {weight: (keys["A"], keys["B"]) for weight, keys in converted.items()}, alpha)


def merge_lora(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """`weight + scale * up @ down`, in float32.

    weight: (out, in)
    down, up: (rank, in) and (out, rank), A and B of Hu et al. 2021
    """
    return torch.addmm(weight.float(), up.float(), down.float(), alpha=scale)


def write_lora(lora: Lora, folder: Path) -> WrittenWeights:
    """Writes the adapter so that diffusers' `load_lora_weights(folder)` finds it.

    Diffusers takes alpha to be the rank where nothing says otherwise; the scale is multiplied into B.
    """
    held = lora.checkpoint.dicts[lora.dict_name]
    matrices, infos = {}, {}
    for weight, (down, up) in lora.keys.items():
        for matrix, original, factor in (("A", down, 1.0), ("B", up, lora.scale(weight))):
            key = f"transformer.{weight.removesuffix('.weight')}.lora_{matrix}.weight"
            matrices[key] = (original, factor)
            infos[key] = held[original] if factor == 1.0 else TensorInfo(held[original].shape, torch.float32)

    def read(keys: list[str]) -> dict[str, torch.Tensor]:
        tensors = lora.checkpoint.read((matrices[key][0] for key in keys), dict_name=lora.dict_name)
        scaled = {}
        for key in keys:
            original, factor = matrices[key]
            scaled[key] = tensors[original] if factor == 1.0 else tensors[original].float() * factor
        return scaled

    return write_shards(folder, infos, read, stem=LORA_STEM, shard_bytes=2 * lora.checkpoint.num_bytes)


def _misfit(
    weight: str, keys: Mapping[str, str], infos: Mapping[str, TensorInfo], shapes: Mapping[str, tuple[int, ...]]
) -> str | None:
    """What is wrong with the LoRA of one module, or None."""
    if len(keys) < 2:
        return f"{weight} has no lora_{'B' if 'A' in keys else 'A'}"
    if len(shapes.get(weight, ())) != 2:
        return f"{weight} is no linear layer of the model"
    (out_features, in_features), down, up = shapes[weight], infos[keys["A"]].shape, infos[keys["B"]].shape
    if len(down) != 2 or down[1] != in_features or up != (out_features, down[0]):
        return f"{weight} is {shapes[weight]}, its A and B are {down} and {up}"
    dtypes = [infos[key].dtype for key in keys.values()]
    if not all(dtype.is_floating_point for dtype in dtypes):
        return f"{weight} has A and B of {' and '.join(map(str, dtypes))}, no floats"
    return None
