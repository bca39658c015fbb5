"""Conversion of published streaming generators to folders that `from_pretrained` loads.

A conversion never holds a whole model: keys and shapes are checked first, then the weights go shard by shard from the
mapped file to the new one, each tensor with its LoRA merged on the way.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import FlowMatchEulerDiscreteScheduler, WanTransformer3DModel

from ..loaders.folder import copy_code, model_index
from ..search.geometry import check_chunk_multiple
from ..search.policy_config import policy_config
from .base import PATTERNS, Base, open_base, place_components
from .cards import Conversion, Origin, generator_card, hub_license
from .layouts import GENERATORS, WAN_BASE, Generator
from .lora import Lora, open_lora, write_lora
from .reading import Checkpoint, TensorInfo, check_keys, open_checkpoint, read_json
from .sources import Source, file_sha256, find_file, find_folder, is_hub_id
from .wan import WanLayout, choose_wan_layout
from .writing import DIFFUSERS_STEM, WrittenWeights, check_free_space, check_target, new_folder, write_shards

READ_AT_ONCE = 16  # tensors; opening a file for every one would take longer than reading it
LORA_DICT = "generator_lora"  # the one of several LoRAs in a file that belongs to the generator


def convert_longlive(
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    lora: str | Path | None = GENERATORS["longlive"].lora,
    **options: object,
) -> Conversion:
    """Converts LongLive 1.0 (Yang et al. 2025): a base and its LoRA, merged, or with `merge_lora=False` beside it.

    Arguments are those of `convert_generator`.
    """
    return convert_generator("longlive", output, checkpoint, lora=lora, **options)


def convert_self_forcing(output: str | Path, checkpoint: str | Path | None = None, **options: object) -> Conversion:
    """Converts Self-Forcing (Huang et al. 2025). Arguments are those of `convert_generator`."""
    return convert_generator("self-forcing", output, checkpoint, **options)


def convert_reward_forcing(output: str | Path, checkpoint: str | Path | None = None, **options: object) -> Conversion:
    """Converts Reward Forcing (Lu et al. 2025). Arguments are those of `convert_generator`."""
    return convert_generator("reward-forcing", output, checkpoint, **options)


def convert_causal_forcing(output: str | Path, checkpoint: str | Path | None = None, **options: object) -> Conversion:
    """Converts Causal Forcing, the chunk-wise model of four steps. Arguments are those of `convert_generator`."""
    return convert_generator("causal-forcing", output, checkpoint, **options)


def convert_fastvideo(output: str | Path, checkpoint: str | Path | None = None, **options: object) -> Conversion:
    """Converts FastVideo's causal Wan models: diffusers' folders and keys under class names that diffusers lacks.

    Arguments are those of `convert_generator`; the folder is its own base, and its config gives window and sinks.
    """
    return convert_generator("fastvideo", output, checkpoint, **options)


def convert_generator(
    name: str,
    output: str | Path,
    checkpoint: str | Path | None = None,
    *,
    base: str | Path | None = None,
    lora: str | Path | None = None,
    lora_alpha: float | None = None,
    merge_lora: bool = True,
    layout: str | None = None,
    dtype: torch.dtype | None = None,
    link: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Writes the folder of a generator: transformer, components of the base, code, `model_index.json`, card.

    Args:
        name: of `layouts.GENERATORS`, which has the settings of its training.
        output: the folder to make; it appears once it is complete.
        checkpoint: a file, `hub_id:file`, or a diffusers folder or its Hub id. Default: what the authors published.
        base: folder or Hub id of Wan 2.1 text-to-video in diffusers' layout, for text encoder, tokenizer, VAE and the
            transformer's config. Default: `checkpoint` where that is such a folder, else `layouts.WAN_BASE`.
        lora: a file or `hub_id:file` with a LoRA under the names of PEFT, diffusers, ComfyUI or kohya's trainers, or
        one that an earlier conversion kept apart.
        lora_alpha: of its training, above 0; default: what the file or an `adapter_config.json` beside it says, else
            its rank.
        merge_lora: into the weights, in float32; else it is written beside them, for `load_lora_weights(output)`,
            which must be able to apply it.
        layout: the dict of the file that holds the weights, or "flat". Default: the first that is there of those
            that the authors use.
        dtype: of the written weights, except those that diffusers keeps in float32. Default: as in the checkpoint.
        link: the base's files are linked instead of copied, which takes no room; same disk only.
        overwrite: replaces a folder at `output` if every file in it is as this project wrote it.

    Raises:
        ValueError: the files do not fit each other or the model; nothing was written.
        OSError: something is absent, can't be downloaded, or does not fit on the disk; nothing is left behind.
    """
    begin = time.perf_counter()
    if lora is None and (lora_alpha is not None or not merge_lora):
        raise ValueError("A LoRA's alpha or place is given without a LoRA; name one, or leave these options out.")
    given = tuple(path for path in (checkpoint, base, lora) if path is not None)
    check_target(output, overwrite=overwrite, inputs=given)  # before anything is downloaded
    plan = _plan(name, checkpoint, base, lora, lora_alpha, layout, dtype)
    apart = None if merge_lora else plan.lora.for_diffusers()
    with new_folder(output, overwrite=overwrite, inputs=plan.inputs) as folder:
        num_bytes = plan.num_bytes + sum(tensor.nbytes for tensor in (apart or {}).values())
        check_free_space(output, num_bytes + (0 if link else plan.base.num_bytes))
        weights = _write_parts(folder, plan, apart, link=link)
        conversion = Conversion(
            folder=Path(output),
            origins=_origins(plan, merge_lora),
            layout=str(plan.layout),
            weights=replace(weights, files=tuple(Path(output) / "transformer" / file.name for file in weights.files)),
            hashes={file.name: file_sha256(file) for file in weights.files},
            is_lora_apart=apart is not None,
            seconds=time.perf_counter() - begin,
        )
        _write_card(folder, plan, conversion)
    return conversion


@dataclass(frozen=True)
class _Plan:
    """A checked conversion: all parts fit each other."""

    generator: Generator
    source: Source
    checkpoint: Checkpoint
    layout: WanLayout
    base: Base
    model: WanTransformer3DModel  # on the meta device: config and shapes
    infos: Mapping[str, TensorInfo]  # of the weights to write, by diffusers' keys
    lora: Lora | None
    lora_source: Source | None

    @property
    def inputs(self) -> tuple[Path, ...]:
        sources = (self.source, self.base.source, self.lora_source)
        return tuple(source.path for source in sources if source is not None)

    @property
    def num_bytes(self) -> int:
        """Bytes of the transformer on the disk."""
        return sum(info.num_bytes for info in self.infos.values())


def _plan(
    name: str,
    checkpoint: str | Path | None,
    base: str | Path | None,
    lora: str | Path | None,
    lora_alpha: float | None,
    layout: str | None,
    dtype: torch.dtype | None,
) -> _Plan:
    """Finds all parts and checks all that can be checked without reading a weight."""
    generator = GENERATORS[name]
    checkpoint = generator.checkpoint if checkpoint is None else checkpoint
    source, weights = _find_checkpoint(checkpoint)
    if base is None:
        base = WAN_BASE if weights == source.path else checkpoint
    opened_base = open_base(base)
    if name == "fastvideo" and (weights / "config.json").is_file():
        generator = _as_configured(generator, read_json(weights / "config.json"))
    model = opened_base.transformer()
    shapes = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()}
    opened = open_checkpoint(weights)
    found = choose_wan_layout(opened, generator.dicts, layout)
    infos = {key: opened.dicts[found.dict_name][original] for key, original in found.keys.items()}
    check_keys(infos, shapes, path=source.name, layout=str(found))
    if dtype is not None:
        infos = {key: TensorInfo(info.shape, _written_dtype(key, dtype)) for key, info in infos.items()}
    lora_source = None if lora is None else find_file(lora)
    adapter = None
    if lora_source is not None:
        opened_lora = open_checkpoint(lora_source.path)
        adapter = open_lora(lora_source, opened_lora, shapes, alpha=lora_alpha, preferred=LORA_DICT)
    return _Plan(generator, source, opened, found, opened_base, model, infos, adapter, lora_source)


def _find_checkpoint(given: str | Path) -> tuple[Source, Path]:
    """Finds a checkpoint and its weights: the file itself, or the transformer's folder in a diffusers folder."""
    if Path(given).is_dir() or (not Path(given).exists() and is_hub_id(given)):
        source = find_folder(given, [*PATTERNS, "transformer/*.safetensors", "transformer/*.json"])
        return source, source.path / "transformer"
    source = find_file(given)
    return source, source.path


def _as_configured(generator: Generator, config: Mapping[str, object]) -> Generator:
    """Applies the chunks, window and sinks that FastVideo's folders may give in the transformer's config.

    Raises:
        ValueError: they are not numbers of frames, or not in whole chunks.
    """
    for name in ("num_frames_per_block", "sink_size", "local_attn_size"):
        if not isinstance(config.get(name), int | None):
            raise ValueError(f"transformer/config.json has {name} = {config[name]!r}; it must be a number of frames.")
    chunk, sink = config.get("num_frames_per_block") or generator.chunk_frames, config.get("sink_size") or 0
    window = config.get("local_attn_size") or -1  # no local window: all frames of a training video
    window = window if window > 0 else generator.window_frames
    check_chunk_multiple("local_attn_size", window, chunk)
    check_chunk_multiple("sink_size", sink, chunk)
    memory = "StaticSink" if sink else "SlidingWindow"
    return replace(generator, chunk_frames=chunk, window_frames=window, sink_frames=sink, memory=memory)


def _written_dtype(key: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype of a written weight: float32 for those that diffusers always loads in float32."""
    keeps = set(WanTransformer3DModel._keep_in_fp32_modules) & set(key.split("."))
    return torch.float32 if keeps else dtype


def _write_transformer(folder: Path, plan: _Plan, lora: Lora | None) -> WrittenWeights:
    def read(keys: list[str]) -> dict[str, torch.Tensor]:
        """Reads a shard."""
        groups = (keys[begin : begin + READ_AT_ONCE] for begin in range(0, len(keys), READ_AT_ONCE))
        return {key: tensor for group in groups for key, tensor in _written_tensors(plan, group, lora).items()}

    weights = write_shards(folder, plan.infos, read, stem=DIFFUSERS_STEM)
    plan.model.save_config(folder)
    return weights


def _written_tensors(plan: _Plan, keys: list[str], lora: Lora | None) -> dict[str, torch.Tensor]:
    """Returns some weights as they are to be written: merged and cast.

    All are copies: a single mapped tensor keeps in memory everything that was read of its file.
    """
    originals = plan.checkpoint.read((plan.layout.keys[key] for key in keys), dict_name=plan.layout.dict_name)
    weights = {key: originals[plan.layout.keys[key]] for key in keys}
    merged = {} if lora is None else lora.merged(weights)
    weights = weights | merged
    return {key: weight.to(plan.infos[key].dtype, copy=key not in merged) for key, weight in weights.items()}


def _write_parts(folder: Path, plan: _Plan, apart: dict[str, torch.Tensor] | None, *, link: bool) -> WrittenWeights:
    """Writes all but the card.

    Args:
        apart: a LoRA to write beside the weights; None merges the plan's.
    """
    weights = _write_transformer(folder / "transformer", plan, plan.lora if apart is None else None)
    if apart is not None:
        write_lora(apart, folder)
    place_components(plan.base, folder, link=link)
    _write_pipeline(folder, plan)
    return weights


def _write_pipeline(folder: Path, plan: _Plan) -> None:
    """Writes scheduler, `model_index.json` and code."""
    generator = plan.generator
    FlowMatchEulerDiscreteScheduler(shift=generator.shift).save_pretrained(folder / "scheduler")
    index = model_index(
        **plan.base.components,
        chunk_frames=generator.chunk_frames,
        window_frames=generator.window_frames,
        sink_frames=generator.sink_frames,
        denoising_steps=list(generator.denoising_steps),
        fps=generator.fps,
        memory=policy_config({"policy": generator.memory}),
    )
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    copy_code(folder)


def _write_card(folder: Path, plan: _Plan, conversion: Conversion) -> None:
    hub_id = plan.source.hub_id
    card = generator_card(
        conversion,
        plan.generator,
        base=plan.base.source.hub_id,
        license_on_hub=None if hub_id is None else hub_license(hub_id),
    )
    card.save(folder / "README.md")


def _origins(plan: _Plan, merged: bool) -> tuple[Origin, ...]:
    """Sources of the parts, with hashes except for the base."""
    origins = [Origin("transformer", plan.source.name, _hashes(plan.checkpoint))]
    if plan.lora is not None:
        role = f"LoRA, {'merged in float32' if merged else 'kept apart'}: {plan.lora}"
        origins.append(Origin(role, plan.lora_source.name, _hashes(plan.lora.checkpoint)))
    return (*origins, Origin("text encoder, tokenizer, VAE", plan.base.source.name, {}))


def _hashes(checkpoint: Checkpoint) -> dict[str, str]:
    return {file.name: file_sha256(file) for file in checkpoint.files}
