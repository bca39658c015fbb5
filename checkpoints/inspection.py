"""Descriptions of files and folders in words: layout, size and dtype, and what converts them."""

import shlex
from collections.abc import Iterable, Mapping
from pathlib import Path

from ..loaders.folder import PIPELINE
from .base import open_base
from .layouts import GENERATORS, WAN_BASE
from .lora import find_loras
from .reading import Checkpoint, TensorInfo, open_checkpoint, read_json
from .sources import is_hub_id
from .wan import FLAT, HALLMARK, WanLayout, find_wan_layouts

VIDEOALIGN_KEY, HPSV3_KEY = "base_model.model.rm_head.weight", "rm_head.0.weight"  # heads of the reward models
TEMPLATES = {"hpsv3": "hpsv3-1.0.0-py3-none-any.whl", "videoalign": "VideoAlign"}  # for --template: wheel, clone


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
        return f"{path}: a VideoAlign folder\n  converted by: {_of_reward('videoalign', path)}"
    return "\n".join(_checkpoint_lines(open_checkpoint(path)))


def hub_lines(given: str) -> list[str]:
    """Describes a model on the Hub, `org/name` or `org/name:file`, without asking the Hub.

    Raises:
        FileNotFoundError: it has no such form.
    """
    hub_id, _, file = str(given).partition(":")
    if not is_hub_id(hub_id):
        raise FileNotFoundError(
            f"There is no checkpoint or other file at {given}. Give a path, or a Hub id such as {WAN_BASE}."
        )
    lines = [f"{given}: nothing on this disk; as a Hub id, of which nothing was fetched:"]
    published = [(name, made) for name, made in GENERATORS.items() if made.hub_id == hub_id]
    for name, made in published:
        lines += [
            f"  {made.title}, as its authors published it",
            f"  converted by: stream-t1 convert {name} -o {name}",
        ]
    if hub_id == WAN_BASE:
        lines += ["  Wan 2.1 text-to-video, the base of conversions", _use_as_base(hub_id)]
    if not published and hub_id != WAN_BASE:
        lines.append("  not one of the models that are known here by name")
    fetch = shlex.join(["hf", "download", hub_id, *([file] if file else [])])
    return [*lines, f"  to see what is in it, fetch it, then inspect the path that is printed: {fetch}"]


def _use_as_base(base: str) -> str:
    return f"  the base of a conversion: stream-t1 convert self-forcing -o self-forcing --base {shlex.quote(base)}"


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
        return (
            "loads as it is: `StreamT1Pipeline.from_pretrained`\n"
            f'  makes videos: stream-t1 generate "a red circle moving left" --model {_quoted(folder)}'
        )
    try:
        open_base(folder)
    except (ValueError, OSError) as error:
        return f"nothing here converts it: {error}"
    if name == "WanPipeline":
        return _use_as_base(str(folder)).strip()
    return f"converted by: stream-t1 convert fastvideo --checkpoint {_quoted(folder)} -o fastvideo"


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
            what = "a VideoAlign reward model in PEFT's keys"
            use = f"converted by: {_of_reward('videoalign', folder)}"
        elif HPSV3_KEY in infos:
            what, use = "an HPSv3 reward model", f"converted by: {_of_reward('hpsv3', checkpoint.path)}"
        elif dict_name in loras:
            what = _lora(loras[dict_name], infos)
            use = f"merged by: stream-t1 convert longlive --lora {_quoted(checkpoint.path)} -o longlive"
        else:
            what, use = f"keys like `{next(iter(infos))}`", "nothing here converts it"
        uses += use.splitlines()
        num_bytes = sum(info.num_bytes for info in infos.values())
        yield f"  {dict_name or FLAT}: {_size(infos.values(), num_bytes)}; {what}"
    if (checkpoint.path / "reward_config.json").is_file():
        is_image = read_json(checkpoint.path / "reward_config.json").get("kind") == "hpsv3"
        option = "--image-reward" if is_image else "--video-reward"
        uses = [
            f'searched by: stream-t1 generate "a red circle moving left" {option} {_quoted(checkpoint.path)}',
            "a converted reward, which loads as it is: `Reward.from_pretrained`",
        ]
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
    return "\n".join(
        f"converted by: stream-t1 convert {name} --checkpoint {_quoted(checkpoint.path)} -o {name}" for name in names
    )


def _of_reward(name: str, checkpoint: Path) -> str:
    return f"stream-t1 convert {name} --checkpoint {_quoted(checkpoint)} --template {TEMPLATES[name]} -o {name}"


def _quoted(path: Path) -> str:
    """Quotes a path for a shell, and never as an option."""
    return shlex.quote(f"./{path}" if str(path).startswith("-") else str(path))


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
