"""LoRA files for a pipeline, found as diffusers finds them, with the config beside them."""

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from diffusers.loaders.lora_base import _fetch_state_dict
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

from . import adapter_config

FILE_OPTIONS = ("weight_name", "use_safetensors", "proxies")  # of diffusers, besides those of the Hub
HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")


@dataclass(frozen=True, eq=False)
class LoraFile:
    """An adapter as stored in its file."""

    name: str  # for messages
    tensors: Mapping[str, torch.Tensor]
    config: Mapping[str, object]  # PEFT's; empty where none is known
    is_config_in_file: bool  # in its header, where diffusers reads it too


def fetch(source: str | PathLike | dict[str, torch.Tensor], **options: object) -> LoraFile:
    """Fetches an adapter's tensors from a file, a folder, a Hub id or a state dict.

    Args:
        options: of diffusers' `lora_state_dict`.

    Raises:
        ValueError: it holds something other than tensors, or its config is damaged.
        OSError: it is absent, or can't be downloaded.
    """
    name = "This state dict" if isinstance(source, dict) else str(source)
    _refuse_deflated(source)
    named = {option: options.get(option) for option in (*FILE_OPTIONS, *HUB_OPTIONS)}
    allow_pickle = named["use_safetensors"] is None
    named["use_safetensors"] = allow_pickle or named["use_safetensors"]
    named["force_download"] = bool(named["force_download"])
    tensors, metadata = _fetch_state_dict(
        pretrained_model_name_or_path_or_dict=source,
        user_agent={"file_type": "attn_procs_weights", "framework": "pytorch"},
        allow_pickle=allow_pickle,
        **named,
    )
    others = [key for key, value in tensors.items() if not torch.is_tensor(value)]
    if others:
        raise ValueError(f"{name} has {len(others)} entries that are no tensors: {', '.join(map(str, others[:3]))}.")
    if metadata:
        config = adapter_config.transformer_config(metadata)
    else:
        config = {} if isinstance(source, dict) else _config_beside(source, named)
    return LoraFile(name, tensors, config, bool(metadata))


def _config_beside(source: str | PathLike, options: Mapping[str, object]) -> Mapping[str, object]:
    """PEFT's config in the folder of the weights; empty where there is none."""
    path = Path(source)
    if path.exists():
        subfolder = options["subfolder"] or ""
        folders = [path.parent] if path.is_file() else [path, path / subfolder]
        found = next((file for folder in folders if (file := folder / adapter_config.CONFIG_NAME).is_file()), None)
    else:
        try:
            named = {option: value for option in HUB_OPTIONS if (value := options[option]) is not None}
            found = Path(hf_hub_download(str(source), adapter_config.CONFIG_NAME, **named))
        except EntryNotFoundError:  # also where the Hub can't be asked, and the cache knows of none
            found = None
    if found is None:
        return {}
    try:
        config = json.loads(found.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{found} is damaged: it is no JSON ({error}).") from error
    if not isinstance(config, dict):
        raise ValueError(f"{found} is damaged: it holds {type(config).__name__}, and must hold an object, {{...}}.")
    return config


def _refuse_deflated(source: object) -> None:
    """Refuses compressed records: `torch.save` writes none, and one could take any amount of memory."""
    if isinstance(source, dict) or not Path(source).is_file() or not zipfile.is_zipfile(source):
        return
    with zipfile.ZipFile(source) as file:
        deflated = [info.filename for info in file.infolist() if info.compress_type != zipfile.ZIP_STORED]
    if deflated:
        raise ValueError(f"{source} has compressed records, such as {deflated[0]}; `torch.save` writes none.")
