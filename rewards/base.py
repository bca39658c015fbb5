"""The reward interface, any callable `reward(frames, prompt, fps)`, and the base classes of the ones that ship.

Axes: B clips, F frames, H height and W width in pixels.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.utils import logging

from . import checks, loading

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class RewardOutput:
    """Scores of a batch of clips, higher is better, and their parts."""

    score: torch.Tensor  # (B,) float
    parts: dict[str, torch.Tensor] = field(default_factory=dict)  # name to (B,), for the trace only
    lost: tuple[str | None, ...] | None = None  # B reasons why a clip could not be scored; None: all could
    gated: tuple[str | None, ...] | None = None  # B reasons why a clip was left out on purpose; None: none was
    errors: tuple[Exception | None, ...] | None = None  # B exceptions behind `lost`, where there are some


Reason = TypeVar("Reason", str, Exception)


class RewardFormatError(TypeError):
    """A reward returned something other than a float per clip: a bug of the reward, not a bad candidate."""


class Reward(torch.nn.Module):
    """Base class of the shipped rewards. A plain callable with the signature of `forward` serves as well.

    A subclass implements `forward`, on float frames on its own device. Calling the reward checks its input, splits the
    clips into micro-batches and, once `offload` was called, returns the weights to the CPU afterwards.

    A subclass that reads the text leaves `reads_prompt` true: a call with `prompt_embeds` and no text then refuses it
    before any work.

    Attributes:
        reads_prompt, reads_fps: whether scores depend on them.
        kind: the reward's name in converted folders; None for one without such folders.
        source: the Hub id from which it was loaded, which a saved pipeline keeps.
        micro_batch_size: clips per forward; None: all at once. Halved for good when the device runs out of memory.
    """

    reads_prompt: bool = True
    reads_fps: bool = False
    kind: str | None = None
    source: str | None = None
    _of_kind: dict[str, type["Reward"]] = {}

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__dict__.get("kind") is not None:
            Reward._of_kind[cls.kind] = cls

    def __init__(self, *, micro_batch_size: int | None = None) -> None:
        super().__init__()
        self.micro_batch_size = None
        if micro_batch_size is not None:
            self.micro_batch_size = checks.whole_number("micro_batch_size", micro_batch_size, least=1)
        self._offloads = False
        self._work_device: torch.device | None = None

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, dtype: torch.dtype | None = None, **options: object
    ) -> "Reward":
        """Loads the reward of a converted folder, on the CPU.

        Args:
            name_or_folder: a folder that a converter wrote, or the Hub's id of one.
            dtype: of the model; None keeps that of the folder. Weights that must be float32 stay so.
            options: of the reward's class.

        Raises:
            ValueError: it is not a converted reward, or one of another class.
        """
        folder = loading.open_folder(name_or_folder)
        target = Reward._of_kind.get(folder.kind)
        if target is None or not issubclass(target, cls):
            known = ", ".join(sorted(kind for kind, known in Reward._of_kind.items() if issubclass(known, cls)))
            raise ValueError(
                f"{name_or_folder} holds a reward of kind {folder.kind!r}; {cls.__name__} loads {known or 'none'}. "
                "`Reward.from_pretrained` loads any."
            )
        reward = target.from_folder(folder, dtype=dtype, **options)
        reward.source = None if Path(name_or_folder).is_dir() else str(name_or_folder)
        return reward

    @classmethod
    def from_folder(cls, folder: "loading.ConvertedFolder", *, dtype: torch.dtype | None = None) -> "Reward":
        """Loads a reward of this class's kind, for `from_pretrained`."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        """Device of the weights; the CPU for a reward without weights, which works where its frames are."""
        return next((tensor.device for tensor in self._tensors()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        return next((tensor.dtype for tensor in self._tensors() if tensor.is_floating_point()), torch.float32)

    def _tensors(self) -> Iterator[torch.Tensor]:
        yield from self.parameters()
        yield from self.buffers()

    def offload(self, device: torch.device | str | None = None) -> "Reward":
        """Keeps the weights on the CPU from now on and moves them to a device for each call only.

        Args:
            device: where to work; None: where the frames are.
        """
        self._offloads = True
        self._work_device = None if device is None else torch.device(device)
        return self.to("cpu")

    def check_prompts(self, prompts: list[str]) -> None:
        """Checks the texts before clips are scored.

        Raises:
            ValueError: this reward can't read one of them; the message says what to change.
        """

    def check_request(self, prompts: list[str], num_beams: int) -> None:
        """Checks a search before it begins, so that no work is lost.

        Raises:
            ValueError: this reward can't serve such a search; the message says what to change.
        """
        self.check_prompts(prompts)

    def selected_frames(self, num_frames: int, fps: float | None) -> slice | list[int]:
        """Selects the frames of a clip that `forward` reads; the others are never converted to float."""
        return slice(None)

    def __call__(self, frames: torch.Tensor, prompt: list[str], fps: float | None = None) -> RewardOutput:
        """Scores B clips.

        Args:
            frames: (B, F, 3, H, W), float in [0, 1] or uint8, on any device.
            prompt: B texts.
            fps: frames per second of the clips.

        Raises:
            ValueError, TypeError: the clips are invalid, or a prompt can't be read; the message says what to do.
        """
        checks.check_clips(frames, prompt, fps, needs_fps=self.reads_fps)
        self.check_prompts(prompt)
        frames = frames[:, self.selected_frames(frames.shape[1], fps)]
        if not self._offloads:
            return self._score_checked(frames, prompt, fps)
        try:
            self._move(self._work_device or frames.device)
            return self._score_checked(frames, prompt, fps)
        finally:
            self._move(torch.device("cpu"))

    def _move(self, device: torch.device) -> None:
        with torch.inference_mode(False):  # weights moved in inference mode could not be trained later
            self.to(device)

    def _score_checked(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> RewardOutput:
        """Scores checked clips, one micro-batch after the other."""
        outputs: list[RewardOutput] = []
        first_size = self.micro_batch_size or len(frames)
        begin, size = 0, first_size
        while begin < len(frames):
            rows = slice(begin, begin + size)
            try:
                outputs.append(self._as_output(super().__call__(self._as_floats(frames[rows]), prompt[rows], fps)))
            except torch.OutOfMemoryError:
                if size == 1:
                    raise
                size = min(size, len(frames) - begin) // 2 or 1
            else:
                begin += size
                continue
            if self.device.type == "cuda":  # outside the handler, which keeps the failed call's tensors alive
                torch.cuda.empty_cache()
        if size < first_size:
            self.micro_batch_size = size
            logger.warning(
                f"{type(self).__name__} ran out of device memory with a micro-batch of {first_size}; from now on "
                f"`micro_batch_size` is {size}."
            )
        return outputs[0] if len(outputs) == 1 else _joined(outputs)

    def _as_output(self, output: RewardOutput | torch.Tensor) -> RewardOutput:
        score = getattr(output, "score", output)
        if not torch.is_tensor(score):
            raise RewardFormatError(
                f"`{type(self).__name__}` gave a {type(score).__name__}; it must give a float tensor, one score per "
                "clip, or a `RewardOutput` with such a `score`."
            )
        if torch.is_tensor(output):
            return RewardOutput(output)
        if not isinstance(output.parts, Mapping | None):
            raise RewardFormatError(f"`{type(self).__name__}` gave `parts` that are no dict of names to tensors.")
        return output

    def _as_floats(self, frames: torch.Tensor) -> torch.Tensor:
        """Converts frames for `forward`: float32 in [0, 1], on the device of the weights."""
        device = next((tensor.device for tensor in self._tensors()), frames.device)
        frames = frames.to(device)
        return frames.to(torch.float32).div_(255.0) if frames.dtype == torch.uint8 else frames.float()

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> RewardOutput:
        """Scores a micro-batch.

        Args:
            frames: (B, F, 3, H, W) float in [0, 1], the selected ones.
            prompt: B texts.
            fps: frames per second of the clips.
        """
        raise NotImplementedError


class PictureReward(Reward):
    """A reward that looks at single frames and averages over them.

    Its micro-batches are pictures of any clips: `forward` gets (N, 1, 3, H, W). A clip with a lost or gated picture is
    lost or gated too, for the same reason.

    Attributes:
        frame_stride: every n-th frame is scored, beginning with a clip's first.
        micro_batch_size: pictures per forward.
    """

    def __init__(self, *, frame_stride: int = 1, micro_batch_size: int | None = None) -> None:
        super().__init__(micro_batch_size=micro_batch_size)
        self.frame_stride = checks.whole_number("frame_stride", frame_stride, least=1)

    def selected_frames(self, num_frames: int, fps: float | None) -> slice:
        return slice(None, None, self.frame_stride)

    def _score_checked(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> RewardOutput:
        num_frames = frames.shape[1]
        pictures = frames.flatten(0, 1)[:, None]  # (B * F, 1, 3, H, W)
        output = super()._score_checked(pictures, [text for text in prompt for _ in range(num_frames)], fps)

        def mean(values: torch.Tensor) -> torch.Tensor:
            return values.unflatten(0, (-1, num_frames)).mean(dim=1)

        def first(reasons: tuple[Reason | None, ...] | None) -> tuple[Reason | None, ...] | None:
            if reasons is None:
                return None
            clips = (reasons[begin : begin + num_frames] for begin in range(0, len(reasons), num_frames))
            return tuple(next((reason for reason in clip if reason is not None), None) for clip in clips)

        parts = {name: mean(values) for name, values in (output.parts or {}).items()}
        reasons = (first(given) for given in (output.lost, output.gated, output.errors))
        return RewardOutput(mean(output.score), parts, *reasons)


class ModuleReward(Reward):
    """A reward that is a plain `torch.nn.Module`, with the `device` and `dtype` that pipelines read of components."""

    reads_prompt = False

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor | RewardOutput:
        return self.module(frames, prompt, fps)


def as_component(reward: Callable | str | Path | None) -> Callable | None:
    """Converts a reward to a pipeline's component: loads a folder or Hub id, wraps a plain module."""
    if isinstance(reward, str | Path):
        return Reward.from_pretrained(reward)
    is_plain = isinstance(reward, torch.nn.Module) and not (hasattr(reward, "device") and hasattr(reward, "dtype"))
    return ModuleReward(reward) if is_plain else reward


# Checks of numbers as in search/geometry.py: a module here imports only its siblings, for the Hub's loader.


def _joined(outputs: list[RewardOutput]) -> RewardOutput:
    """The outputs of micro-batches as one.

    Raises:
        RewardFormatError: they have not all the same parts.
    """
    sizes, names = [len(output.score) for output in outputs], set(outputs[0].parts or {})
    other = next((set(output.parts or {}) for output in outputs if set(output.parts or {}) != names), None)
    if other is not None:
        raise RewardFormatError(
            f"`parts` of one call differ between its micro-batches: {sorted(names ^ other)} are not in all of them."
        )
    return RewardOutput(
        torch.cat([output.score for output in outputs]),
        {name: torch.cat([output.parts[name] for output in outputs]) for name in outputs[0].parts or {}},
        _joined_reasons([output.lost for output in outputs], sizes),
        _joined_reasons([output.gated for output in outputs], sizes),
        _joined_reasons([output.errors for output in outputs], sizes),
    )


def _joined_reasons(
    reasons: list[tuple[Reason | None, ...] | None], sizes: list[int]
) -> tuple[Reason | None, ...] | None:
    if all(given is None for given in reasons):
        return None
    return tuple(reason for given, size in zip(reasons, sizes, strict=True) for reason in given or (None,) * size)
