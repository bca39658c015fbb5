"""Files as the models' authors publish them, made of the reference transformer and toy components."""

from pathlib import Path

import torch
from conftest import REFERENCE, toy_text_encoder, toy_vae
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from safetensors.torch import load_file
from transformers import T5TokenizerFast

from stream_t1.demo import CHECKPOINT

FSDP = "_fsdp_wrapped_module."


def original() -> dict[str, torch.Tensor]:
    """The reference transformer under its original keys."""
    return load_file(REFERENCE / "wan_original.safetensors")


def prefixed(prefix: str, state: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    return {prefix + key: tensor for key, tensor in (original() if state is None else state).items()}


def other_weights() -> dict[str, torch.Tensor]:
    """Weights of the same shapes, which must not be taken."""
    return {key: torch.zeros_like(tensor) for key, tensor in original().items()}


def linear_names() -> list[str]:
    """Every linear layer of every block, by its original name."""
    weights = [key for key, tensor in original().items() if key.startswith("blocks.") and tensor.ndim == 2]
    return [key.removesuffix(".weight") for key in weights if key.endswith(".weight")]


def random_lora(rank: int = 8, names: list[str] | None = None) -> dict[str, torch.Tensor]:
    """A LoRA in PEFT's keys, as `get_peft_model_state_dict` names them."""
    generator, state = torch.Generator().manual_seed(11), {}
    for name in linear_names() if names is None else names:
        out_features, in_features = original()[f"{name}.weight"].shape
        module = f"base_model.model.{name}"
        state[f"{module}.lora_A.weight"] = 0.05 * torch.randn(rank, in_features, generator=generator)
        state[f"{module}.lora_B.weight"] = 0.05 * torch.randn(out_features, rank, generator=generator)
    return state


def save_base(folder: Path, transformer: WanTransformer3DModel) -> Path:
    """A `WanPipeline` folder around a transformer, with the scheduler of the published ones."""
    pipe = WanPipeline(
        tokenizer=T5TokenizerFast.from_pretrained(CHECKPOINT / "tokenizer"),
        text_encoder=toy_text_encoder(transformer.config.text_dim),
        transformer=WanTransformer3DModel.from_config(transformer.config),
        vae=toy_vae(z_dim=transformer.config.in_channels),
        scheduler=UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0),
    )
    pipe.save_pretrained(folder)
    return folder
