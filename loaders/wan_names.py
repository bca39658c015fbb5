"""Parameter names of the original Wan transformer and of models trained from it, mapped to diffusers' names."""

import re

# Put before a key by trainers: the module that held the generator, and FSDP's wrapper anywhere in the name.
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


def diffusers_name(name: str, prefixes: tuple[str, ...] = PREFIXES) -> str:
    """Returns a parameter's name in diffusers; a diffusers name stays as it is."""
    name = without_prefixes(name, prefixes)
    for pattern, replacement in RENAMES:
        name = re.sub(pattern, replacement, name)
    return name


def without_prefixes(name: str, prefixes: tuple[str, ...] = PREFIXES) -> str:
    """Removes `WRAPPER` anywhere in a name, and any number of `prefixes` at its front."""
    name = name.replace(WRAPPER, "")
    while prefix := next((prefix for prefix in prefixes if name.startswith(prefix)), None):
        name = name.removeprefix(prefix)
    return name
