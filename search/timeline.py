"""Prompts that change along a video, as a caller writes them. What each chunk makes of them: `script.py`."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch

from . import geometry, request_checks

# Where the chunk of a scene cut stands in a model's time, with its context at the beginning (Infinity-RoPE).
CUT_POSITION = 45

# A text of `parse`, and behind it how long it holds; "#" says that a scene cut ends it.
SEGMENT = re.compile(r"(?P<words>.*?)\s*(?:\[\s*(?P<seconds>\d+(?:\.\d+)?)\s*s\s*(?P<cut>#?)\s*\])?", re.DOTALL)


@dataclass(frozen=True, eq=False, repr=False)
class PromptTimeline:
    """Prompts by the pixel frame from which each holds: `PromptTimeline({0: "a cat walks", 45: "a cat jumps"})`.

    A prompt holds from the first chunk that begins at or after its frame.

    Args:
        prompts: texts, or embeddings (1, L, text dim), by frame: from 0, each frame after the one before.
        cuts: frames of scene cuts. The first chunk that begins at or after one is made far from its past, at the
            temporal positions 45, 46, ... (Infinity-RoPE). For memory policies with relative positions.
        num_frames: pixel frames of the whole video, where they are known. A call has its own `num_frames`.

    Raises:
        TypeError: `prompts` is no dict of frames to texts or embeddings, or a number is no whole one.
        ValueError: `prompts` is empty, does not begin at 0 or goes backwards, or so do `cuts`.
    """

    prompts: Mapping[int, str | torch.Tensor]
    cuts: Sequence[int] = ()
    num_frames: int | None = None

    def __post_init__(self) -> None:
        self._keep("prompts", _checked_prompts(self.prompts))
        if not isinstance(self.cuts, list | tuple):
            raise TypeError(f"`cuts` is {self.cuts!r}; it must be a tuple of frames.")
        cuts = tuple(geometry.whole_number("cuts", frame, least=1) for frame in self.cuts)
        if sorted(set(cuts)) != list(cuts):
            raise ValueError(f"`cuts` is {cuts}; the frames must rise.")
        self._keep("cuts", cuts)
        if self.num_frames is not None:
            self._keep("num_frames", geometry.whole_number("num_frames", self.num_frames, least=1))

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PromptTimeline):
            return NotImplemented
        alike = list(self.prompts) == list(other.prompts) and self.cuts == other.cuts
        pairs = zip(self.prompts.values(), other.prompts.values(), strict=False)
        return alike and self.num_frames == other.num_frames and all(same_prompt(*pair) for pair in pairs)

    def __repr__(self) -> str:
        parts = [f"{frame}: {_short(prompt)}" for frame, prompt in self.prompts.items()]
        cuts = [f"cuts={self.cuts}"] if self.cuts else []
        return f"PromptTimeline({', '.join(['{' + ', '.join(parts) + '}', *cuts])})"

    @property
    def texts(self) -> list[str]:
        """The prompts that are texts, in their order."""
        return [prompt for prompt in self.prompts.values() if isinstance(prompt, str)]

    @classmethod
    def parse(cls, text: str, fps: float = 16, *, chunk_frames: int = 3) -> "PromptTimeline":
        """Reads "a cat walks [3s] | a cat jumps [5s #] | a dog": each text holds for so many seconds.

        Times are rounded to whole chunks of four pixel frames per latent one. "#" behind the seconds is a scene cut
        where they end. The last text may leave its seconds out; else `num_frames` of what is returned says how long
        the whole is.

        Args:
            fps: pixel frames per second.
            chunk_frames: latent frames of a chunk.

        Raises:
            TypeError: `text` is no text, or a number is none.
            ValueError: a text is empty, lacks its seconds or is shorter than a chunk; the message says which.
        """
        if not isinstance(text, str):
            raise TypeError(f"`text` is a {type(text).__name__}; it must be a text such as {EXAMPLE!r}.")
        chunk_frames = geometry.whole_number("chunk_frames", chunk_frames, least=1)
        fps = geometry.real_number("fps", fps)
        if fps <= 0:
            raise ValueError(f"`fps` is {fps}; it must be above 0.")
        seconds_per_chunk = 4 * chunk_frames / Fraction(fps)
        prompts, cuts, seconds, frame, segments = {}, [], Fraction(0), 0, text.split("|")
        for number, segment in enumerate(segments, start=1):
            found, is_last = SEGMENT.fullmatch(segment.strip()), number == len(segments)
            words, told = found["words"], f"`text`: prompt {number} of {len(segments)}, {found['words']!r},"
            if not words:
                raise ValueError(f"`text`: prompt {number} of {len(segments)} is empty. Write it as {EXAMPLE!r}.")
            prompts[frame] = words
            if found["seconds"] is None:
                if is_last:
                    return cls(prompts, cuts)
                raise ValueError(f'{told} does not say for how long. Write "{words} [3s]"; the last may leave it out.')
            seconds += Fraction(found["seconds"])
            latent_frames = chunk_frames * round(seconds / seconds_per_chunk)
            next_frame = max(4 * latent_frames - 3, 0)
            if next_frame <= frame:
                least = float(seconds_per_chunk)
                raise ValueError(f"{told} holds for {found['seconds']} s, and a chunk for {least:g} s. Give it more.")
            if found["cut"] and is_last:
                raise ValueError(f'{told} ends in a scene cut, "#", and nothing follows. Leave it out.')
            frame = next_frame
            cuts += [frame] * bool(found["cut"])
        return cls(prompts, cuts, num_frames=frame)

    def as_config(self) -> dict[str, object]:
        """The timeline as plain JSON; an embedding, which JSON can't hold, is None there."""
        prompts = {str(frame): _text(prompt) for frame, prompt in self.prompts.items()}
        length = {} if self.num_frames is None else {"num_frames": self.num_frames}
        return {"prompts": prompts, "cuts": list(self.cuts), **length}

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> "PromptTimeline":
        """The timeline of `as_config`.

        Raises:
            TypeError, ValueError: it is none.
        """
        if not isinstance(config, Mapping) or not isinstance(config.get("prompts"), Mapping):
            raise TypeError(f'A timeline is {{"prompts": {{"0": "a cat walks", ...}}, "cuts": []}}; got {config!r}.')
        unknown = [name for name in config if name not in ("prompts", "cuts", "num_frames")]
        if unknown:
            raise ValueError(f"A timeline has `prompts`, `cuts` and `num_frames`, and no {unknown[0]!r}.")
        frames = [int(frame) if str(frame).isdecimal() else frame for frame in config["prompts"]]
        prompts = dict(zip(frames, config["prompts"].values(), strict=True))
        return cls(prompts, config.get("cuts", ()), config.get("num_frames"))

    def to_json(self) -> str:
        """The timeline as a text.

        Raises:
            ValueError: it holds embeddings.
        """
        if len(self.texts) < len(self.prompts):
            raise ValueError("This timeline holds embeddings, which JSON can't hold; give texts.")
        return json.dumps(self.as_config())

    @classmethod
    def from_json(cls, text: str) -> "PromptTimeline":
        """The timeline of `to_json`.

        Raises:
            TypeError, ValueError: it is none.
        """
        return cls.from_config(json.loads(text))


EXAMPLE = "a cat walks [3s] | a cat jumps"


def is_timeline(value: object) -> bool:
    """Whether it is a timeline, also of another copy of this code."""
    return all(hasattr(value, name) for name in ("prompts", "cuts", "texts"))


def as_timeline(prompt: "str | torch.Tensor | PromptTimeline") -> PromptTimeline:
    """A prompt, of whatever form, as a timeline."""
    return prompt if is_timeline(prompt) else PromptTimeline({0: prompt})


def same_prompt(one: str | torch.Tensor | None, other: str | torch.Tensor | None) -> bool:
    """Whether two prompts, texts or embeddings, are equal."""
    if torch.is_tensor(one) and torch.is_tensor(other):
        return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)
    return not torch.is_tensor(one) and not torch.is_tensor(other) and one == other


def check_one_prompt(name: str, prompt: object) -> None:
    """
    Raises:
        TypeError, ValueError: `prompt` is neither a text nor embeddings (1, L, text dim).
    """
    if isinstance(prompt, str):
        return request_checks.check_encodable(name, prompt)
    if not torch.is_tensor(prompt):
        raise TypeError(f"`{name}` is a {type(prompt).__name__}; it must be a text, or embeddings (1, L, text dim).")
    request_checks.check_float_tensor(name, prompt)
    if prompt.dim() != 3 or prompt.shape[0] != 1 or 0 in prompt.shape:
        raise ValueError(f"`{name}` has shape {tuple(prompt.shape)}; embeddings of one prompt are (1, L, text dim).")


def _checked_prompts(prompts: object) -> dict[int, str | torch.Tensor]:
    if not isinstance(prompts, Mapping):
        raise TypeError(f'`prompts` is {prompts!r}; it must be a dict of frames to prompts: {{0: "a cat", 45: ...}}.')
    if not prompts:
        raise ValueError('`prompts` is empty; give one from frame 0 on: {0: "a cat walks"}.')
    checked = {}
    for frame, prompt in prompts.items():
        frame = geometry.whole_number("prompts", frame, of=", a frame of it,")
        if not checked and frame != 0:
            raise ValueError(f"`prompts` begins at frame {frame}; the first must hold from frame 0 on.")
        if checked and frame <= max(checked):
            raise ValueError(f"`prompts` has frame {frame} after {max(checked)}; the frames must rise.")
        check_one_prompt(f"prompts[{frame}]", prompt)
        checked[frame] = prompt
    return checked


def _text(prompt: str | torch.Tensor) -> str | None:
    return prompt if isinstance(prompt, str) else None


def _short(prompt: str | torch.Tensor) -> str:
    if not isinstance(prompt, str):
        return f"embeddings {tuple(prompt.shape)}"
    return repr(prompt if len(prompt) <= 40 else f"{prompt[:37]}...")
