"""Prompts on their way to the transformer: cleaned, cut into tokens, embedded.

Axes: B prompts, L tokens.
"""

import html
import importlib
import re

import torch
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase, UMT5EncoderModel

logger = logging.get_logger(__name__)


def check_encoding(
    tokenizer: PreTrainedTokenizerBase | None, text_encoder: UMT5EncoderModel | None, max_sequence_length: int
) -> None:
    """Checks that texts of so many tokens, a whole number of 1 or more, can be embedded.

    Raises:
        ValueError: there is no text encoder or tokenizer, or it takes fewer tokens.
        ImportError: ftfy is not installed.
    """
    if None in (text_encoder, tokenizer):
        raise ValueError("`prompt` needs a text encoder and a tokenizer; without them give `prompt_embeds`.")
    most = tokenizer.model_max_length  # of tokenizers that name none, an astronomical number
    if max_sequence_length > most:
        raise ValueError(f"`max_sequence_length` is {max_sequence_length}; it must be {most} or less.")
    _ftfy()


def embed_texts(
    texts: list[str],
    tokenizer: PreTrainedTokenizerBase,
    text_encoder: UMT5EncoderModel,
    max_sequence_length: int,
    device: torch.device,
) -> torch.Tensor:
    """Embeds texts as the transformer reads them, (B, max_sequence_length, text dim), zeros after the last token.

    What is cut off is logged, in one warning.

    Raises:
        ImportError: ftfy is not installed.
    """
    texts = [clean_text(text) for text in texts]
    _warn_of_cuts(texts, tokenizer, max_sequence_length)
    tokens = tokenizer(
        texts,
        padding="max_length",
        max_length=max_sequence_length,
        truncation=True,
        add_special_tokens=True,
        return_attention_mask=True,
    )
    read = (tokens.input_ids, tokens.attention_mask)
    ids, mask = (torch.tensor(rows, dtype=torch.int64, device=device) for rows in read)
    hidden_states = text_encoder(ids, mask).last_hidden_state
    return hidden_states.masked_fill(mask[..., None] == 0, 0.0).to(device)


def _warn_of_cuts(texts: list[str], tokenizer: PreTrainedTokenizerBase, max_sequence_length: int) -> None:
    cuts = []
    for text, ids in zip(texts, tokenizer(texts, verbose=False).input_ids, strict=True):
        if len(ids) > max_sequence_length:
            lost = tokenizer.decode(ids[max_sequence_length - 1 :], skip_special_tokens=True)
            cuts.append(f"of {len(ids)} tokens of {text[:40]!r} the end is not read: {lost!r}")
    if cuts:
        different = "; ".join(dict.fromkeys(cuts))
        logger.warning(f"`prompt` is cut at `max_sequence_length`, {max_sequence_length} tokens: {different}.")


def clean_text(text: str) -> str:
    """Text as Wan's models were trained to read it: broken encodings mended, HTML resolved, one blank between words.

    diffusers' `prompt_clean` mends encodings only where ftfy happens to be installed, so that one prompt would make
    different videos on different machines. Here ftfy is required.

    Raises:
        ImportError: ftfy is not installed.
    """
    text = html.unescape(html.unescape(_ftfy().fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def _ftfy() -> object:
    try:
        # By name: the Hub's loader would ask for a package that its `import` line names, also without any prompt.
        return importlib.import_module("ftfy")
    except ImportError as error:
        raise ImportError(
            "A `prompt` in words is read as the model's training texts were, cleaned by ftfy, which is not installed: "
            "`pip install ftfy`. `prompt_embeds` need no cleaning."
        ) from error
