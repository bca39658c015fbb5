"""What a call gives: videos and how they were found; a chunk of a stream; or why there is none."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput

from . import trace


@dataclass
class StreamT1PipelineOutput(BaseOutput):
    """Videos and how they were found.

    Args:
        frames: prompt-major, the best first. "np": (B, F, H, W, 3) float in [0, 1]; "pt": (B, F, 3, H, W) likewise;
            "pil": B lists of F pictures; "latent": (B, C, F, h, w) in the model's space. When a run was interrupted
            and its videos differ in length, a list of B.
        traces: one per prompt.
    """

    frames: np.ndarray | torch.Tensor | list
    traces: "list[trace.SearchTrace]"

    @property
    def trace(self) -> "trace.SearchTrace":
        """The trace of a call with one prompt."""
        if len(self.traces) != 1:
            raise AttributeError(f"`trace` is for one prompt; this output has {len(self.traces)}: use `traces[i]`.")
        return self.traces[0]


@dataclass(frozen=True, eq=False)
class StreamChunk:
    """A chunk that can change no more."""

    index: int
    # "np": (F, H, W, 3) float in [0, 1]; "pt": (F, 3, H, W) likewise; "pil": F pictures; "latent": (C, F, h, w)
    frames: np.ndarray | torch.Tensor | list
    trace: "trace.SearchTrace"  # of the search so far; it goes on growing, and the last whole one has its `final`


class NoCandidateLeftError(RuntimeError):
    """Every candidate of a chunk was lost. Carries what was finished before; the first error is its `__cause__`.

    Attributes:
        trace: of the prompt whose search ended here.
        frames: the videos of all prompts so far, in the form of `StreamT1PipelineOutput.frames`.
    """

    def __init__(self, message: str, trace: "trace.SearchTrace") -> None:
        super().__init__(message)
        self.trace = trace
        self.frames: np.ndarray | torch.Tensor | list = []
