"""LoRA adapters in their trainers' layouts: merged into the weights they belong to, or written for diffusers."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from ..loaders.adapter_config import CONFIG_NAME, file_config
from ..loaders.adapters import Adapter, for_diffusers, is_adapter, open_adapter, split_key
from .reading import Checkpoint, TensorInfo, listing, read_json
from .sources import Source, find_beside
from .writing import WrittenWeights, write_shards

LORA_STEM = "pytorch_lora_weights"  # of the file that diffusers looks for; always one


@dataclass(frozen=True)
class Lora:
    """An adapter, every key of which has a parameter to change."""

    checkpoint: Checkpoint
    dict_name: str
    adapter: Adapter
    shapes: Mapping[str, tuple[int, ...]]  # of the model's parameters, diffusers' names

    def merged(self, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Returns those of the weights that the adapter changes, with all of its changes, in float32."""
        changed = [name for name in weights if self.adapter.keys(name)]
        tensors = self.read(changed)
        merged = {}
        for name in changed:
            merged[name] = weights[name].float()
            if pair := self.adapter.pairs.get(name):
                merged[name] = merge_lora(merged[name], tensors[pair.down], tensors[pair.up], pair.scale)
            for key, scale in self.adapter.differences.get(name, ()):
                merged[name] = merged[name] + scale * tensors[key].float()
        return merged

    def read(self, parameters: Iterable[str]) -> dict[str, torch.Tensor]:
        """Maps the file's tensors that change these parameters."""
        keys = [key for parameter in parameters for key in self.adapter.keys(parameter)]
        return self.checkpoint.read(keys, dict_name=self.dict_name)

    def for_diffusers(self) -> dict[str, torch.Tensor]:
        """State dict that diffusers' `load_lora_weights` applies in full.

        Raises:
            ValueError: it changes more than linear layers; such a LoRA can only be merged.
        """
        tensors = self.read(self.adapter.parameters)
        return for_diffusers(self.adapter, tensors, self.shapes, name=str(self.checkpoint.path))

    def __str__(self) -> str:
        pairs, num_differences = self.adapter.pairs.values(), len(self.adapter.differences)
        parts = []
        if pairs:
            alphas = sorted({round(pair.scale * pair.rank, 6) for pair in pairs})
            is_rank = all(pair.scale == 1.0 for pair in pairs)
            parts.append(f"rank {listing(str(rank) for rank in sorted({pair.rank for pair in pairs}))}")
            parts.append("alpha as large as the rank" if is_rank else f"alpha {listing(f'{a:g}' for a in alphas)}")
            parts.append(f"{len(pairs)} linear layers")
        if num_differences:
            parts.append(f"{num_differences} whole differences")
        return ", ".join(parts)


def find_loras(checkpoint: Checkpoint) -> dict[str, dict[str, dict[str, str]]]:
    """Finds the dicts that hold an adapter: for each module, as the file names it, its keys by their kind."""
    found: dict[str, dict[str, dict[str, str]]] = {}
    for dict_name, infos in checkpoint.dicts.items():
        if is_adapter(infos):
            modules = found.setdefault(dict_name, {})
            for key in infos:
                if parts := split_key(key):
                    modules.setdefault(parts[0], {})[parts[1]] = key
    return found


def open_lora(
    source: Source,
    checkpoint: Checkpoint,
    shapes: Mapping[str, tuple[int, ...]],
    *,
    alpha: float | None,
    preferred: str,
) -> Lora:
    """Opens a LoRA, every key of which is accounted for.

    Args:
        source: of the file; PEFT's `adapter_config.json` may be there too, with the alpha.
        checkpoint: the file, opened.
        shapes: of the model's state dict, diffusers' names.
        alpha: of the training, above 0; None takes what the file or its config says, else the rank.
        preferred: the dict to take where several hold a LoRA.

    Raises:
        ValueError: the file holds no LoRA, several, or not one of this model; or `alpha` is invalid.
    """
    found = find_loras(checkpoint)
    if len(found) > 1 and preferred not in found:
        raise ValueError(
            f"{checkpoint.path} holds {len(found)} LoRAs, in the dicts {', '.join(found)}, none of which is called "
            f"{preferred}. Save the wanted one in a file of its own."
        )
    dict_name = preferred if preferred in found else next(iter(found), next(iter(checkpoint.dicts)))
    beside = find_beside(source, CONFIG_NAME)
    config = file_config(checkpoint.metadata, None if beside is None else read_json(beside), name=str(checkpoint.path))
    adapter = open_adapter(
        checkpoint.dicts[dict_name],
        lambda keys: checkpoint.read(keys, dict_name=dict_name),
        shapes,
        name=str(checkpoint.path),
        config=config,
        alpha=alpha,
    )
    return Lora(checkpoint, dict_name, adapter, shapes)


def merge_lora(weight: torch.Tensor, down: torch.Tensor, up: torch.Tensor, scale: float) -> torch.Tensor:
    """`weight + scale * up @ down`, in float32.

    weight: (out, in, ...), the further axes those of a convolution's kernel
    down, up: (rank, in, ...) and (out, rank, ...), A and B of Hu et al. 2021; the further axes of `up` have length 1
    """
    flat = torch.addmm(weight.float().flatten(1), up.float().flatten(1), down.float().flatten(1), alpha=scale)
    return flat.view(weight.shape)


def write_lora(state_dict: Mapping[str, torch.Tensor], folder: Path) -> WrittenWeights:
    """Writes the result of `Lora.for_diffusers` to one file, which diffusers' `load_lora_weights(folder)` finds."""
    infos = {key: TensorInfo.of(tensor) for key, tensor in state_dict.items()}
    return write_shards(
        folder,
        infos,
        lambda keys: {key: state_dict[key] for key in keys},
        stem=LORA_STEM,
        shard_bytes=1 + sum(info.num_bytes for info in infos.values()),
    )
