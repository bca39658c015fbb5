"""An embedded prompt, and the prompts that the steps of one chunk read.

Axes: L tokens.
"""

from dataclasses import dataclass, field

import torch

from . import memory


@dataclass(frozen=True, eq=False)
class Prompt:
    """Embedded text, with the cross-attention keys and values that its first forward computes."""

    embeds: torch.Tensor  # (1, L, text dim)
    memory: "memory.PromptMemory" = field(default_factory=memory.PromptMemory)

    def changed(self, embeds: torch.Tensor) -> "Prompt":
        """Returns the prompt of other embeddings; this one when they are equal."""
        embeds = embeds.to(self.embeds)
        return self if torch.equal(embeds, self.embeds) else Prompt(embeds)


class ChunkPrompts:
    """The prompt that each denoising step of a chunk reads, and the clean pass after them.

    A change reaches all candidates alike: it holds from the first step that none of them has begun.
    """

    def __init__(self, prompt: Prompt, num_steps: int) -> None:
        self._prompts = [prompt] * (num_steps + 1)
        self._num_begun = 0

    @property
    def last(self) -> Prompt:
        """The prompt of the clean pass, and of the chunks after this one."""
        return self._prompts[-1]

    def begin(self, step: int) -> Prompt:
        """Begins a step and returns its prompt."""
        self._num_begun = max(self._num_begun, step + 1)
        return self._prompts[step]

    def change(self, step: int, embeds: torch.Tensor) -> None:
        """Sets embeddings that differ from those of `step` for the steps that no candidate has begun."""
        given = self._prompts[step]
        if given.changed(embeds) is not given:
            changed = self._prompts[self._num_begun].changed(embeds)
            self._prompts[self._num_begun :] = [changed] * (len(self._prompts) - self._num_begun)
