"""The arguments of a call, as they were given, and the checks that need no model."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

import torch

from . import geometry, memory_sinking, settings


@dataclass(frozen=True, eq=False)
class VideoRequest:
    """What a call asks for; names and meanings are those of `StreamT1Pipeline.__call__` and `stream`."""

    prompt: str | list[str] | None
    height: int | None
    width: int | None
    num_frames: int | None  # None: an endless stream
    num_inference_steps: int | None
    sigmas: list[float] | None
    num_videos_per_prompt: int
    generator: torch.Generator | list[torch.Generator] | None
    latents: torch.Tensor | None
    prompt_embeds: torch.Tensor | None
    output_type: str
    return_dict: bool
    attention_kwargs: dict[str, float] | None
    callback_on_step_end: Callable | None
    callback_on_step_end_tensor_inputs: list[str] | None
    max_sequence_length: int
    num_beams: int
    num_candidates: int
    noise_correlation: float
    image_reward: Callable | str | bool | None
    video_reward: Callable | str | bool | None
    reward_prompt: str | list[str] | None
    monitors: dict[str, Callable | str] | None
    short_weight_cap: float
    score_normalization: str | None
    reward_window: int
    memory: "memory_sinking.MemoryPolicy | None"
    candidate_seeds: str
    final_selection: str
    max_lag: int | None
    callback_on_chunk_end: Callable | None
    trace_thumbnails: bool
    horizon: int | None = None  # chunks that an endless stream counts on

    def settings(self) -> "settings.SearchSettings":
        """The numbers of the search.

        Raises:
            ValueError, TypeError: one that can't be.
        """
        names = (field.name for field in fields(settings.SearchSettings))
        return settings.SearchSettings(**{name: getattr(self, name) for name in names})

    @property
    def num_prompts(self) -> int:
        if self.prompt is None:
            return len(self.prompt_embeds)
        return 1 if isinstance(self.prompt, str) else len(self.prompt)

    @property
    def callback_tensor_inputs(self) -> tuple[str, ...]:
        """What `callback_on_step_end` is given: what an official callback asks for, else what the call says."""
        names = getattr(self.callback_on_step_end, "tensor_inputs", self.callback_on_step_end_tensor_inputs)
        return ("latents",) if names is None else tuple(names)

    def reward_prompts(self) -> list[str | None]:
        """One text, or None, for each prompt."""
        words = self.prompt if self.reward_prompt is None else self.reward_prompt
        return per_prompt("reward_prompt", words, str, self.num_prompts)

    def prompts(self) -> list[str | None]:
        """What each video is of, in words; None where there are only embeddings."""
        return per_prompt("prompt", self.prompt, str, self.num_prompts)

    def generators(self) -> list[torch.Generator | None]:
        """One generator, or None, for each prompt."""
        return per_prompt("generator", self.generator, torch.Generator, self.num_prompts)

    def check_prompt(self, has_text_encoder: bool, text_dim: int) -> None:
        """
        Raises:
            ValueError, TypeError: there is not exactly one prompt, in a form that this pipeline can read.
        """
        if (self.prompt is None) == (self.prompt_embeds is None):
            both = (
                "neither `prompt` nor `prompt_embeds`" if self.prompt is None else "both `prompt` and `prompt_embeds`"
            )
            raise ValueError(f"Got {both}; give one of them.")
        if self.prompt is None:
            return _check_prompt_embeds(self.prompt_embeds, text_dim)
        texts = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
            raise TypeError(f"`prompt` is {self.prompt!r}; it must be a string, or a list of one or more strings.")
        if not has_text_encoder:
            raise ValueError("`prompt` needs a text encoder and a tokenizer; without them give `prompt_embeds`.")

    def check_monitors(self) -> None:
        """
        Raises:
            TypeError: they are no rewards, folders or Hub ids under names.
        """
        monitors = {} if self.monitors is None else self.monitors
        if not isinstance(monitors, dict) or not all(isinstance(name, str) for name in monitors):
            raise TypeError(f"`monitors` is {monitors!r}; it must be a dict of names to rewards.")
        for name, reward in monitors.items():
            if not callable(reward) and not isinstance(reward, str | Path):
                given = f"a {type(reward).__name__}"
                raise TypeError(
                    f"`monitors[{name!r}]` is {given}; it must be a callable `reward(frames, prompt, fps)`, or the "
                    "folder or Hub id of a converted reward."
                )

    def check_end(self) -> None:
        """Of a stream.

        Raises:
            ValueError: its end is not told, or told twice.
        """
        if (self.num_frames is None) == (self.horizon is None):
            both = "neither is given" if self.horizon is None else "both are given"
            raise ValueError(
                "A stream has an end, `num_frames`, or none and a `horizon`, the chunks that the search counts on; "
                f"{both}."
            )
        if self.horizon is not None:
            geometry.check_whole_number("horizon", self.horizon, least=1)
        if self.horizon is not None and self.latents is not None:
            raise ValueError("`latents` is the noise of a whole video, and an endless stream has no whole.")

    def check_single(self) -> None:
        """
        Raises:
            ValueError: a stream is asked for several videos.
        """
        if self.num_prompts > 1 or self.num_videos_per_prompt > 1:
            raise ValueError("`stream` makes one video of one prompt; for several call the pipeline, or stream each.")


def per_prompt(name: str, value: object, kind: type, num_prompts: int) -> list:
    """One value of a kind, or None, for each prompt, from one for all or a list.

    Raises:
        TypeError: something else.
        ValueError: a list of another length.
    """
    values = value if isinstance(value, list) else [value] * num_prompts
    for each in values:
        if each is not None and not isinstance(each, kind):
            wanted = f"a {kind.__name__} or a list with one for each prompt"
            raise TypeError(f"`{name}` is {value!r}; it must be {wanted}.")
    if len(values) != num_prompts:
        raise ValueError(
            f"`{name}` is a list of {len(values)}, and there are {num_prompts} prompts; give one each, or one for all."
        )
    return values


def _check_prompt_embeds(prompt_embeds: torch.Tensor, text_dim: int) -> None:
    if not torch.is_tensor(prompt_embeds):
        raise TypeError(f"`prompt_embeds` is a {type(prompt_embeds).__name__}; it must be a tensor.")
    if prompt_embeds.ndim != 3 or len(prompt_embeds) == 0 or prompt_embeds.shape[2] != text_dim:
        shape = tuple(prompt_embeds.shape)
        raise ValueError(f"`prompt_embeds` has shape {shape}; it must be (1 or more prompts, tokens, {text_dim}).")
