"""What the searches of a call have in common."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from . import (
    beam_search,
    choice,
    given_past,
    memory_sinking,
    recorded,
    request,
    request_checks,
    reward_pruning,
    script,
    timeline,
    trace,
)


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """A call, checked in full, with all that it looks up only once. Nothing of it changes while the searches run."""

    request: "request.VideoRequest"
    search: Callable  # `(steps, beams) -> Choice`
    policy: "memory_sinking.MemoryPolicy"
    scripts: "tuple[script.PromptScript, ...]"  # one per prompt, their words not encoded yet
    recache: str  # what becomes of the past when a prompt changes
    image_reward: Callable | None  # `reward(frames, prompt, fps)`
    video_reward: Callable | None
    monitors: dict[str, Callable]  # rewards that are recorded and never searched by
    num_chunks: int  # N of unit 2; of an endless stream its horizon
    size: tuple[int, int]  # pixels, height and width
    latent_shape: tuple[int, int, int, int]  # one chunk's C, F, h, w, but for the first
    first_chunk_frames: int  # latent frames of the first
    window_frames: int  # latent frames of context, the first sinks and the current chunk included
    sink_frames: int  # first latent frames that are sinks: the policy's say
    levels: tuple[float, ...]  # sigma of every step, after the shift, then 0
    timesteps: torch.Tensor  # (steps,)
    fps: float
    device: torch.device  # where the models run; looked up once, the pipeline walks all its modules for it
    dtype: torch.dtype  # of the latents that the transformer is fed
    past: "given_past.GivenPast | None" = None  # with what the videos begin
    num_given_chunks: int = 0  # first chunks that are given whole

    @property
    def is_endless(self) -> bool:
        return self.request.num_frames is None

    @property
    def is_seen(self) -> bool:
        """Whether somebody looks at the frames of candidates that are not kept."""
        return self.has_reward or self.request.trace_thumbnails

    @property
    def has_reward(self) -> bool:
        return self.image_reward is not None or self.video_reward is not None

    @property
    def rewards(self) -> dict[str, Callable | None]:
        """Rewards and monitors under the names of their arguments."""
        watched = {f"monitors[{name!r}]": monitor for name, monitor in self.monitors.items()}
        return {"image_reward": self.image_reward, "video_reward": self.video_reward, **watched}

    @property
    def has_pixels(self) -> bool:
        """Whether anybody looks at frames."""
        return self.request.output_type != "latent" or self.is_seen or bool(self.monitors)

    @property
    def rolling_frames(self) -> int:
        """Latent frames of the window without the first sinks, with the current chunk."""
        return self.window_frames - self.sink_frames

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    @property
    def depth(self) -> int:
        """Chunks that the search may go back: what `max_lag` settles stays as it is."""
        depth, lag = getattr(self.search, "depth", 0), self.request.max_lag
        return depth if lag is None else min(depth, lag)

    @property
    def num_lineages(self) -> int:
        """Base seeds that each prompt's search draws."""
        return getattr(self.search, "num_lineages", 1)

    @property
    def is_clamped(self) -> bool:
        """Whether the first latent frame is given, and made to be what it is."""
        return self.past is not None and self.num_given_chunks == 0

    def first_frame(self, chunk_index: int) -> int:
        """Latent frames before a chunk."""
        return self.first_chunk_frames + (chunk_index - 1) * self.latent_shape[1] if chunk_index else 0

    def num_latents(self, chunk_index: int) -> int:
        """Latent frames of a chunk."""
        return self.latent_shape[1] if chunk_index else self.first_chunk_frames

    def chunk_shape(self, chunk_index: int) -> tuple[int, int, int, int]:
        """A chunk's C, F, h, w."""
        num_channels, _, *size = self.latent_shape
        return num_channels, self.num_latents(chunk_index), *size

    def chunk_frames(self, chunk_index: int) -> slice:
        """A chunk's latent frames in the video."""
        return slice(self.first_frame(chunk_index), self.first_frame(chunk_index + 1))

    def is_last(self, chunk_index: int) -> bool:
        return not self.is_endless and chunk_index == self.num_chunks - 1

    def fusion_weight(
        self, chunk_index: int, has_image_reward: bool | None = None, has_video_reward: bool | None = None
    ) -> float:
        """Weight of the short score. A reward that is alone has all of it.

        Args:
            has_image_reward, has_video_reward: of those that scored. Default: of the run's.
        """
        has_image = self.image_reward is not None if has_image_reward is None else has_image_reward
        has_video = self.video_reward is not None if has_video_reward is None else has_video_reward
        if not (has_image and has_video):
            return 1.0 if has_image else 0.0
        return reward_pruning.fusion_weight(chunk_index, self.num_chunks, self.request.short_weight_cap)

    def as_config(self) -> "dict[str, trace.Json]":
        """What the trace keeps of the call."""
        height, width = self.size
        beams = self.search if isinstance(self.search, beam_search.BeamSearch) else None
        memory = recorded.as_config(self.policy)
        return {
            "height": height,
            "width": width,
            "num_frames": self.request.num_frames,
            "num_chunks": self.num_chunks,
            "chunk_frames": self.latent_shape[1],
            "first_chunk_frames": self.first_chunk_frames,
            "window_frames": self.window_frames,
            "sink_frames": self.sink_frames,
            "levels": list(self.levels[:-1]),
            "search": recorded.as_config(self.search),
            "num_beams": choice.most_ended(self.search),
            "num_candidates": None if beams is None else beams.num_candidates,
            **self.request.as_config(),
            "given": None if self.past is None else self.past.name,
            "num_given_chunks": self.num_given_chunks,
            "recache": self.recache,
            "memory": {"policy": memory.pop("name"), **memory},
        }


@dataclass(frozen=True, eq=False)
class PromptPlan:
    """What the chunks of one prompt's video have in common."""

    plan: SearchPlan
    seeds: tuple[int, ...]  # bases of the candidates' seeds, one per lineage
    prompt: "str | timeline.PromptTimeline | None"  # as the caller gave it; None where there are only embeddings
    reward_prompt: "str | timeline.PromptTimeline | None"  # likewise; None where rewards read empty texts
    script: "script.PromptScript"  # the prompts by chunk, with what a running stream changed
    noise: torch.Tensor | None  # (C, F, h, w) of the whole video, if the caller gave it
    given: torch.Tensor | None = None  # (C, F, h, w) clean latents with which the video begins, if it is given some

    def reward_words(self, chunk_index: int) -> str:
        """What rewards read at a chunk."""
        return self.script.reward_prompt(chunk_index) or ""

    def new_trace(
        self, version: str, call_seed: int | None = None, made_with: "dict[str, trace.Json] | None" = None
    ) -> "trace.SearchTrace":
        """The record of a search that has not begun.

        Args:
            version: of this project.
            call_seed: of the generator that gave the bases.
            made_with: model, rewards, dtype, device and versions.
        """
        words = {name: getattr(self, name) for name in ("prompt", "reward_prompt")}
        words = {name: text.as_config() if timeline.is_timeline(text) else text for name, text in words.items()}
        config = {**words, **self.plan.as_config()}
        record = trace.SearchTrace(config, self.seeds[0], self.plan.fps, version, chunks=[])
        return replace(record, call_seed=call_seed, seeds=list(self.seeds), made_with=made_with or {})


def check_plan(plan: SearchPlan) -> None:
    """Checks what depends on how long the videos are and in how many steps they are made.

    Raises:
        TypeError, ValueError: the search cannot serve such a run, or the caller's noise is not that of these videos.
    """
    check_search = getattr(plan.search, "check", None)
    if check_search is not None:
        check_search(plan.num_steps, None if plan.is_endless else plan.num_chunks)
    latents = plan.request.latents
    if latents is None:
        return
    request_checks.check_float_tensor("latents", latents)
    num_channels, _, *size = plan.latent_shape
    wanted = (plan.request.num_prompts, num_channels, plan.first_frame(plan.num_chunks), *size)
    if tuple(latents.shape) != wanted:
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}; the noise of this call has {wanted}.")
    request_checks.check_finite("latents", latents)
