"""The arguments of a call, named once, and the checks that need no model."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from os import PathLike

import numpy as np
import torch

from . import (
    beam_search,
    choice,
    geometry,
    given_past,
    memory_sinking,
    noise_propagation,
    policy_config,
    recorded,
    request_checks,
    script,
    timeline,
)

CHOICES = {
    "score_normalization": (None, "zscore", "rank"),
    "candidate_seeds": tuple(noise_propagation.SEED_MODES),
    "final_selection": ("video_reward", "score"),
    "resize": given_past.RESIZES,
    "recache": (None, *memory_sinking.RECACHE_MODES),
}
OUTPUT_TYPES = ("np", "pt", "pil", "latent")


@dataclass(frozen=True, eq=False)
class VideoRequest:
    """What a call asks for.

    Args:
        prompt: what to show, one text or a `PromptTimeline`; a list makes a video of each, one after the other.
        height, width: pixels; multiples of the VAE's factor times the transformer's patch. Default: the model's own.
        num_frames: pixel frames, `4 * (latent frames - 1) + 1` with latent frames a multiple of `chunk_frames`, those
            included that are given.
        num_inference_steps: steps per chunk, evenly spaced before the shift. Default: the model's own steps.
        sigmas: u of every step, before the shift as everywhere in diffusers, instead of a number of steps.
        num_videos_per_prompt: how many of the last beams to return, at most as many as the search keeps.
        generator: gives the base of all seeds; one per prompt when a list.
        latents: (B, C, F, h, w), the initial noise of the whole videos. For one beam and one candidate.
        prompt_embeds: (B, L, text dim), instead of `prompt`; used as given, never padded.
        output_type: "np", "pt", "pil" or "latent". Pixels are kept as 8 bits.
        return_dict: False gives `(frames, traces)`.
        attention_kwargs: numbers or tensors for the transformer; `scale` of a LoRA.
        callback_on_step_end: `f(pipe, step, timestep, tensors) -> tensors`. `step` counts within a chunk; `latents`
            are those of the candidates that are denoised together. A prompt that it changes holds for all beams alike,
            from the next step on that no beam has done.
        callback_on_step_end_tensor_inputs: of "latents" (the default) and "prompt_embeds".
        max_sequence_length: tokens to which prompts are padded with zeros, or cut, with a warning.
        search: called once per chunk with `(steps, beams)`, gives a `Choice`. Default: `BeamSearch(num_beams,
            num_candidates)`.
        num_beams: K, beams kept after each chunk. Default: 2; 1 without any reward.
        num_candidates: M, candidates tried per beam. Default: 2; 1 without any reward.
        noise_correlation: beta, between a candidate's noise and its beam's last noise (paper 3.1).
        image_reward, video_reward: `reward(frames, prompt, fps)` with frames (B, F, 3, H, W) in [0, 1], B texts and
            frames per second, gives a float tensor (B,) or a `RewardOutput`. The image reward sees the new chunk, the
            video reward the last `reward_window` chunks. None: the component; False: none; a converted reward's
            folder or Hub id is loaded for this call. One alone ranks every chunk; with neither nothing can be
            dropped, unless `callback_on_chunk_end` chooses.
        reward_prompt: what rewards read, when it is not the prompt; a timeline too.
        monitors: rewards under names, recorded for the kept candidates (`trace.monitors`) and never searched by. They
            see the last `reward_window` chunks. A monitor's parts are recorded as "NAME.PART", so no name may begin
            with another one and a dot.
        short_weight_cap: tau, the most that the image reward weighs (paper 3.2).
        score_normalization: "zscore" or "rank" over the candidates of a chunk, each reward by itself.
        reward_window: chunks.
        memory: the policy that routes chunks which leave the window (paper 3.3). Default: the model's own.
        candidate_seeds: "independent", or "reference": the authors' seeds, which re-use some.
        final_selection: order of the last beams: by "video_reward" on the whole video, without one by the mean of the
            image reward over the chunks; or by "score", the last chunk's.
        max_lag: chunks after which all beams must agree with the best: those that do not are dropped, so that a
            stream is never further behind. None: they need not.
        callback_on_chunk_end: `f(pipe, chunk_index, {"candidates": [...], "kept": [...]}) -> dict or None`. `kept` are
            indices into `candidates`, best first; a returned `kept` replaces the choice.
        trace_thumbnails: keep a small picture of every candidate in the trace.
        transition: chunks over which a changed prompt is mixed in: chunk k of n weighs it k / n. 0 is 1, a hard
            change.
        recache: what is remembered of the past when the prompt changes: "window" makes the window's keys and values
            again under the new prompt, "all" those of the sinks too, "none" nothing; "flush" keeps the sinks and the
            newest frames alone. Default: the memory policy's own.
        image: the video's first picture, for all prompts: PIL image (RGB), array (H, W, 3), tensor (3, H, W), uint8 or
            floats in [0, 1], or the path of a picture. Where a first chunk is of one latent frame, it is that chunk;
            else the first latent frame of chunk 0 is held to it.
        image_latents: (1, C, 1, h, w), instead of `image`, in the model's space.
        video: the video's first chunks, for all prompts: a list of PIL images, array (F, H, W, 3), tensor
            (F, 3, H, W), or the path of a video file of the model's frame rate; F is a length that a video can have.
            They are remembered as if they had been made, scored but not chosen, and the search goes on from there.
        video_latents: (1, C, F, h, w), instead of `video`, in the model's space; whole chunks.
        resize: "crop" scales `image` or `video` until it covers the video's size, and cuts out the middle. Default:
            another size is refused, and the video's is that of what is given.
        save_to: a file, not there yet, that is written anew after every chunk, so that `pipe.resume` goes on with a
            run that was stopped, bit for bit, or makes a finished one longer.
    """

    prompt: "str | timeline.PromptTimeline | list[str | timeline.PromptTimeline] | None" = None
    height: int | None = None
    width: int | None = None
    num_frames: int | None = 81
    num_inference_steps: int | None = None
    sigmas: list[float] | np.ndarray | None = None
    num_videos_per_prompt: int = 1
    generator: torch.Generator | list[torch.Generator] | None = None
    latents: torch.Tensor | None = None
    prompt_embeds: torch.Tensor | None = None
    output_type: str = "np"
    return_dict: bool = True
    attention_kwargs: dict[str, float] | None = None
    callback_on_step_end: Callable | None = None
    callback_on_step_end_tensor_inputs: list[str] | None = None
    max_sequence_length: int = 512
    _: KW_ONLY
    search: Callable | None = None
    num_beams: int | None = None
    num_candidates: int | None = None
    noise_correlation: float = -0.1
    image_reward: Callable | str | bool | None = None
    video_reward: Callable | str | bool | None = None
    reward_prompt: "str | timeline.PromptTimeline | list[str | timeline.PromptTimeline] | None" = None
    monitors: dict[str, Callable | str] | None = None
    short_weight_cap: float = 0.4
    score_normalization: str | None = None
    reward_window: int = 10
    memory: "memory_sinking.MemoryPolicy | None" = None
    candidate_seeds: str = "independent"
    final_selection: str = "video_reward"
    max_lag: int | None = None
    callback_on_chunk_end: Callable | None = None
    trace_thumbnails: bool = False
    transition: int = 0
    recache: str | None = None
    image: object | None = None
    image_latents: torch.Tensor | None = None
    video: object | None = None
    video_latents: torch.Tensor | None = None
    resize: str | None = None
    save_to: "str | PathLike | None" = None

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: a number or a choice is not one that is allowed, whatever the model.
        """
        for name in ("num_videos_per_prompt", "reward_window", "max_sequence_length"):
            self._keep(name, geometry.whole_number(name, getattr(self, name), least=1))
        self._keep("transition", geometry.whole_number("transition", self.transition, least=0))
        leasts = {"num_beams": 1, "num_candidates": 1, "max_lag": 0}
        for name, least in {**leasts, "height": None, "width": None, "num_frames": None}.items():
            if getattr(self, name) is not None:
                self._keep(name, geometry.whole_number(name, getattr(self, name), least=least))
        for name in ("noise_correlation", "short_weight_cap"):
            self._keep(name, float(geometry.real_number(name, getattr(self, name))))
        for name in ("return_dict", "trace_thumbnails"):
            self._keep(name, geometry.true_or_false(name, getattr(self, name)))
        if not -1.0 < self.noise_correlation < 1.0:
            raise ValueError(
                f"`noise_correlation` is {self.noise_correlation}; it must lie between -1 and 1, both excluded. "
                "The paper's value is -0.1; 0 makes every chunk's noise independent."
            )
        if not 0.0 <= self.short_weight_cap <= 1.0:
            raise ValueError(f"`short_weight_cap` is {self.short_weight_cap}; it must lie in [0, 1].")
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if not isinstance(value, str | None) or value not in allowed:
                raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")
        if not isinstance(self.output_type, str) or self.output_type not in OUTPUT_TYPES:
            raise ValueError(f"`output_type` is {self.output_type!r}; it must be one of {', '.join(OUTPUT_TYPES)}.")
        self._check_given()
        for name in request_checks.CALLBACKS:
            request_checks.check_callback(name, getattr(self, name))
        if self.attention_kwargs is not None:
            self._keep("attention_kwargs", request_checks.plain_attention_kwargs(self.attention_kwargs))
        if self.max_lag == 0 and self.num_videos_per_prompt > 1:
            raise ValueError(
                f"`num_videos_per_prompt` is {self.num_videos_per_prompt}, and `max_lag`, 0, keeps one beam. Use 1 "
                "video, or no `max_lag`."
            )
        if self.search is not None:
            self._check_search()

    def _keep(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @property
    def given_name(self) -> str | None:
        """The argument that gives a past, if one does."""
        names = (*given_past.PIXELS, *given_past.LATENTS)
        return next((name for name in names if getattr(self, name) is not None), None)

    def _check_given(self) -> None:
        names = (*given_past.PIXELS, *given_past.LATENTS)
        given = [name for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"Got both `{given[0]}` and `{given[1]}`; a video begins with one of them.")
        if self.resize is not None and self.given_name not in given_past.PIXELS:
            raise ValueError(f"`resize` is {self.resize!r}, and there is no `image` or `video` to resize.")

    def _check_search(self) -> None:
        choice.check_search(self.search)
        for name in ("num_beams", "num_candidates"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}, and `search` is {choice.search_name(self.search)}, which has "
                    "its own numbers. Give one of the two."
                )

    def with_some_prompt(self, text_dim: int) -> "VideoRequest":
        """The request, with embeddings of zeros if it has no prompt, and words for rewards if it has none."""
        if self.prompt is not None or self.prompt_embeds is not None:
            return self
        zero = torch.zeros((), dtype=torch.float32, device="cpu")
        words = "" if self.reward_prompt is None else self.reward_prompt
        embeds = zero.expand(1, self.max_sequence_length, text_dim)
        return replace(self, prompt_embeds=embeds, reward_prompt=words)

    def chosen_search(self, has_reward: bool) -> Callable:
        """The search of the call, found able to do what the call asks for.

        Raises:
            ValueError: it drops candidates and nothing says which, keeps fewer beams than there are to be videos,
                does not go with another argument, or `latents` is the noise of one video and it tries several.
        """
        default = 2 if has_reward else 1
        search = self.search
        if search is None:
            numbers = (default if number is None else number for number in (self.num_beams, self.num_candidates))
            search = beam_search.BeamSearch(*numbers)
        name, most = choice.search_name(search), choice.most_ended(search)
        if getattr(search, "drops", True) and not has_reward and self.callback_on_chunk_end is None:
            who = f"`search`, {name},"
            if self.search is None:
                who = f"{name} of `num_beams` and `num_candidates`, with {search.num_candidates} candidates per beam,"
            raise ValueError(
                f"{who} drops candidates, and there is no reward to say which. Give `image_reward` or "
                "`video_reward`, or make a plain sample: `num_beams=1, num_candidates=1`."
            )
        if self.num_videos_per_prompt > most:
            raise ValueError(
                f"`num_videos_per_prompt` is {self.num_videos_per_prompt}, and only `num_beams`, {most}, are kept. "
                f"Use {most} or fewer videos, or more beams."
            )
        if self.score_normalization is not None and getattr(search, "compares_rounds", False):
            raise ValueError(
                f"`score_normalization` is {self.score_normalization!r}, over the candidates that are scored "
                f"together, and {name} compares some that are not. Leave it out."
            )
        if self.candidate_seeds == "reference" and getattr(search, "num_lineages", 1) > 1:
            raise ValueError(
                f'`candidate_seeds` is "reference", which would make all videos of {name} alike. Use "independent".'
            )
        if self.latents is not None and (most > 1 or getattr(search, "drops", True)):
            raise ValueError(
                f"`latents` is the noise of one video, and {name} tries several. Use `num_beams=1, num_candidates=1`."
            )
        if choice.most_kept(search) > 1:
            self._check_settling(search, has_reward)
        return search

    def _check_settling(self, search: Callable, has_reward: bool) -> None:
        """
        Raises:
            ValueError: beams are to agree after `max_lag` chunks, and nothing says which is best; or an endless stream
                would wait for ever for beams that never agree.
        """
        name, can_choose = choice.search_name(search), has_reward or self.callback_on_chunk_end is not None
        if self.max_lag is not None and not (can_choose and getattr(search, "ranks", True)):
            raise ValueError(
                f"`max_lag` is {self.max_lag}: beams that do not agree with the best are dropped, and {name} does not "
                "say which is the best. Leave it out, or use one beam or a search that ranks by a reward."
            )
        if self.num_frames is None and self.max_lag is None and not getattr(search, "drops", True):
            raise ValueError(
                f"{name} drops no beam, so that those of an endless stream would never agree on a chunk to give. "
                "Give `max_lag`, or use one beam or a search that drops."
            )

    @property
    def num_prompts(self) -> int:
        if self.prompt is None:
            return len(self.prompt_embeds)
        return len(self.prompt) if isinstance(self.prompt, list) else 1

    @property
    def has_texts(self) -> bool:
        """Whether there is something to encode."""
        return any(each.texts if timeline.is_timeline(each) else each is not None for each in self.prompts())

    @property
    def callback_tensor_inputs(self) -> tuple[str, ...]:
        """What `callback_on_step_end` is given: what an official callback asks for, else what the call says."""
        names = getattr(self.callback_on_step_end, "tensor_inputs", self.callback_on_step_end_tensor_inputs)
        return ("latents",) if names is None else tuple(names)

    def check_callback_tensor_inputs(self, allowed: Sequence[str]) -> None:
        """
        Raises:
            TypeError, ValueError: `callback_on_step_end` asks for what is not there.
        """
        argument = "callback_on_step_end_tensor_inputs"
        own = getattr(self.callback_on_step_end, "tensor_inputs", None)
        for name, names in ((argument, getattr(self, argument)), ("callback_on_step_end.tensor_inputs", own)):
            if names is None:
                continue
            wanted = f"a list of some of {', '.join(allowed)}"
            if not isinstance(names, list | tuple) or not all(isinstance(each, str) for each in names):
                raise TypeError(f"`{name}` is {names!r}; it must be {wanted}.")
            if not set(names) <= set(allowed):
                raise ValueError(f"`{name}` is {list(names)}; it must be {wanted}.")

    def reward_prompts(self) -> "list[str | timeline.PromptTimeline | None]":
        """What the rewards of each video read: its prompt where nothing else is said; None where that has no words."""
        values = request_checks.per_prompt("reward_prompt", self.reward_prompt, object, self.num_prompts)
        for each in values:
            texts = each.prompts.values() if timeline.is_timeline(each) else [each]
            if not all(isinstance(text, str | None) for text in texts):
                kind = "a string, a `PromptTimeline` of strings, or a list with one for each prompt"
                raise TypeError(f"`reward_prompt` is {self.reward_prompt!r}; it must be {kind}.")
        return [prompt if each is None else each for each, prompt in zip(values, self.prompts(), strict=True)]

    def prompts(self) -> "list[str | timeline.PromptTimeline | None]":
        """What each video is of; None where there are only `prompt_embeds`."""
        return request_checks.per_prompt("prompt", self.prompt, object, self.num_prompts)

    def scripts(self, lengths: "geometry.VideoGeometry", num_chunks: int | None) -> "list[script.PromptScript]":
        """What each video shows and its rewards read, chunk by chunk; words are not encoded yet.

        Args:
            num_chunks: of the video; None: it has no end.

        Raises:
            ValueError: a prompt lies beyond the video, or holds for no chunk of it.
        """
        prompts = self.prompts() if self.prompt is not None else self.prompt_embeds.split(1)
        rewards = request_checks.per_prompt("reward_prompt", self.reward_prompt, object, self.num_prompts)
        given = {"transition": self.transition, "lengths": lengths, "num_chunks": num_chunks}
        return [script.script_of(*pair, **given) for pair in zip(prompts, rewards, strict=True)]

    def generators(self) -> list[torch.Generator | None]:
        """One generator, or None, for each prompt."""
        return request_checks.per_prompt("generator", self.generator, torch.Generator, self.num_prompts)

    def check(self, *, text_dim: int, has_vae: bool, tensor_inputs: Sequence[str]) -> None:
        """Checks what depends on the models of a pipeline.

        Args:
            tensor_inputs: what `callback_on_step_end` may be given.

        Raises:
            ValueError, TypeError: the call asks for what they cannot give.
        """
        self.check_prompt(text_dim)
        self.check_monitors()
        for each in self.reward_prompts():
            if isinstance(each, str):
                request_checks.check_encodable("reward_prompt", each)
        self.generators()
        if self.output_type != "latent" and not has_vae:
            raise ValueError(f'`output_type` is {self.output_type!r}, and this pipeline has no VAE; use "latent".')
        self.check_callback_tensor_inputs(tensor_inputs)

    def check_prompt(self, text_dim: int) -> None:
        """
        Raises:
            ValueError, TypeError: there is not exactly one of `prompt` and `prompt_embeds`, in a right form.
        """
        if (self.prompt is None) == (self.prompt_embeds is None):
            both = (
                "neither `prompt` nor `prompt_embeds`" if self.prompt is None else "both `prompt` and `prompt_embeds`"
            )
            raise ValueError(f"Got {both}; give one of them.")
        if self.prompt is None:
            return request_checks.check_prompt_embeds(self.prompt_embeds, text_dim)
        prompts = self.prompt if isinstance(self.prompt, list) else [self.prompt]
        texts = [each for each in prompts if not timeline.is_timeline(each)]
        if texts or not prompts:
            request_checks.check_texts(self.prompt if texts == prompts else texts)

    def check_monitors(self) -> None:
        """
        Raises:
            TypeError: they are not under names.
            ValueError: a part of one could have the name of another.
        """
        monitors = {} if self.monitors is None else self.monitors
        if not isinstance(monitors, dict) or not all(isinstance(name, str) for name in monitors):
            raise TypeError(f"`monitors` is {monitors!r}; it must be a dict of names to rewards.")
        for name in monitors:
            hidden = [other for other in monitors if other.startswith(f"{name}.")]
            if hidden:
                raise ValueError(
                    f"`monitors` has {name!r} and {hidden[0]!r}, and a part of {name!r} would be recorded as "
                    f'"{name}.PART". Name one of them without the dot.'
                )

    def chosen_policy(self, own: Mapping | None) -> "memory_sinking.MemoryPolicy":
        """The call's policy, else the one of the pipeline's config."""
        return policy_config.policy_from_config(own) if self.memory is None else self.memory

    def as_config(self) -> dict[str, object]:
        """The numbers of the search that a trace keeps."""
        names = ("noise_correlation", "short_weight_cap", "score_normalization", "reward_window", "candidate_seeds")
        names += ("final_selection", "num_videos_per_prompt", "max_lag", "transition", "max_sequence_length")
        config = {name: getattr(self, name) for name in names}
        config["attention_kwargs"] = recorded.as_config(self.attention_kwargs)
        return {**config, "given_inputs": self.given_inputs()}

    def given_inputs(self) -> list[str]:
        """The arguments that shape the video and that no trace holds."""
        names = ("prompt_embeds", "latents", "callback_on_step_end", self.given_name)
        given = [name for name in names if name is not None and getattr(self, name) is not None]
        has_embeds = any(timeline.is_timeline(each) and len(each.texts) < len(each.prompts) for each in self.prompts())
        has_tensors = any(torch.is_tensor(value) for value in (self.attention_kwargs or {}).values())
        return ["prompt"] * has_embeds + given + ["attention_kwargs"] * has_tensors


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamRequest(VideoRequest):
    """What a stream is asked for: what a call is, for one prompt and one video, and its end.

    Args:
        horizon: with `num_frames=None`, an endless stream: chunks that its search counts on, the N of unit 2.
    """

    horizon: int | None = None

    def __post_init__(self) -> None:
        """
        Raises:
            TypeError, ValueError: as of a call; or neither or both of `num_frames` and `horizon` are given, or several
                videos are asked for.
        """
        super().__post_init__()
        if (self.num_frames is None) == (self.horizon is None):
            both = "neither is given" if self.horizon is None else "both are given"
            raise ValueError(
                "A stream has an end, `num_frames`, or none and a `horizon`, the chunks that the search counts on; "
                f"{both}."
            )
        if self.horizon is not None:
            self._keep("horizon", geometry.whole_number("horizon", self.horizon, least=1))
            if self.latents is not None:
                raise ValueError("`latents` is the noise of a whole video, and an endless stream has no whole.")
        if self.save_to is not None and self.num_frames is None:
            raise ValueError(
                f"`save_to` is {str(self.save_to)!r}, and an endless stream has no end that a file could keep; give "
                "`num_frames`."
            )
        if self.num_videos_per_prompt > 1:
            raise ValueError(
                f"`num_videos_per_prompt` is {self.num_videos_per_prompt}, and `stream` is for one video of one "
                "prompt; for several call the pipeline, or stream each."
            )
