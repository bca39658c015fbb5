"""What a call that runs tells its callbacks, and how it is ended from outside.

A pipeline serves several calls at once, so nothing of one may be kept on it.
"""

from contextvars import ContextVar
from dataclasses import dataclass
from weakref import ref

import torch


class SearchInterrupted(BaseException):
    """`pipe._interrupt` was set: ends a chunk between two denoising steps, through a search's own code."""


@dataclass(frozen=True, eq=False)
class StepView:
    """What a callback may ask the pipeline about the call that it is called by."""

    pipe: ref
    num_timesteps: int  # denoising steps of a chunk
    timestep: torch.Tensor | None  # None: the call is over
    attention_kwargs: dict[str, float] | None


_LATEST: ContextVar[StepView | None] = ContextVar("latest_step", default=None)  # of this thread


def begin_step(
    pipe: object, num_timesteps: int, timestep: torch.Tensor | None, attention_kwargs: dict[str, float] | None
) -> None:
    """Notes the step that this thread is at."""
    _LATEST.set(StepView(ref(pipe), num_timesteps, timestep, attention_kwargs))


def latest_step(pipe: object) -> StepView | None:
    """This thread's latest step, if it is of `pipe`."""
    view = _LATEST.get()
    return view if view is not None and view.pipe() is pipe else None
