"""Descriptions of files and folders in words: layout, size and dtype, and what converts them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from ..loaders.folder import PIPELINE
from .base import open_base
from .layouts import GENERATORS
from .lora import find_loras
from .reading import Checkpoint, TensorInfo, open_checkpoint, read_json
from .wan import FLAT, HALLMARK, WanLayout, find_wan_layouts

VIDEOALIGN_KEY, HPSV3_KEY = "base_model.model.rm_head.weight", "rm_head.0.weight"  # heads of the reward models
VIDEOALIGN_COMMAND = "stream-t1 convert videoalign --checkpoint"


def describe(path: str | Path) -> str:
    """Describes a checkpoint file, a model's folder or a component's, in some lines.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: it is damaged, or holds no weights.
    """
    path = Path(path)
    if (path / "model_index.json").is_file():
        return "\n".join(_pipeline_lines(path))
    if (path / "model_config.json").is_file() and list(path.glob("checkpoint-*")):
        return f"{path}: a VideoAlign folder\n  converted by: {VIDEOALIGN_COMMAND} {path}"
    return "\n".join(_checkpoint_lines(open_checkpoint(path)))


def _pipeline_lines(folder: Path) -> Iterable[str]:
    index = read_json(folder / "model_index.json")
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) and name else name
    yield f"{folder}: a diffusers folder of `{name}`"
    for component, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or component[:1] == "_":
            continue
        weights = ""
        if list((folder / component).glob("*.safetensors")):
            checkpoint = open_checkpoint(folder / component)
            weights = f": {_size(checkpoint.dicts[''].values(), checkpoint.num_bytes)}"
        yield f"  {component}, `{entry[1]}`{weights}"
    yield f"  {_use_of_folder(folder, name)}"


def _use_of_folder(folder: Path, name: str) -> str:
    if name == PIPELINE[1]:
        return "loads as it is: `StreamT1Pipeline.from_pretrained`"
    try:
        open_base(folder)
    except (ValueError, OSError) as error:
        return f"nothing here converts it: {error}"
    if name == "WanPipeline":
        return f"the base of a conversion: stream-t1 convert {{{','.join(GENERATORS)}}} --base {folder}"
    return f"converted by: stream-t1 convert fastvideo --checkpoint {folder}"


def _checkpoint_lines(checkpoint: Checkpoint) -> Iterable[str]:
    kind = "safetensors" if checkpoint.files[0].suffix == ".safetensors" else "a file of `torch.save`"
    yield f"{checkpoint.path}: {kind}, {checkpoint.num_bytes / 1e6:,.1f} MB"
    loras, layouts = find_loras(checkpoint), {layout.dict_name: layout for layout in find_wan_layouts(checkpoint)}
    uses = []
    for dict_name, infos in checkpoint.dicts.items():
        if dict_name in layouts:
            what, use = _wan(layouts[dict_name], infos), _use_of_wan(checkpoint, set(layouts))
        elif VIDEOALIGN_KEY in infos:
            folder = checkpoint.path.parent.parent  # the file belongs to one training step of the model
            what, use = "a VideoAlign reward model in PEFT's keys", f"converted by: {VIDEOALIGN_COMMAND} {folder}"
        elif HPSV3_KEY in infos:
            what, use = (
                "an HPSv3 reward model",
                f"converted by: stream-t1 convert hpsv3 --checkpoint {checkpoint.path}",
            )
        elif dict_name in loras:
            what, use = (
                _lora(loras[dict_name], infos),
                f"merged by: stream-t1 convert longlive --lora {checkpoint.path}",
            )
        else:
            what, use = f"keys like `{next(iter(infos))}`", "nothing here converts it"
        uses.append(use)
        num_bytes = sum(info.num_bytes for info in infos.values())
        yield f"  {dict_name or FLAT}: {_size(infos.values(), num_bytes)}; {what}"
    if (checkpoint.path / "reward_config.json").is_file():
        uses = ["a converted reward, which loads as it is: `Reward.from_pretrained`"]
    for use in dict.fromkeys(uses):
        yield f"  {use}"


def _use_of_wan(checkpoint: Checkpoint, dict_names: set[str]) -> str:
    """Names the converters that take it: by the name under which it was published, else by the layout."""
    if checkpoint.path.is_dir():
        return "a component of a diffusers folder; inspect the folder that it lies in"
    of_files = {name: generator for name, generator in GENERATORS.items() if generator.file}
    published = [name for name, generator in of_files.items() if checkpoint.path.name == Path(generator.file).name]
    by_layout = [name for name, generator in of_files.items() if generator.dicts[0] in dict_names]
    names = published or by_layout or list(of_files)
    return f"converted by: stream-t1 convert {' or '.join(names)} --checkpoint {checkpoint.path}"


def _wan(layout: WanLayout, infos: Mapping[str, TensorInfo]) -> str:
    width, channels = infos[layout.keys[HALLMARK]].shape[:2]
    num_layers = len({key.split(".")[1] for key in layout.keys if key.startswith("blocks.")})
    names = "diffusers'" if any(".attn1." in key for key in layout.keys.values()) else "original"
    return (
        f"a Wan transformer of {num_layers} layers, width {width}, {channels} channels, under {names} keys like "
        f"`{layout.keys[HALLMARK]}`"
    )


def _lora(modules: Mapping[str, Mapping[str, str]], infos: Mapping[str, TensorInfo]) -> str:
    ranks = sorted({infos[kinds["down"]].shape[0] for kinds in modules.values() if "down" in kinds})
    rank = f" of rank {', '.join(map(str, ranks))}" if ranks else " of whole differences"
    return f"a LoRA{rank} on {len(modules)} modules, such as `{next(iter(modules))}`"


def _size(infos: Iterable[TensorInfo], num_bytes: int) -> str:
    infos = list(infos)
    dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in infos})
    parameters = sum(info.num_parameters for info in infos)
    return f"{len(infos)} tensors, {parameters:,} parameters, {' and '.join(dtypes)}, {num_bytes / 1e6:,.1f} MB"
