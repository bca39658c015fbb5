"""What a file or folder is, said in words: its layout, size and dtype, and what converts it."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from .base import open_base
from .folder import PIPELINE
from .layouts import GENERATORS
from .lora import find_loras
from .reading import Checkpoint, TensorInfo, open_checkpoint
from .wan import FLAT, HALLMARK, find_wan_layouts

VIDEOALIGN_KEY, HPSV3_KEY = "base_model.model.rm_head.weight", "rm_head.0.weight"  # heads of the reward models


def describe(path: str | Path) -> str:
    """Some lines about a checkpoint file, a model's folder, or a component's.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: it is damaged, or nothing that holds weights.
    """
    path = Path(path)
    if (path / "model_index.json").is_file():
        return "\n".join(_pipeline_lines(path))
    return "\n".join(_checkpoint_lines(open_checkpoint(path)))


def _pipeline_lines(folder: Path) -> Iterable[str]:
    index = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list) else name
    yield f"{folder}: a diffusers folder of `{name}`"
    for component, entry in index.items():
        if not isinstance(entry, list) or len(entry) != 2 or not isinstance(entry[0], str) or component[0] == "_":
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
    for dict_name, infos in checkpoint.dicts.items():
        num_bytes = sum(info.num_bytes for info in infos.values())
        if dict_name in layouts:
            what = _wan(layouts[dict_name].keys, infos)
        elif dict_name in loras:
            what = _lora(loras[dict_name], infos)
        else:
            what = _reward(infos)
        yield f"  {dict_name or FLAT}: {_size(infos.values(), num_bytes)}; {what}"
    yield f"  {_use_of_checkpoint(checkpoint, set(layouts), bool(loras))}"


def _use_of_checkpoint(checkpoint: Checkpoint, layouts: set[str], has_lora: bool) -> str:
    published = [name for name, generator in GENERATORS.items() if checkpoint.path.name == Path(generator.file).name]
    by_layout = [name for name, generator in GENERATORS.items() if generator.dicts[0] in layouts]
    if layouts and checkpoint.path.is_file():
        names = published or [name for name in by_layout if name != "fastvideo"] or [*GENERATORS]
        return f"converted by: stream-t1 convert {' or '.join(names)} --checkpoint {checkpoint.path}"
    if layouts:
        return "a component of a diffusers folder; inspect the folder that it lies in"
    if has_lora:
        return f"merged by: stream-t1 convert longlive --lora {checkpoint.path}"
    for key, name in ((VIDEOALIGN_KEY, "videoalign"), (HPSV3_KEY, "hpsv3")):
        if any(key in infos for infos in checkpoint.dicts.values()):
            return f"converted by: stream-t1 convert {name} --checkpoint {checkpoint.path}"
    return "nothing here converts it"


def _wan(keys: Mapping[str, str], infos: Mapping[str, TensorInfo]) -> str:
    width, channels = infos[keys[HALLMARK]].shape[:2]
    num_layers = len({key.split(".")[1] for key in keys if key.startswith("blocks.")})
    names = "diffusers'" if keys.keys() <= set(infos) else "original"
    return (
        f"a Wan transformer of {num_layers} layers, width {width}, {channels} channels, under {names} keys like "
        f"`{keys[HALLMARK]}`"
    )


def _lora(modules: Mapping[str, Mapping[str, str]], infos: Mapping[str, TensorInfo]) -> str:
    ranks = sorted({infos[keys["A"]].shape[0] for keys in modules.values() if "A" in keys})
    return f"a LoRA of rank {', '.join(map(str, ranks))} on {len(modules)} modules, such as `{next(iter(modules))}`"


def _reward(infos: Mapping[str, TensorInfo]) -> str:
    if VIDEOALIGN_KEY in infos:
        return "a VideoAlign reward model in PEFT's keys"
    if HPSV3_KEY in infos:
        return "an HPSv3 reward model"
    return f"keys like `{next(iter(infos))}`"


def _size(infos: Iterable[TensorInfo], num_bytes: int) -> str:
    infos = list(infos)
    dtypes = sorted({str(info.dtype).removeprefix("torch.") for info in infos})
    parameters = sum(info.num_parameters for info in infos)
    return f"{len(infos)} tensors, {parameters:,} parameters, {' and '.join(dtypes)}, {num_bytes / 1e6:,.1f} MB"
