"""The base of a converted model: text encoder, tokenizer, VAE and the transformer's config of a Wan 2.1 folder."""

import errno
import inspect
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from huggingface_hub.utils import tqdm

from ..loaders.folder import WANTED, check_base
from .reading import open_checkpoint, read_json
from .sources import Source, find_folder

COMPONENTS = ("text_encoder", "tokenizer", "vae")
LIBRARIES = ("diffusers", "transformers")  # any other would be the base's own code
SUFFIXES = (".json", ".safetensors", ".model", ".txt")  # files taken of a component: neither pickles nor code
PATTERNS = ["model_index.json", "transformer/config.json"]
PATTERNS += [f"{component}/*{suffix}" for component in COMPONENTS for suffix in SUFFIXES]
FASTVIDEO_PIPELINE = "WanCausalDMDPipeline"  # a class of FastVideo's; its components are those of `WanPipeline`
TRANSFORMERS = ("WanTransformer3DModel", "CausalWanTransformer3DModel")


@dataclass(frozen=True)
class Base:
    """A folder whose components a converted model takes over."""

    source: Source
    components: dict[str, list[str]]  # as `model_index.json` names their classes
    transformer_config: dict[str, object]  # of `transformer/config.json`, FastVideo's own keys included
    files: tuple[Path, ...]  # of the components

    @property
    def num_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    def transformer(self) -> WanTransformer3DModel:
        """Builds the transformer's modules and config, without memory for its weights.

        Raises:
            ValueError: the config has invalid values.
        """
        known = inspect.signature(WanTransformer3DModel.__init__).parameters
        config = {name: value for name, value in self.transformer_config.items() if name in known}
        try:
            with torch.device("meta"):
                return WanTransformer3DModel(**config)
        except Exception as error:  # a wrong value may raise anything in the modules
            raise ValueError(
                f"{self.source.name} is not a base: its transformer/config.json fails ({error})."
            ) from error


def open_base(given: str | Path) -> Base:
    """Opens a base, a folder or Hub id, and checks that it is a Wan 2.1 text-to-video model.

    Raises:
        ValueError: it is another model, or a weight file is damaged.
        OSError: something is absent.
    """
    source = find_folder(given, PATTERNS)
    index = _json(source, "model_index.json")
    if index.get("_class_name") == FASTVIDEO_PIPELINE:
        index = {**index, "_class_name": "WanPipeline"}
    try:
        check_base(index)
    except ValueError as error:
        raise ValueError(f"{given} is not a base. {error}") from error
    transformer, vae = _json(source, "transformer/config.json"), _json(source, "vae/config.json")
    _check_configs(given, transformer, vae)
    files = []
    for component in COMPONENTS:
        entry = index.get(component)
        if not isinstance(entry, list) or not entry or entry[0] not in LIBRARIES:
            known = " or ".join(LIBRARIES)
            raise ValueError(
                f"{given} is not a base: its model_index.json names no {component} of {known}, but {entry}."
            )
        found = sorted(path for path in (source.path / component).glob("*") if path.suffix in SUFFIXES)
        if not found:
            raise FileNotFoundError(f"{given} lacks its {component}.")
        if component != "tokenizer":
            open_checkpoint(source.path / component)  # whole, and safetensors
        files += found
    return Base(source, {name: index[name] for name in COMPONENTS}, transformer, tuple(files))


def place_components(base: Base, folder: Path, *, link: bool) -> None:
    """Copies the base's components, or hard-links their files, which takes no room.

    With links the folder is as complete as a copy, wherever it is loaded, moved or uploaded from.

    Raises:
        OSError: no room, or links were asked for and the disks differ.
    """
    with tqdm(total=base.num_bytes, unit="B", unit_scale=True, desc=", ".join(COMPONENTS)) as bar:
        for file in base.files:
            target = folder / file.parent.name / file.name
            target.parent.mkdir(exist_ok=True)
            if link:
                _link(file.resolve(), target)  # the Hub's cache has symbolic links, which would not outlive it
            else:
                shutil.copyfile(file, target)
            bar.update(file.stat().st_size)


def _link(file: Path, target: Path) -> None:
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.ENOTSUP):
            raise
        raise OSError(
            f"{file.name} can't be linked to {target.parent}: another disk. Copy the base instead."
        ) from error


def _json(source: Source, name: str) -> dict[str, object]:
    try:
        return read_json(source.path / name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{source.name} is not a base: it has no {name}. {WANTED}") from error
    except ValueError as error:
        raise ValueError(f"{source.name} is not a base: {error}") from error


def _check_configs(given: str | Path, transformer: dict[str, object], vae: dict[str, object]) -> None:
    """Checks what `model_index.json` does not say of a model."""
    channels = transformer.get("in_channels", 16)
    if transformer.get("_class_name") not in TRANSFORMERS:
        kind = f"of another kind, `{transformer.get('_class_name')}`"
    elif transformer.get("image_dim") or transformer.get("added_kv_proj_dim"):
        kind = "conditioned on an image"
    elif channels != transformer.get("out_channels", channels):
        kind = f"not text-to-video: it reads {channels} channels and makes {transformer['out_channels']}"
    elif channels != vae.get("z_dim", 16):
        kind = f"not of its VAE: it reads {channels} channels and the VAE makes {vae.get('z_dim', 16)}"
    else:
        return
    raise ValueError(f"{given} is not a base: its transformer is {kind}. {WANTED}")
