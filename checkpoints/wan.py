"""Key names of the original Wan transformer, and of what was trained from it, in diffusers' names."""

import re
from collections.abc import Mapping

import torch

# What trainers put before a key: the module that held the generator, and FSDP's wrapper anywhere in the name.
PREFIXES = ("model.", "module.", "generator.")
WRAPPER = "_fsdp_wrapped_module."

RENAMES = (
    (r"^time_embedding\.0\.", "condition_embedder.time_embedder.linear_1."),
    (r"^time_embedding\.2\.", "condition_embedder.time_embedder.linear_2."),
    (r"^text_embedding\.0\.", "condition_embedder.text_embedder.linear_1."),
    (r"^text_embedding\.2\.", "condition_embedder.text_embedder.linear_2."),
    (r"^time_projection\.1\.", "condition_embedder.time_proj."),
    (r"^head\.head\.", "proj_out."),
    (r"^head\.modulation$", "scale_shift_table"),
    (r"^(blocks\.\d+)\.modulation$", r"\1.scale_shift_table"),
    (r"^(blocks\.\d+)\.self_attn\.", r"\1.attn1."),
    (r"^(blocks\.\d+)\.cross_attn\.", r"\1.attn2."),
    (r"^(blocks\.\d+\.attn[12])\.([qkv])\.", r"\1.to_\2."),
    (r"^(blocks\.\d+\.attn[12])\.o\.", r"\1.to_out.0."),
    (r"^(blocks\.\d+\.ffn)\.0\.", r"\1.net.0.proj."),
    (r"^(blocks\.\d+\.ffn)\.2\.", r"\1.net.2."),
    (r"^(blocks\.\d+)\.norm3\.", r"\1.norm2."),
)


def convert_wan_transformer(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Original Wan keys to those of diffusers' `WanTransformer3DModel`; the tensors are the same objects.

    Args:
        state_dict: with or without the trainers' prefixes (`model.`, `module.`, `generator.`,
            `_fsdp_wrapped_module.`).

    Raises:
        ValueError: two keys are one after their prefixes are gone.
    """
    converted: dict[str, torch.Tensor] = {}
    for original, tensor in state_dict.items():
        key = original.replace(WRAPPER, "")
        while key.startswith(PREFIXES):
            key = key.split(".", 1)[1]
        for pattern, replacement in RENAMES:
            key = re.sub(pattern, replacement, key)
        if key in converted:
            raise ValueError(
                f"`state_dict` has {key!r} twice, the second time as {original!r}: convert one model at a time."
            )
        converted[key] = tensor
    return converted
