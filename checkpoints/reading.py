"""Untrusted third-party checkpoints, opened without reading their tensors.

A file is safetensors, or written by `torch.save`: nothing in it runs, and no more is read than its size. Both are
mapped, so that a tensor takes memory only while it is referenced. Every call of `Checkpoint.read` opens the file anew:
when its tensors are freed, so are the pages of the file.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from ..rewards.torch_files import StoredTensor, open_torch_file, read_tensors

SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NUM_LISTED = 3  # keys of each kind that a message names
MAX_DEPTH = 3  # of dicts in dicts; a pickle may hold one that holds itself
MAX_DICTS = 100_000  # of a file, each as often as it is named; the states of an optimizer are some thousand


@dataclass(frozen=True)
class TensorInfo:
    """Description of a tensor that is not read."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: torch.Tensor | StoredTensor) -> "TensorInfo":
        return cls(tuple(tensor.shape), tensor.dtype)

    @property
    def num_parameters(self) -> int:
        return prod(self.shape)

    @property
    def num_bytes(self) -> int:
        return self.num_parameters * self.dtype.itemsize


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a checkpoint, and the dicts that hold them."""

    path: Path  # a file, or a folder of safetensors shards
    files: tuple[Path, ...]  # what the tensors are read from
    dicts: Mapping[str, Mapping[str, TensorInfo]]  # "" is the top level; a dict in a dict is "outer.inner"
    _file_of: Mapping[str, Path] = field(repr=False)  # by key, where there are several files
    _stored: Mapping[str, Mapping[str, StoredTensor]] = field(repr=False, default_factory=dict)  # in a torch file
    metadata: Mapping[str, str] = field(default_factory=dict)  # of the header, where it is one safetensors file

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def read(self, keys: Iterable[str], *, dict_name: str = "") -> dict[str, torch.Tensor]:
        """Maps some tensors of one dict on the CPU; they must not be written to.

        Raises:
            ValueError: the bytes of one do not have its checksum.
        """
        keys = list(keys)
        if self._stored:
            return read_tensors(self.path, {key: self._stored[dict_name][key] for key in keys})
        tensors = {}
        for file in {self._file_of[key] for key in keys}:
            with safe_open(file, "pt") as opened:
                tensors |= {key: opened.get_tensor(key) for key in keys if self._file_of[key] == file}
        return tensors


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a checkpoint without reading a tensor.

    Args:
        path: a safetensors file, a file that `torch.save` wrote, or a folder with either one safetensors file or the
            index of several.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is truncated, holds code, or is not a checkpoint.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no checkpoint {path}.")
    if path.is_dir():
        return _open_safetensors(path, _files_of_folder(path))
    if _is_pickle(path):
        stored = _dicts(open_torch_file(path), path)
        dicts = {name: {key: TensorInfo.of(tensor) for key, tensor in held.items()} for name, held in stored.items()}
        return Checkpoint(path, (path,), dicts, {}, stored)
    return _open_safetensors(path, (path,))


def read_json(path: Path) -> dict[str, object]:
    """Reads the object that a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: it is no JSON ({error}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds {type(content).__name__}, and must hold an object, {{...}}.")
    return content


def check_keys(
    found: Mapping[str, TensorInfo], expected: Mapping[str, tuple[int, ...]], *, path: str | Path, layout: str
) -> None:
    """Checks that every key is accounted for.

    Args:
        found: the checkpoint's tensors under the names of the model.
        expected: the model's shapes.
        path: of the checkpoint, for the message.
        layout: assumed of the file, for the message.

    Raises:
        ValueError: keys are missing, extra, have another shape, or hold numbers other than floats.
    """
    missing = [key for key in expected if key not in found]
    extra = [key for key in found if key not in expected]
    misshapen = [
        f"{key} is {found[key].shape}, not {tuple(shape)}"
        for key, shape in expected.items()
        if key in found and found[key].shape != tuple(shape)
    ]
    mistyped = [
        f"{key} is {str(info.dtype).removeprefix('torch.')}"
        for key, info in found.items()
        if not info.dtype.is_floating_point
    ]
    kinds = (("missing", missing), ("unknown", extra), ("misshapen", misshapen), ("of no float type", mistyped))
    faults = [f"{len(keys)} {kind} ({listing(keys)})" for kind, keys in kinds if keys]
    if faults:
        raise ValueError(
            f"{path} does not fit the model, of {len(expected)} keys; assumed was {layout}. Its keys: "
            f"{'; '.join(faults)}."
        )


def listing(names: Iterable[str], num_listed: int = NUM_LISTED) -> str:
    """Joins the first few of many names."""
    names = list(names)
    return ", ".join(names[:num_listed]) + (", ..." if len(names) > num_listed else "")


def _is_pickle(path: Path) -> bool:
    """Tells a file of `torch.save` (True) from safetensors (False) by its first bytes.

    Raises:
        ValueError: it is neither; the message says what it looks like.
    """
    with path.open("rb") as file:
        head = file.read(16)
    if head.startswith(b"PK\x03\x04"):
        return True
    if head[8:9] == b"{":
        return False
    if not head:
        reason = "it is empty"
    elif head.startswith(b"version https://"):
        reason = "it is the pointer of a file in Git LFS; fetch the file itself, for example with `git lfs pull`"
    elif head.startswith(b"\x80"):
        reason = (
            "it is a bare pickle, or of a PyTorch before 1.6, which can't be mapped; where you trust it, load it and "
            "`torch.save` it again"
        )
    else:
        reason = "it is neither safetensors nor written by `torch.save`"
    raise ValueError(f"{path} can't be read as a checkpoint: {reason}.")


def _dicts(content: object, path: Path) -> dict[str, dict[str, StoredTensor]]:
    """Every dict with tensors among the nested dicts of a file, by its name."""
    dicts = {}
    for count, (name, tensors) in enumerate(_walk(content)):
        if count >= MAX_DICTS:
            raise ValueError(f"{path} holds more than {MAX_DICTS} dicts in dicts; a checkpoint has a few.")
        if tensors:
            dicts[name] = tensors
    if not dicts:
        raise ValueError(f"{path} holds no dict of tensors; a checkpoint is a state dict, or a dict of some.")
    return dicts


def _walk(held: object, name: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, StoredTensor]]]:
    """Yields name and tensors of every nested dict.

    Entries without a name, such as an optimizer's state of a parameter, are not tensors of a model.

    Raises:
        ValueError: an adapter's alpha is not a tensor.
    """
    if not isinstance(held, Mapping) or depth > MAX_DEPTH:
        return
    named = {key: value for key, value in held.items() if isinstance(key, str)}
    loose = [key for key, value in named.items() if key.endswith(".alpha") and isinstance(value, int | float)]
    if loose:  # of an adapter; leaving them out would change what it does
        raise ValueError(f"{len(loose)} alphas are numbers and no tensors, such as {loose[0]}; save them as tensors.")
    yield name, {key: value for key, value in named.items() if isinstance(value, StoredTensor)}
    for key, value in named.items():
        yield from _walk(value, f"{name}.{key}" if name else key, depth + 1)


def _files_of_folder(folder: Path) -> tuple[Path, ...]:
    """The safetensors files of a model's folder."""
    indices = sorted(folder.glob("*.safetensors.index.json"))
    files = sorted(folder.glob("*.safetensors"))
    if len(indices) == 1:
        try:
            names = sorted(set(read_json(indices[0])["weight_map"].values()))
            files = [folder / name for name in names]
            outside = [name for name in names if Path(name).name != name]
        except (KeyError, AttributeError, TypeError) as error:
            raise ValueError(f"{indices[0]} is not an index of shards: {error}.") from error
        if outside:
            raise ValueError(f"{indices[0]} names {len(outside)} files outside its folder: {listing(outside)}.")
        absent = [file.name for file in files if not file.is_file()]
        if absent or not files:
            raise FileNotFoundError(
                f"{folder} lacks shards that its index names: {listing(absent) or 'it names none'}."
            )
    elif len(indices) > 1 or len(files) != 1:
        names = listing([file.name for file in (*indices, *files)]) or "none"
        raise ValueError(f"{folder} must hold one safetensors file or one index of shards; it holds: {names}.")
    return tuple(files)


def _open_safetensors(path: Path, files: tuple[Path, ...]) -> Checkpoint:
    infos: dict[str, TensorInfo] = {}
    file_of: dict[str, Path] = {}
    metadata: dict[str, str] = {}
    for file in files:
        if _is_pickle(file):
            raise ValueError(f"{file} is a pickle under the name of a safetensors file; rename it.")
        try:
            with safe_open(file, "pt") as opened:
                metadata = opened.metadata() or {}
                for key in opened.keys():  # noqa: SIM118 - it is no mapping
                    if key in infos:
                        raise ValueError(f"{path} has {key!r} in two shards, {file_of[key].name} and {file.name}.")
                    slice_ = opened.get_slice(key)
                    infos[key] = TensorInfo(tuple(slice_.get_shape()), _dtype(slice_.get_dtype(), file))
                    file_of[key] = file
        except SafetensorError as error:
            raise ValueError(f"{file} can't be read as safetensors: it is truncated or damaged ({error}).") from error
    if not infos:
        raise ValueError(f"{path} holds no tensors.")
    return Checkpoint(path, files, {"": infos}, file_of, metadata=metadata if len(files) == 1 else {})


def _dtype(name: str, file: Path) -> torch.dtype:
    if name not in SAFETENSORS_DTYPES:
        raise ValueError(f"{file} has tensors of type {name}; only {', '.join(SAFETENSORS_DTYPES)} are read.")
    return SAFETENSORS_DTYPES[name]
