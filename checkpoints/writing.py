"""Folders and weights that appear whole or not at all."""

import contextlib
import json
import os
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

from ..loaders.saving import file_names, finally_on_signals, foreign_files, write_manifest
from .reading import TensorInfo

SHARD_BYTES = 10**9  # of a model in memory at a time while it is written
DIFFUSERS_STEM = "diffusion_pytorch_model"  # names of weight files, by library
TRANSFORMERS_STEM = "model"


@dataclass(frozen=True)
class WrittenWeights:
    """Result of `write_shards`."""

    files: tuple[Path, ...]
    num_parameters: int
    num_bytes: int
    dtypes: tuple[str, ...]  # by the number of parameters, most first


@contextlib.contextmanager
def new_folder(target: str | Path, *, overwrite: bool = False, inputs: tuple[str | Path, ...] = ()) -> Iterator[Path]:
    """Gives a folder beside `target` to write into, which is renamed to `target` when the block ends.

    It gets a manifest of its files. When the block fails or is interrupted, also by SIGTERM, the folder is deleted,
    and `target` is as it was. A kill leaves a folder named `.stream-t1-*.partial`; the replaced folder then has its
    own name or `.stream-t1-*.replaced`.

    Args:
        target: path of the new folder; its parent exists.
        overwrite: replaces an existing folder if every file in it is as this project wrote it.
        inputs: files and folders that are read meanwhile, which `target` may not replace.

    Raises:
        FileExistsError: `target` exists, and is not to be replaced, or holds a file that this project did not write.
        ValueError: `target` holds one of `inputs`.
        OSError: the folder can't be made.
    """
    target = check_target(target, overwrite=overwrite, inputs=inputs)
    token = secrets.token_hex(6)
    folder, replaced = (target.with_name(f".stream-t1-{token}.{state}") for state in ("partial", "replaced"))
    with finally_on_signals():
        try:
            folder.mkdir()
            yield folder
            write_manifest(folder)
            try:
                if target.exists():
                    target.rename(replaced)
                folder.rename(target)
            except BaseException:
                if replaced.exists() and not target.exists():
                    replaced.rename(target)
                raise
        finally:
            try:
                _remove_leftovers(folder, replaced, target)
            finally:
                _remove_leftovers(folder, replaced, target)  # a signal may have stopped the first


def _remove_leftovers(folder: Path, replaced: Path, target: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if target.exists():
        shutil.rmtree(replaced, ignore_errors=True)


def check_target(target: str | Path, *, overwrite: bool = False, inputs: tuple[str | Path, ...] = ()) -> Path:
    """Returns the path at which `new_folder` will make a folder, and checks that it can.

    Arguments and errors are those of `new_folder`.
    """
    target = Path(target).absolute()
    target = target.parent.resolve() / target.name  # a link in its place is not followed
    if not target.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {target.parent} to put {target.name} into.")
    for path in inputs:
        if Path(path).exists() and Path(path).resolve().is_relative_to(target):
            raise ValueError(f"The output {target} holds the input {path}; name another output.")
    if os.path.lexists(target):
        _check_overwritten(target, overwrite)
    probe = target.with_name(f".stream-t1-{secrets.token_hex(6)}.partial")
    with finally_on_signals():
        try:
            probe.mkdir()
        finally:
            try:
                shutil.rmtree(probe, ignore_errors=True)
            finally:
                shutil.rmtree(probe, ignore_errors=True)  # a signal may have stopped the first
    return target


def check_free_space(target: str | Path, num_bytes: int) -> None:
    """Checks the room on the disk of `target`.

    Raises:
        OSError: there are fewer than `num_bytes` free.
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
        read: returns the tensors of some keys, as described in `infos`. Called once per shard.
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


def _check_overwritten(target: Path, overwrite: bool) -> None:
    if not overwrite:
        raise FileExistsError(f"{target} exists; name another output, or overwrite it.")
    if target.is_symlink() or not target.is_dir():
        raise FileExistsError(f"{target} exists and is no folder; delete it yourself if it is not needed.")
    foreign = foreign_files(target, file_names(target))
    if foreign:
        raise FileExistsError(
            f"{target} is not replaced: {foreign[0]}, of {len(foreign)} such files, was not written by Stream-T1 or "
            "was changed since. Name another output, or delete the folder yourself if it is not needed."
        )


def _independent(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Contiguous tensors, none of which shares memory with another, as safetensors requires."""
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
