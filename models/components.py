"""Checks of the models that a pipeline is given."""

import torch
from transformers import PreTrainedTokenizerBase

KINDS = {
    "tokenizer": "a tokenizer of transformers",
    "text_encoder": "a UMT5EncoderModel",
    "transformer": "a WanTransformer3DModel",
    "vae": "an AutoencoderKLWan",
}


def check_model(name: str, value: object) -> None:
    """Checks that a model of one of these names is of its kind; other names are ignored.

    Raises:
        TypeError: it is of another kind.
    """
    if name not in KINDS:
        return
    kind = PreTrainedTokenizerBase if name == "tokenizer" else torch.nn.Module
    is_other = name == "vae" and not hasattr(getattr(value, "config", None), "latents_mean")
    if not isinstance(value, kind) or is_other:
        given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise TypeError(f"`{name}` is {given}; it must be {KINDS[name]}, or None.")


def check_models_fit(transformer: torch.nn.Module | None, vae: torch.nn.Module | None) -> None:
    """Checks that a transformer and a VAE have the same latents.

    Raises:
        ValueError: they have other numbers of channels.
    """
    if None not in (transformer, vae) and transformer.config.in_channels != vae.config.z_dim:
        raise ValueError(
            f"`transformer` reads {transformer.config.in_channels} channels and `vae` makes {vae.config.z_dim}: they "
            "are of different models, or the transformer is of an image-to-video one."
        )
