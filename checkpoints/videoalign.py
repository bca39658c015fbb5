"""Conversion of VideoAlign from its authors' folder: whole models, and adapters over Qwen2-VL."""

import math
from collections.abc import Mapping
from pathlib import Path

from ..rewards.qwen2_vl import ADAPTER_PREFIX, BASE_LAYER
from ..rewards.videoalign import DIMENSIONS, MIN_PIXELS, REWARD_TOKENS, VideoAlignReward
from .cards import Conversion
from .reading import open_checkpoint, read_json
from .rewards import OriginalWeights, RewardPlan, find_base, write_reward
from .sources import Source, find_folder
from .templates import TemplateOrigin, read_template
from .writing import check_target

CHECKPOINT = "KlingTeam/VideoReward"
BASE = "Qwen/Qwen2-VL-2B-Instruct"
TEMPLATE = TemplateOrigin(
    title="VideoAlign",
    file="prompt_template.py",
    formatted="DETAILED_PROMPT_WITH_SPECIAL_TOKEN",
    appended=None,
    sha256="fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
    how_to_get="Get it with `git clone https://github.com/KlingTeam/VideoAlign`, and give the folder, or its "
    "prompt_template.py, as the template.",
)
HEAD = "rm_head.weight"
WHOLE, ADAPTER, OTHERS = "model.pth", "adapter_model.safetensors", "non_lora_state_dict.pth"
ADAPTER_CONFIG = "adapter_config.json"  # PEFT's, beside the weights
# Settings that the model was trained with and this reward implements; other values would mean other input.
EXPECTED = {
    "data_config": {
        "prompt_template_type": "detailed_special",
        "eval_dim": list(DIMENSIONS),
        "sample_type": "uniform",
        "num_frames": None,
    },
    "model_config": {"use_special_tokens": True, "output_dim": 1},
    "peft_lora_config": {"use_rslora": False},
}
OPTIONAL = (("data_config", "fps"), ("peft_lora_config", "lora_alpha"))  # numbers that may be absent or null
NORMALIZATION = tuple(f"{name}_{kind}" for name in DIMENSIONS for kind in ("mean", "std"))  # of `inference_config`


def convert_videoalign(
    checkpoint: str | Path,
    template_source: str | Path,
    output: str | Path,
    *,
    base: str | Path = BASE,
    accept_changed_template: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Writes a folder that `VideoAlignReward.from_pretrained` loads, its LoRA merged in float32.

    Args:
        checkpoint: the authors' folder, with `model_config.json` and `checkpoint-*` (the last of several is taken), or
            its Hub id; they published it as `videoalign.CHECKPOINT`.
        template_source: a clone of the authors' repository, or its `prompt_template.py`: the prompt template is read
        from it, and none of its code is run.
        output: the folder to make; it appears once it is complete.
        base: folder or Hub id of the Qwen2-VL that VideoAlign was tuned from, for its config and tokenizer; for its
            weights too where `checkpoint` holds an adapter.
        accept_changed_template: accepts a template other than the one that the weights were trained with.
        overwrite: replaces a folder at `output` if every file in it is as this project wrote it.

    Raises:
        ValueError: the files do not fit each other, or are of another model; nothing was written.
        OSError: something is absent, can't be downloaded, or does not fit on the disk; nothing is left behind.
    """
    check_target(
        output, overwrite=overwrite, inputs=(checkpoint, template_source, base)
    )  # before anything is downloaded
    template = read_template(template_source, TEMPLATE, accept_changed=accept_changed_template)
    source = find_folder(
        checkpoint,
        ["model_config.json", *(f"checkpoint-*/{file}" for file in (WHOLE, ADAPTER, OTHERS, ADAPTER_CONFIG))],
    )
    config = read_model_config(source)
    step = last_step(source)
    alpha = lora_alpha(step, config["peft_lora_config"].get("lora_alpha"), f"{source.name}/{step.name}")
    base_source = find_base(base, with_weights=not (step / WHOLE).is_file())
    weights = _original_weights(step, base_source, f"{source.name}/{step.name}", alpha)
    plan = RewardPlan(
        kind=VideoAlignReward.kind,
        modality="video",
        reward_tokens=REWARD_TOKENS,
        constants={
            "sample_fps": config["data_config"].get("fps") or 2.0,
            "min_pixels": MIN_PIXELS,
            "max_pixels": config["data_config"]["max_frame_pixels"],
            "normalization": normalization(config["inference_config"]),
        },
        weights=weights,
        template=template,
        base=base_source,
    )
    return write_reward(plan, output, overwrite=overwrite)


def read_model_config(source: Source) -> Mapping[str, Mapping]:
    """Reads the authors' `model_config.json`.

    Raises:
        ValueError: it is absent, damaged, or of a model whose input is not made as this reward makes it.
    """
    path = source.path / "model_config.json"
    if not path.is_file():
        raise ValueError(f"{source.name} is not a VideoAlign folder: it has no model_config.json.")
    config = read_json(path)
    config = {section: config.get(section) for section in (*EXPECTED, "inference_config")}
    for section, values in config.items():
        if not isinstance(values, dict | None):
            raise ValueError(
                f"{source.name}/model_config.json has {values!r} as {section}; it must be an object, {{...}}."
            )
    config |= {section: config[section] or {} for section in EXPECTED}
    for section, values in EXPECTED.items():
        for name, expected in values.items():
            given = config[section].get(name, expected)
            if given != expected:
                raise ValueError(
                    f"{source.name}/model_config.json has {name} = {given!r} in {section}; only {expected!r} is known "
                    "here, as in the published VideoAlign."
                )
    _check_numbers(config, f"{source.name}/model_config.json")
    return config


def last_step(source: Source) -> Path:
    """The folder `checkpoint-N` with the highest N.

    Raises:
        ValueError: there is none.
    """
    steps = {
        int(path.name.removeprefix("checkpoint-")): path
        for path in source.path.glob("checkpoint-*")
        if path.name.removeprefix("checkpoint-").isdigit()
    }
    if not steps:
        raise ValueError(f"{source.name} has no folder checkpoint-N with {WHOLE}, or with {ADAPTER} and {OTHERS}.")
    return steps[max(steps)]


def lora_alpha(step: Path, alpha: float | None, name: str) -> float | None:
    """Alpha of the adapter in a folder, from `model_config.json` or from PEFT's config beside the weights.

    Raises:
        ValueError: the two differ, or PEFT's has settings that are unknown here.
    """
    path = step / ADAPTER_CONFIG
    if not path.is_file():
        return alpha
    config = read_json(path)
    unknown = [setting for setting in ("use_rslora", "use_dora", "alpha_pattern") if config.get(setting)]
    said = config.get("lora_alpha", alpha)
    if unknown or said != (said if alpha is None else alpha):
        what = f"sets {', '.join(unknown)}" if unknown else f"has alpha {said}, and model_config.json {alpha}"
        raise ValueError(f"{name}/{ADAPTER_CONFIG} {what}; that is not known here.")
    if said is not None and not (_is_number(said) and said > 0):
        raise ValueError(f"{name}/{ADAPTER_CONFIG} has lora_alpha = {said!r}; it must be a number above 0.")
    return said


def _original_weights(step: Path, base: Source, name: str, lora_alpha: float | None) -> OriginalWeights:
    """Returns the weights of a whole model, or those of an adapter over its base.

    Raises:
        ValueError: they are no VideoAlign reward.
    """
    if (step / WHOLE).is_file():
        weights = OriginalWeights.of_file(open_checkpoint(step / WHOLE), f"{name}/{WHOLE}", lora_alpha)
    else:
        weights = adapter_weights(step, base, name, lora_alpha)
    if not any(key.endswith(HEAD) for key in weights.tensors):
        is_hpsv3 = "rm_head.0.weight" in weights.tensors
        what = "an HPSv3 reward; convert it as `hpsv3`" if is_hpsv3 else "no VideoAlign reward"
        raise ValueError(f"{weights.name} is {what}: it has no {HEAD}.")
    return weights


def adapter_weights(step: Path, base: Source, name: str, lora_alpha: float | None) -> OriginalWeights:
    """Weights of the base, those tuned in full over it, and the LoRA, under the keys of a whole model.

    Raises:
        ValueError: a file is missing, one holds no LoRA, or the embeddings of the reward tokens are in none of them.
    """
    absent = [file for file in (ADAPTER, OTHERS) if not (step / file).is_file()]
    if absent:
        raise ValueError(f"{name} has no {WHOLE}, and no {' and no '.join(absent)} either.")
    tensors = {}
    below, others, adapter = (open_checkpoint(path) for path in (base.path, step / OTHERS, step / ADAPTER))
    for key in below.dicts[""]:
        tensors[ADAPTER_PREFIX + key] = (below, "", key)
    tuned = others.dicts.get("", {})
    for key in tuned:
        tensors[key.replace(BASE_LAYER, ".")] = (others, "", key)
    if not any(key.endswith("embed_tokens.weight") for key in tuned):
        raise ValueError(f"{name}/{OTHERS} has no embeddings, and the base knows no reward tokens.")
    if not any(".lora_" in key for key in adapter.dicts.get("", {})):
        raise ValueError(f"{name}/{ADAPTER} holds no LoRA.")
    for key in adapter.dicts[""]:
        tensors[
            key.replace("lora_A.weight", "lora_A.default.weight").replace("lora_B.weight", "lora_B.default.weight")
        ] = (
            adapter,
            "",
            key,
        )
    return OriginalWeights(name, f"an adapter over {base.name}", tensors, lora_alpha)


def normalization(inference_config: Mapping[str, float] | None) -> dict[str, tuple[float, float]]:
    """Mean and deviation of each dimension; without an inference config the originals leave scores as they are."""
    if inference_config is None:
        return {name: (0.0, 1.0) for name in DIMENSIONS}
    return {name: (inference_config[f"{name}_mean"], inference_config[f"{name}_std"]) for name in DIMENSIONS}


def _check_numbers(config: Mapping[str, Mapping | None], path: str) -> None:
    """Checks that the numbers that the reward needs are present and valid."""
    wanted = [("data_config", "max_frame_pixels")]
    wanted += [(section, name) for section, name in OPTIONAL if config[section].get(name) is not None]
    if config["inference_config"] is not None:
        wanted += [("inference_config", name) for name in NORMALIZATION]
    for section, name in wanted:
        if name not in config[section]:
            raise ValueError(f"{path} says no {name} in {section}.")
        value = config[section][name]
        if not _is_number(value) or (value <= 0 and not name.endswith("_mean")):
            wish = "a number" if name.endswith("_mean") else "a number above 0"
            raise ValueError(f"{path} has {name} = {value!r} in {section}; it must be {wish}.")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
