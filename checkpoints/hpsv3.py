"""Conversion of HPSv3 from its authors' file."""

from pathlib import Path

from ..rewards.hpsv3 import NUM_PIXELS, REWARD_TOKENS, HPSv3Reward
from .cards import Conversion
from .reading import open_checkpoint
from .rewards import OriginalWeights, RewardPlan, find_base, write_reward
from .sources import find_file
from .templates import TemplateOrigin, read_template
from .writing import check_target

CHECKPOINT = "MizzenAI/HPSv3:HPSv3.safetensors"
BASE = "Qwen/Qwen2-VL-7B-Instruct"
TEMPLATE = TemplateOrigin(
    title="HPSv3",
    file="hpsv3/dataset/data_collator_qwen.py",
    formatted="INSTRUCTION",
    appended="prompt_with_special_token",
    sha256="f6ee57479d4e9eee76b49c00dc962e1e696a5a2b3cc32cebd9b1fa76fe27502c",
    how_to_get="Get it with `pip download hpsv3==1.0.0 --no-deps`, and give the wheel as the template.",
)
HEAD = "rm_head.0.weight"


def convert_hpsv3(
    checkpoint: str | Path,
    template_source: str | Path,
    output: str | Path,
    *,
    base: str | Path = BASE,
    accept_changed_template: bool = False,
    overwrite: bool = False,
) -> Conversion:
    """Writes a folder that `HPSv3Reward.from_pretrained` loads.

    Args:
        checkpoint: the authors' file, or `hub_id:file`; they published it as `hpsv3.CHECKPOINT`.
        template_source: the `hpsv3` wheel of PyPI, the folder of the installed package, or its
            `dataset/data_collator_qwen.py`: the prompt template is read from it, and none of its code is run.
            output: the folder to make; it appears once it is complete.
        base: folder or Hub id of the Qwen2-VL that HPSv3 was tuned from, for its config and tokenizer alone.
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
    source = find_file(checkpoint)
    weights = OriginalWeights.of_file(open_checkpoint(source.path), source.name)
    if HEAD not in weights.tensors:
        what = "a VideoAlign reward; convert it as `videoalign`" if _is_videoalign(weights) else "no HPSv3 reward"
        raise ValueError(f"{source.name} is {what}: it has no {HEAD}.")
    plan = RewardPlan(
        kind=HPSv3Reward.kind,
        modality="image",
        reward_tokens=REWARD_TOKENS,
        constants={"num_pixels": NUM_PIXELS},
        weights=weights,
        template=template,
        base=find_base(base),
        keep_float32=("rm_head.",),
    )
    return write_reward(plan, output, overwrite=overwrite)


def _is_videoalign(weights: OriginalWeights) -> bool:
    return any(key.endswith("rm_head.weight") for key in weights.tensors)
