"""What a reward is: any callable `reward(frames, prompt, fps)`, and the base class of the ones that ship.

Axes: B clips, F frames, H height and W width in pixels.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class RewardOutput:
    """Scores of a batch of clips, higher is better, and what they were made from."""

    score: torch.Tensor  # (B,) float
    parts: dict[str, torch.Tensor] = field(default_factory=dict)  # name to (B,), for the trace only


class Reward(torch.nn.Module):
    """Base class of the shipped rewards. A plain callable with the signature of `forward` serves as well.

    A subclass that looks at the text leaves `reads_prompt` true: such a reward is refused before any work when a call
    brings `prompt_embeds` and no words.
    """

    reads_prompt: bool = True

    @property
    def device(self) -> torch.device:
        """Of the weights; the CPU for a reward that has none and works where its frames are."""
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), torch.float32)

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from self.parameters()
        yield from self.buffers()

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float) -> RewardOutput:
        """Scores of B clips.

        Args:
            frames: (B, F, 3, H, W) float in [0, 1].
            prompt: B texts.
            fps: frames per second of the clips.
        """
        raise NotImplementedError


class ModuleReward(Reward):
    """A reward that is a plain `torch.nn.Module`, with the `device` and `dtype` that a pipeline asks its parts for."""

    reads_prompt = False

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor | RewardOutput:
        return self.module(frames, prompt, fps)


def as_component(reward: Callable | None) -> Callable | None:
    """A reward as a pipeline can hold it: itself, or wrapped if it is a plain module."""
    is_plain = isinstance(reward, torch.nn.Module) and not (hasattr(reward, "device") and hasattr(reward, "dtype"))
    return ModuleReward(reward) if is_plain else reward
