"""Folders and weights that appear whole or not at all."""

import contextlib
import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError
from safetensors.torch import save_file

from .reading import TensorInfo

SHARD_BYTES = 10**9  # what of a model is in memory at a time while it is written
DIFFUSERS_STEM = "diffusion_pytorch_model"  # names of weight files, by library
TRANSFORMERS_STEM = "model"

# A folder without any of these was not made here, and is not deleted.
MODEL_FILES = ("model_index.json", "reward_config.json")  # `config.json` is in many a folder that is no model


@dataclass(frozen=True)
class WrittenWeights:
    """What `write_shards` wrote."""

    files: tuple[Path, ...]
    num_parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]  # by the number of parameters, most first


@contextlib.contextmanager
def new_folder(target: str | Path, *, overwrite: bool = False, inputs: tuple[str | Path, ...] = ()) -> Iterator[Path]:
    """A folder beside `target` to write into, which takes its name when the block ends.

    When the block fails or is interrupted, the folder is deleted, and what was at `target` is as it was. What a kill
    leaves has a name that begins with a dot; the replaced folder is then under its own or under such a name.

    Args:
        target: where the folder is wanted; the folder that it lies in exists.
        overwrite: whether a model's folder that is there is replaced.
        inputs: files and folders that are read meanwhile, which `target` may not replace.

    Raises:
        FileExistsError: `target` exists, and is not to be replaced, or is no model's folder.
        ValueError: `target` holds one of `inputs`.
        OSError: it can't be made.
    """
    target = Path(target).resolve()
    _check_target(target, overwrite, inputs)
    token = secrets.token_hex(4)
    folder = target.with_name(f".{target.name}.partial-{token}")
    replaced = target.with_name(f".{target.name}.replaced-{token}")
    try:
        folder.mkdir()
        yield folder
        try:
            if target.exists():
                target.rename(replaced)
            folder.rename(target)
        except BaseException:
            if replaced.exists() and not target.exists():
                replaced.rename(target)
            raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if target.exists():
            shutil.rmtree(replaced, ignore_errors=True)


def check_free_space(target: str | Path, num_bytes: int) -> None:
    """
    Raises:
        OSError: the disk of `target` has no room for `num_bytes`.
    """
    free = shutil.disk_usage(Path(target).resolve().parent).free
    if free < num_bytes:
        raise OSError(f"{target} needs {num_bytes / 1e9:.1f} GB, and its disk has {free / 1e9:.1f} GB left.")


def write_shards(
    folder: Path,
    infos: Mapping[str, TensorInfo],
    read: Callable[[list[str]], Mapping[str, torch.Tensor]],
    *,
    stem: str,
    shard_bytes: int = SHARD_BYTES,
) -> WrittenWeights:
    """Writes a state dict as safetensors, with an index where it takes several files, shard after shard.

    Args:
        folder: of the component; made when it is not there.
        infos: of every tensor.
        read: gives the tensors of some keys, as `infos` says they are. Called once per shard.
        stem: of the files' names, `DIFFUSERS_STEM` or `TRANSFORMERS_STEM`.
        shard_bytes: of the largest shard; a larger tensor has one of its own.
    """
    folder.mkdir(exist_ok=True)
    stand_ins = {key: torch.empty(info.shape, dtype=info.dtype, device="meta") for key, info in infos.items()}
    shards = split_torch_state_dict_into_shards(
        stand_ins, filename_pattern=f"{stem}{{suffix}}.safetensors", max_shard_size=shard_bytes
    )
    num_bytes = sum(info.num_bytes for info in infos.values())
    with tqdm(total=num_bytes, unit="B", unit_scale=True, desc=folder.name) as bar:
        for name, keys in shards.filename_to_tensors.items():
            tensors = _independent(read(keys))
            wrong = [key for key in keys if TensorInfo.of(tensors[key]) != infos[key]]
            assert not wrong, wrong
            _save(tensors, folder / name)
            bar.update(sum(infos[key].num_bytes for key in keys))
            del tensors  # before the next shard is read
    if shards.is_sharded:
        index = {"metadata": {"total_size": num_bytes}, "weight_map": shards.tensor_to_filename}
        path = folder / f"{stem}.safetensors.index.json"
        path.write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    counts: dict[str, int] = {}
    for info in infos.values():
        name = str(info.dtype).removeprefix("torch.")
        counts[name] = counts.get(name, 0) + info.num_parameters
    return WrittenWeights(
        files=tuple(folder / name for name in shards.filename_to_tensors),
        num_parameters=sum(counts.values()),
        num_bytes=num_bytes,
        dtypes=tuple(sorted(counts, key=counts.get, reverse=True)),
    )


def _check_target(target: Path, overwrite: bool, inputs: tuple[str | Path, ...]) -> None:
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to put {target.name} into.")
    for path in inputs:
        if Path(path).resolve().is_relative_to(target):
            raise ValueError(f"The output {target} holds the input {path}; name another output.")
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(f"{target} exists; name another output, or overwrite it.")
    if not target.is_dir() or any(target.iterdir()) and not any((target / name).is_file() for name in MODEL_FILES):
        raise FileExistsError(f"{target} exists and is no model's folder; delete it yourself if it is not needed.")


def _independent(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors none of which shares memory with another, as safetensors wants them."""
    separate, storages = {}, set()
    for key, tensor in tensors.items():
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in storages or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)
        storages.add(tensor.untyped_storage().data_ptr())
        separate[key] = tensor
    return separate


def _save(tensors: Mapping[str, torch.Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # what it says of the disk, as the error that other writers raise
        raise OSError(f"{path.name} could not be written to {path.parent.parent}: {error}") from error
