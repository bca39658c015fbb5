"""A prompt as the text encoder and the transformer read it, and the prompts that the steps of one chunk read.

Axes: L tokens.
"""

import html
import importlib
import re
from dataclasses import dataclass, field

import torch

from . import memory


@dataclass(frozen=True, eq=False)
class Prompt:
    """Embedded text, with the cross-attention keys and values that its first forward makes of it."""

    embeds: torch.Tensor  # (1, L, text dim)
    memory: "memory.PromptMemory" = field(default_factory=memory.PromptMemory)

    def changed(self, embeds: torch.Tensor) -> "Prompt":
        """The prompt of other embeddings; this one when they are equal."""
        embeds = embeds.to(self.embeds)
        return self if torch.equal(embeds, self.embeds) else Prompt(embeds)


def clean_text(text: str) -> str:
    """Text as Wan's models were trained to read it: broken encodings mended, HTML resolved, one blank between words.

    diffusers' `prompt_clean` mends encodings only where ftfy happens to be installed, so that one prompt would make
    different videos on different machines. Here ftfy is required.

    Raises:
        ImportError: ftfy is not installed.
    """
    text = html.unescape(html.unescape(_ftfy().fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def check_cleaning() -> None:
    """
    Raises:
        ImportError: `clean_text` lacks what it needs.
    """
    _ftfy()


def _ftfy() -> object:
    try:
        # By name: the Hub's loader would ask for a package that its `import` line names, also without any prompt.
        return importlib.import_module("ftfy")
    except ImportError as error:
        raise ImportError(
            "A `prompt` in words is read as the model's training texts were, cleaned by ftfy, which is not installed: "
            "`pip install ftfy`. `prompt_embeds` need no cleaning."
        ) from error


class ChunkPrompts:
    """The prompt that each denoising step of a chunk reads, and the clean pass after them.

    A change reaches all candidates alike: it holds from the first step that none of them has begun.
    """

    def __init__(self, prompt: Prompt, num_steps: int) -> None:
        self._prompts = [prompt] * (num_steps + 1)
        self._num_begun = 0

    @property
    def last(self) -> Prompt:
        """Of the clean pass, and of the chunks after this one."""
        return self._prompts[-1]

    def begin(self, step: int) -> Prompt:
        """The prompt of a step that is begun now."""
        self._num_begun = max(self._num_begun, step + 1)
        return self._prompts[step]

    def change(self, step: int, embeds: torch.Tensor) -> None:
        """Takes embeddings that differ from those of `step` for the steps that nobody has begun."""
        given = self._prompts[step]
        if given.changed(embeds) is not given:
            changed = self._prompts[self._num_begun].changed(embeds)
            self._prompts[self._num_begun :] = [changed] * (len(self._prompts) - self._num_begun)
