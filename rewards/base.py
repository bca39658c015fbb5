"""What a reward is: any callable `reward(frames, prompt, fps)`, and the base classes of the ones that ship.

Axes: B clips, F frames, H height and W width in pixels.
"""

import math
import numbers
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
from diffusers.utils import logging
from transformers import PreTrainedTokenizerBase

from . import loading

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class RewardOutput:
    """Scores of a batch of clips, higher is better, and what they were made from."""

    score: torch.Tensor  # (B,) float
    parts: dict[str, torch.Tensor] = field(default_factory=dict)  # name to (B,), for the trace only
    lost: tuple[str | None, ...] | None = None  # B reasons: why a clip could not be scored; None: all could
    gated: tuple[str | None, ...] | None = None  # B reasons: why a clip was left out on purpose; None: none was
    errors: tuple[Exception | None, ...] | None = None  # B exceptions behind `lost`, where there are some


Reason = TypeVar("Reason", str, Exception)


class RewardFormatError(TypeError):
    """A reward gave something else than a float per clip. The mistake of its author, not of a candidate."""


class Reward(torch.nn.Module):
    """Base class of the shipped rewards. A plain callable with the signature of `forward` serves as well.

    A subclass writes `forward` and looks at float frames on its own device. Calling the reward checks what it is
    given, cuts the clips into micro-batches, and brings the weights back to the CPU after it where `offload` says so.

    A subclass that looks at the text leaves `reads_prompt` true: such a reward is refused before any work when a call
    brings `prompt_embeds` and no words.

    Attributes:
        reads_prompt, reads_fps: whether scores depend on them.
        kind: what a converted folder calls this reward; None for one that is in no such folder.
        source: the Hub's id from which it was loaded, which a saved pipeline keeps.
        micro_batch_size: clips per forward; None is all that are given. Halved for good when the device's memory does
            not do.
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
            self.micro_batch_size = whole_number("micro_batch_size", micro_batch_size, least=1)
        self._offloads = False
        self._work_device: torch.device | None = None

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, *, dtype: torch.dtype | None = None, **options: object
    ) -> "Reward":
        """The reward of a converted folder, on the CPU.

        Args:
            name_or_folder: a folder that a converter wrote, or the Hub's id of one.
            dtype: of the model; None keeps that of the folder. What must be float32 stays so.
            options: of the reward's class.

        Raises:
            ValueError: it is no converted reward, or another one than this class.
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
        """What `from_pretrained` does with a folder of this class's kind."""
        raise NotImplementedError

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

    def offload(self, device: torch.device | str | None = None) -> "Reward":
        """From now on the weights wait on the CPU and come to a device for each call only.

        Args:
            device: where to work; None: where the frames are.
        """
        self._offloads = True
        self._work_device = None if device is None else torch.device(device)
        return self.to("cpu")

    def check_prompts(self, prompts: list[str]) -> None:
        """Called before clips are scored.

        Raises:
            ValueError: this reward can't read one of them; the message says what to change.
        """

    def check_request(self, prompts: list[str], num_beams: int) -> None:
        """Called before a search begins, so that no work is lost.

        Raises:
            ValueError: this reward can't serve such a search; the message says what to change.
        """
        self.check_prompts(prompts)

    def selected_frames(self, num_frames: int, fps: float | None) -> slice | list[int]:
        """Which frames of a clip `forward` looks at; the others are never made float."""
        return slice(None)

    def __call__(self, frames: torch.Tensor, prompt: list[str], fps: float | None = None) -> RewardOutput:
        """Scores of B clips.

        Args:
            frames: (B, F, 3, H, W), float in [0, 1] or uint8, on any device.
            prompt: B texts.
            fps: frames per second of the clips.

        Raises:
            ValueError, TypeError: no clips, or not in this form, or a prompt that can't be read; the message says what
                to do.
        """
        check_clips(frames, prompt, fps, needs_fps=self.reads_fps)
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
        with torch.inference_mode(False):  # weights that move inside of that mode could not be trained later
            self.to(device)

    def _score_checked(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> RewardOutput:
        """The scores of clips that were checked: micro-batch after micro-batch."""
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
            if self.device.type == "cuda":  # outside of the handler, which holds on to what failed
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
        """Frames as `forward` reads them: float32 in [0, 1], on the device of the weights."""
        device = next((tensor.device for tensor in self._tensors()), frames.device)
        frames = frames.to(device)
        return frames.to(torch.float32).div_(255.0) if frames.dtype == torch.uint8 else frames.float()

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float | None) -> RewardOutput:
        """Scores of a micro-batch.

        Args:
            frames: (B, F, 3, H, W) float in [0, 1], the selected ones.
            prompt: B texts.
            fps: frames per second of the clips.
        """
        raise NotImplementedError


class PictureReward(Reward):
    """A reward that looks at single frames and averages over them.

    Its micro-batches are pictures, of whichever clips: `forward` gets (N, 1, 3, H, W). A clip of which one picture is
    lost or gated is so too, for that picture's reason.

    Attributes:
        frame_stride: every n-th frame is scored, beginning with a clip's first.
        micro_batch_size: pictures per forward.
    """

    def __init__(self, *, frame_stride: int = 1, micro_batch_size: int | None = None) -> None:
        super().__init__(micro_batch_size=micro_batch_size)
        self.frame_stride = whole_number("frame_stride", frame_stride, least=1)

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
    """A reward that is a plain `torch.nn.Module`, with the `device` and `dtype` that a pipeline asks its parts for."""

    reads_prompt = False

    def __init__(self, module: torch.nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor | RewardOutput:
        return self.module(frames, prompt, fps)


def as_component(reward: Callable | str | Path | None) -> Callable | None:
    """A reward as a pipeline can hold it: loaded if it is a folder or an id, wrapped if it is a plain module."""
    if isinstance(reward, str | Path):
        return Reward.from_pretrained(reward)
    is_plain = isinstance(reward, torch.nn.Module) and not (hasattr(reward, "device") and hasattr(reward, "dtype"))
    return ModuleReward(reward) if is_plain else reward


# Checks of numbers as in search/geometry.py: a module here imports only its siblings, for the Hub's loader.


def whole_number(name: str, value: object, least: int) -> int:
    """`value` as Python's own int; numpy's are taken too.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below `least`.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; it must be a whole number, {least} or more.")
    if value < least:
        raise ValueError(f"`{name}` is {value}; it must be a whole number, {least} or more.")
    return int(value)


def real_number(name: str, value: object, above: float | None = None) -> float:
    """`value` as Python's own number, whole ones as int; numpy's are taken too.

    Raises:
        TypeError: it is no real number.
        ValueError: it is not finite, or not above `above`.
    """
    wanted = "a finite number" if above is None else f"a finite number above {above}"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; it must be {wanted}.")
    if not _is_finite(value) or (above is not None and not value > above):
        raise ValueError(f"`{name}` is {value!r}; it must be {wanted}.")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_type(name: str, value: object, kind: type) -> None:
    """
    Raises:
        TypeError: `value` is no object of this class.
    """
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise TypeError(f"`{name}` is {given}; it must be a {kind.__name__}.")


def _is_finite(value: object) -> bool:
    """Whether it is a finite real number, of Python or of numpy."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        return False


def check_plain_words(prompts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        ValueError: a prompt has a token of the model's own, which would be read as such.
    """
    # A token of one character is a sign that a tokenizer pads with, such as "!", and stands in any text.
    special = sorted(token for token in tokenizer.get_added_vocab() if len(token) > 1)
    for prompt in dict.fromkeys(prompts):
        # In small letters: CLIP's tokenizer makes all letters small before it looks for its tokens.
        found = [token for token in special if token.lower() in prompt.lower()]
        if found:
            raise ValueError(
                f"`prompt` contains {', '.join(found)}, which the reward model reads as a token of its own. Write it "
                "another way, or give the rewards another text: `reward_prompt=...`."
            )


def check_clips(frames: torch.Tensor, prompt: list[str], fps: float | None, *, needs_fps: bool = False) -> None:
    """
    Raises:
        ValueError, TypeError: what every reward needs is not there; the message says what to do.
    """
    if not torch.is_tensor(frames):
        raise TypeError(f"`frames` is a {type(frames).__name__}; it must be a tensor (B, F, 3, H, W).")
    shape = tuple(frames.shape)
    if frames.ndim != 5 or shape[2] != 3:
        hint = ""
        if frames.ndim == 4:
            hint = " One clip is a batch of one: `frames[None]`."
        elif frames.ndim == 5 and shape[-1] == 3:
            hint = " Channels are last here: `frames.permute(0, 1, 4, 2, 3)`."
        elif frames.ndim == 5 and shape[1] == 3:
            hint = " Channels are before frames here: `frames.transpose(1, 2)`."
        raise ValueError(f"`frames` has shape {shape}; it must be (B, F, 3, H, W).{hint}")
    if frames.numel() == 0:
        raise ValueError(
            f"`frames` has shape {shape}, so there is nothing to score; give at least one frame per clip."
        )
    if frames.dtype != torch.uint8:
        if not frames.is_floating_point():
            raise TypeError(f"`frames` is {frames.dtype}; it must be float in [0, 1], or uint8.")
        low, high = (float(value) for value in torch.aminmax(frames))
        if not (low >= 0.0 and high <= 1.0):  # also where they are NaN
            raise ValueError(
                f"`frames` has values from {low} to {high}; they must be in [0, 1]. Pixels in 0 to 255 are divided by "
                "255, in -1 to 1 by `(frames + 1) / 2`; NaN comes from the decoder."
            )
    if not isinstance(prompt, list | tuple) or not all(isinstance(text, str) for text in prompt):
        raise TypeError(f"`prompt` is {prompt!r}; it must be a list of strings, one per clip.")
    if len(prompt) != len(frames):
        raise ValueError(f"`prompt` has {len(prompt)} texts for {len(frames)} clips; give one per clip.")
    if fps is None and not needs_fps:
        return
    if not (_is_finite(fps) and fps > 0):
        raise ValueError(f"`fps` is {fps!r}; it must be the clips' frames per second, above 0.")


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
