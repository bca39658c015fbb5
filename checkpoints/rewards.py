"""Shared part of the reward models' converters: from original weights to a folder that a reward is loaded from.

A conversion never holds a whole model: keys and shapes are checked first, then the weights go shard by shard from the
mapped file to the new one, each tensor with its LoRA merged on the way.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from transformers import AddedToken, PreTrainedTokenizerBase, Qwen2VLConfig

from ..rewards.chat import RewardChat
from ..rewards.loading import CONFIG_NAME, TEMPLATE_NAME, load_tokenizer
from ..rewards.qwen2_vl import Qwen2VLRewardModel, head_for, merged_weight, original_names, read_config
from .cards import Conversion, Origin
from .reading import Checkpoint, TensorInfo, check_keys, read_json
from .sources import Source, file_sha256, find_folder
from .templates import FoundTemplate
from .writing import TRANSFORMERS_STEM, check_free_space, new_folder, write_shards

BASE_FILES = ["config.json", "generation_config.json", "*.txt", "vocab.json", "tokenizer*", "*tokens*.json"]
EMBEDDINGS = "language_model.embed_tokens.weight"


@dataclass(frozen=True)
class OriginalWeights:
    """Weights under the originals' keys, in one file or in several that overlay each other."""

    name: str  # for messages and the record
    layout: str
    tensors: Mapping[str, tuple[Checkpoint, str, str]]  # by key: where it is, in which dict, under which key there
    lora_alpha: float | None = None

    @classmethod
    def of_file(cls, checkpoint: Checkpoint, name: str, lora_alpha: float | None = None) -> "OriginalWeights":
        """All tensors of one file; some files have them in a dict `model`, as the originals' loaders expect."""
        dict_name = "model" if "model" in checkpoint.dicts else ""
        layout = "a whole model in one file"
        keys = {key: (checkpoint, dict_name, key) for key in checkpoint.dicts.get(dict_name, {})}
        return cls(name, layout, keys, lora_alpha)

    @property
    def files(self) -> tuple[Path, ...]:
        return tuple(dict.fromkeys(file for checkpoint, _, _ in self.tensors.values() for file in checkpoint.files))

    def info(self, key: str) -> TensorInfo:
        checkpoint, dict_name, original = self.tensors[key]
        return checkpoint.dicts[dict_name][original]

    def read(self, keys: Iterable[str]) -> dict[str, torch.Tensor]:
        """Reads some tensors; every file that holds any is opened once."""
        lying: dict[tuple[int, str], list[str]] = {}
        for key in keys:
            checkpoint, dict_name, _ = self.tensors[key]
            lying.setdefault((id(checkpoint), dict_name), []).append(key)
        tensors = {}
        for (_, dict_name), held in lying.items():
            checkpoint = self.tensors[held[0]][0]
            read = checkpoint.read([self.tensors[key][2] for key in held], dict_name=dict_name)
            tensors |= {key: read[self.tensors[key][2]] for key in held}
        return tensors


@dataclass(frozen=True)
class RewardPlan:
    """Conversion of a reward model, before anything is checked."""

    kind: str  # as `Reward.kind`
    modality: str
    reward_tokens: tuple[str, ...]
    constants: Mapping[str, object]  # of the reward's config, besides the model
    weights: OriginalWeights
    template: FoundTemplate
    base: Source  # config and tokenizer of Qwen2-VL
    keep_float32: tuple[str, ...] = ()  # prefixes of the names that are written in float32


def find_base(base: str | Path, *, with_weights: bool = False) -> Source:
    """Finds the Qwen2-VL that the reward was tuned from; without its weights unless they are needed.

    Raises:
        OSError: it is absent, or can't be downloaded.
    """
    return find_folder(base, [*BASE_FILES, *(["*.safetensors", "*.safetensors.index.json"] if with_weights else [])])


def write_reward(plan: RewardPlan, output: str | Path, *, overwrite: bool = False) -> Conversion:
    """Writes the folder of a reward model; it appears once it is complete.

    Raises:
        ValueError: the files do not fit each other; nothing was written.
        OSError: something is absent, or does not fit on the disk; nothing is left behind.
    """
    begin = time.perf_counter()
    names = original_names(plan.weights.tensors)
    infos = {name: plan.weights.info(keys[0]) for name, keys in names.items()}
    base_config = _base_config(plan.base)  # before the tokenizer, which reads it too and reports less
    tokenizer = reward_tokenizer(plan.base, plan.reward_tokens)
    chat = RewardChat(tokenizer, plan.template.template, plan.reward_tokens, plan.modality)
    config = _model_config(plan, base_config, infos, chat.reward_token_ids)
    infos = {
        name: TensorInfo(info.shape, torch.float32) if name.startswith(plan.keep_float32) else info
        for name, info in infos.items()
    }

    def read(wanted: list[str]) -> dict[str, torch.Tensor]:
        held = plan.weights.read(key for name in wanted for key in names[name])
        merged = {name: merged_weight(names[name], held.__getitem__, plan.weights.lora_alpha) for name in wanted}
        return {name: tensor.to(infos[name].dtype) for name, tensor in merged.items()}

    with new_folder(output, overwrite=overwrite, inputs=(*plan.weights.files, plan.base.path)) as folder:
        check_free_space(output, sum(info.num_bytes for info in infos.values()))
        written = write_shards(folder, infos, read, stem=TRANSFORMERS_STEM)
        tokenizer.save_pretrained(folder)
        _write_json(folder / TEMPLATE_NAME, asdict(plan.template.template))
        origins = _origins(plan)
        _write_json(
            folder / CONFIG_NAME,
            {
                "kind": plan.kind,
                "reward_tokens": plan.reward_tokens,
                **plan.constants,
                "model": config,
                "converted_from": [asdict(origin) for origin in origins],
            },
        )
        return Conversion(
            folder=Path(output),
            origins=origins,
            layout=plan.weights.layout,
            weights=replace(written, files=tuple(Path(output) / file.name for file in written.files)),
            hashes={file.name: file_sha256(file) for file in written.files},
            is_lora_apart=False,
            seconds=time.perf_counter() - begin,
        )


def reward_tokenizer(base: Source, reward_tokens: tuple[str, ...]) -> PreTrainedTokenizerBase:
    """The base's tokenizer with the reward tokens after all others, where the originals added them.

    Raises:
        ValueError: the base has none, or a damaged one.
    """
    try:
        tokenizer = load_tokenizer(base.path)
    except Exception as error:  # a damaged file may raise anything in tokenizers
        raise ValueError(f"{base.name} has no tokenizer that can be read: {error}") from error
    tokens = [AddedToken(token, special=True, normalized=False) for token in reward_tokens]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.init_kwargs.pop("name_or_path", None)  # a path of this machine, where the base is a folder
    return tokenizer


def _base_config(base: Source) -> Qwen2VLConfig:
    path = base.path / "config.json"
    if not path.is_file():
        raise ValueError(f"{base.name} has no config.json; it must be a folder or Hub id of Qwen2-VL.")
    try:
        return read_config(read_json(path))
    except Exception as error:  # a wrong value may raise anything in transformers
        raise ValueError(f"{base.name} has no config.json of Qwen2-VL: {error}") from error


def _model_config(
    plan: RewardPlan, config: Qwen2VLConfig, infos: Mapping[str, TensorInfo], reward_token_ids: list[int]
) -> dict:
    """Returns the model's config for the folder; checks that it fits the weights and the tokenizer."""
    if EMBEDDINGS not in infos:
        raise ValueError(
            f"{plan.weights.name} has no embeddings of tokens; it is not a complete Qwen2-VL reward model."
        )
    config.text_config.vocab_size = infos[EMBEDDINGS].shape[0]  # the originals cut it to the tokenizer's length
    if max(reward_token_ids) >= config.text_config.vocab_size:
        raise ValueError(
            f"The tokenizer of {plan.base.name} puts the reward tokens at {reward_token_ids}, and the weights know "
            f"{config.text_config.vocab_size} tokens: it is not the Qwen2-VL that they were tuned from."
        )
    shapes = {name: info.shape for name, info in infos.items()}
    with torch.device("meta"):
        model = Qwen2VLRewardModel(config, reward_token_ids, plan.modality, head_for(shapes))
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    check_keys(infos, expected, path=plan.weights.name, layout=f"{plan.weights.layout}, of {plan.base.name}")
    described = config.to_dict()
    for part in (described, described["text_config"], described["vision_config"]):
        for volatile in ("_name_or_path", "transformers_version"):
            part.pop(volatile, None)
    return described


def _origins(plan: RewardPlan) -> tuple[Origin, ...]:
    weights = {file.name: file_sha256(file) for file in plan.weights.files}
    template = plan.template
    return (
        Origin("weights", plan.weights.name, weights),
        Origin("config and tokenizer", plan.base.name, {}),
        Origin("prompt template", template.file, {template.file: template.sha256}),
    )


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
