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


class RunningMixin:
    """What diffusers' callbacks read of a pipeline: of the call that this thread runs, or ran last."""

    _interrupt = False

    @property
    def interrupt(self) -> bool:
        """Set `pipe._interrupt = True` in a callback, and the calls that run return the chunks that are finished."""
        return self._interrupt

    @property
    def num_timesteps(self) -> int | None:
        """Denoising steps of one chunk; None before any call."""
        view = self._latest_step()
        return None if view is None else view.num_timesteps

    @property
    def current_timestep(self) -> torch.Tensor | None:
        """None between calls."""
        view = self._latest_step()
        return None if view is None else view.timestep

    @property
    def attention_kwargs(self) -> dict[str, float] | None:
        view = self._latest_step()
        return None if view is None else view.attention_kwargs

    def begin_step(
        self, num_timesteps: int, timestep: torch.Tensor | None, attention_kwargs: dict[str, float] | None
    ) -> None:
        """Notes the step that this thread is at."""
        _LATEST.set(StepView(ref(self), num_timesteps, timestep, attention_kwargs))

    def _latest_step(self) -> StepView | None:
        view = _LATEST.get()
        return view if view is not None and view.pipe() is self else None
