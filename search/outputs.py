"""What a call gives: videos and how they were found; a chunk of a stream; or why there is none."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput

from . import beam, trace


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
    prompt: str | None = None  # what the chunk was to show; None where there were only embeddings


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


def nothing_left(
    candidates: "Sequence[beam.Candidate]", chunk_index: int, record: "trace.SearchTrace", *, is_first: bool
) -> Exception:
    """The error to raise when all candidates of a chunk were lost.

    Args:
        is_first: whether the call has finished no chunk yet. Then an exception of one type for all of them is a bug,
            which is best told by itself.
    """
    lost = next(candidate.lost for candidate in candidates if candidate.lost is not None)
    what = f"No candidate of chunk {chunk_index} is left; the first of {len(candidates)} to be lost: {lost}."
    errors = [candidate.error for candidate in candidates]
    first = next((error for error in errors if error is not None), None)
    if is_first and len({type(error) for error in errors}) == 1 and first is not None:
        if hasattr(first, "add_note"):  # since Python 3.11
            first.add_note(what)
        return first
    error = NoCandidateLeftError(f"{what} The chunks before are in this error's `frames` and `trace`.", record)
    error.__cause__ = first
    return error
