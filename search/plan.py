"""What the searches of a call have in common, and one prompt's search as it stands."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from diffusers.utils import logging

from . import beam, memory_sinking, reward_pruning, settings, trace

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What the searches of a call have in common. Nothing of it changes while they run."""

    settings: "settings.SearchSettings"
    policy: "memory_sinking.MemoryPolicy"
    image_reward: Callable | None  # `reward(frames, prompt, fps)`
    video_reward: Callable | None
    monitors: dict[str, Callable]  # rewards that are recorded and never searched by
    num_frames: int | None  # pixels' frames; None: an endless stream
    num_chunks: int  # N of unit 2; of an endless stream its horizon
    size: tuple[int, int]  # pixels, height and width
    latent_shape: tuple[int, int, int, int]  # one chunk's C, F, h, w
    window_frames: int  # latent frames of context, the first sinks and the current chunk included
    sink_frames: int  # first latent frames that are sinks: the policy's say
    levels: tuple[float, ...]  # sigma of every step, then 0
    timesteps: torch.Tensor  # (steps,)
    device: torch.device  # where the models run; looked up once, the pipeline walks all its modules for it
    dtype: torch.dtype  # of the latents that the transformer is fed
    has_pixels: bool  # whether anybody looks at frames
    has_thumbnails: bool = False
    attention_kwargs: dict[str, float] | None = None
    callback_on_step_end: Callable | None = None
    callback_tensor_inputs: tuple[str, ...] = ("latents",)
    callback_on_chunk_end: Callable | None = None

    @property
    def is_endless(self) -> bool:
        return self.num_frames is None

    @property
    def decodes_all(self) -> bool:
        """Whether somebody looks at the frames of candidates that are not kept."""
        return self.image_reward is not None or self.video_reward is not None or self.has_thumbnails

    @property
    def rolling_frames(self) -> int:
        """Latent frames of the window without the first sinks, with the current chunk."""
        return self.window_frames - self.sink_frames

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    def is_last(self, chunk_index: int) -> bool:
        return not self.is_endless and chunk_index == self.num_chunks - 1

    def fusion_weight(self, chunk_index: int) -> float:
        """Of the short score."""
        return reward_pruning.fusion_weight(chunk_index, self.num_chunks, self.settings.short_weight_cap)

    def as_config(self) -> "dict[str, trace.Json]":
        """What the trace keeps of the call."""
        height, width = self.size
        numbers = {"height": height, "width": width, "num_frames": self.num_frames, "num_chunks": self.num_chunks}
        numbers |= {"chunk_frames": self.latent_shape[1], "window_frames": self.window_frames}
        numbers |= {"sink_frames": self.sink_frames, "levels": list(self.levels[:-1])}
        return {**numbers, **self.settings.as_config(self.policy)}


@dataclass(eq=False)
class PromptSearch:
    """One prompt's search: the beams after the last finished chunk, and the record so far."""

    plan: SearchPlan
    prompt_embeds: torch.Tensor  # (1, L, text dim); a callback may replace it
    prompt_memory: object  # the models' cross-attention keys and values of it
    reward_prompt: str
    noise: torch.Tensor | None  # (C, F, h, w) of the whole video, if the caller gave it
    trace: "trace.SearchTrace"
    beams: "list[beam.Beam]"  # best first
    context: object = None  # what the only beam's forwards read, kept for its clean pass; None with several beams
    chunk_index: int = field(default=0, init=False)  # of the chunk that is being made

    def change_prompt(self, prompt_embeds: torch.Tensor, prompt_memory: object) -> bool:
        """Takes another prompt for the rest of the video, with an empty memory of it; False when it is no other."""
        prompt_embeds = prompt_embeds.to(self.prompt_embeds)
        if torch.equal(prompt_embeds, self.prompt_embeds):
            return False
        self.prompt_embeds, self.prompt_memory = prompt_embeds, prompt_memory
        return True

    def finish_chunk(self, record: "trace.ChunkTrace", monitored: dict[str, list[float | None]]) -> None:
        """Enters the chunk into the trace and goes on to the next. An endless stream keeps the last chunks alone."""
        self.trace.add(record, monitored)
        if self.plan.is_endless:
            self.trace.keep_last(self.plan.num_chunks)
        self.chunk_index += 1

    def agreeing(self, candidates: "list[beam.Candidate]", ranked: list[int]) -> list[int]:
        """Those of the ranked candidates, best first, whose video is the best one's up to `max_lag` chunks ago."""
        lag = self.plan.settings.max_lag
        if lag is None or lag > self.chunk_index or not ranked:
            return ranked
        if lag == 0:
            return ranked[:1]
        past = [self.beams[candidates[index].parent].latents[self.chunk_index - lag] for index in ranked]
        return [index for index, latents in zip(ranked, past, strict=True) if latents is past[0]]

    def num_settled(self, num_before: int) -> int:
        """How many of the video's first chunks all beams share: they can change no more. `num_before` do."""
        num_shared = num_before
        while num_shared < self.chunk_index and len({id(beam.latents[num_shared]) for beam in self.beams}) == 1:
            num_shared += 1
        return num_shared

    def forget(self, num_yielded: int) -> None:
        """Lets go of what an endless stream has given away and no reward reads again."""
        before = min(num_yielded, self.chunk_index - self.plan.settings.reward_window)
        if self.plan.is_endless and before > 0:
            self.beams = [beam.forget(before) for beam in self.beams]

    def release(self) -> None:
        """Lets go of all that only a next chunk would need: a finished search is its videos and its trace."""
        self.beams = [replace(beam, memory=None, decoder_state=None) for beam in self.beams]
        self.context = self.prompt_memory = None

    def settle_by_score(self) -> None:
        """Orders the beams by their last score, unless they are ordered: no more work for what was interrupted."""
        if self.trace.final is None:
            self.trace = replace(self.trace, final=reward_pruning.order_by("score", [b.score for b in self.beams]))

    def best_beams(self) -> "list[beam.Beam]":
        """As many beams as the call asks for, in their final order; fewer, with a warning, when fewer are left."""
        wanted = self.plan.settings.num_videos_per_prompt
        if len(self.beams) < wanted:
            reasons = "candidates were lost, or `max_lag` or a callback kept fewer"
            logger.warning(f"{len(self.beams)} of {wanted} videos are left for a prompt: {reasons}.")
        return [self.beams[index] for index in self.trace.final.order][:wanted]


def check_noise(latents: torch.Tensor | None, plan: SearchPlan, num_prompts: int) -> None:
    """
    Raises:
        ValueError: the caller's noise is not that of these videos, or there is a search, which needs noise of its own.
    """
    if latents is None:
        return
    if not torch.is_tensor(latents):
        raise TypeError(f"`latents` is a {type(latents).__name__}; it must be a tensor.")
    if plan.settings.num_beams * plan.settings.num_candidates > 1:
        raise ValueError(
            f"`latents` is the noise of one video, and a search of {plan.settings.num_beams} beams with "
            f"{plan.settings.num_candidates} candidates tries several. Use `num_beams=1, num_candidates=1`."
        )
    num_channels, num_frames, *size = plan.latent_shape
    wanted = (num_prompts, num_channels, plan.num_chunks * num_frames, *size)
    if tuple(latents.shape) != wanted:
        raise ValueError(f"`latents` has shape {tuple(latents.shape)}; the noise of this call has {wanted}.")


def check_kept(kept: list[int], candidates: "list[beam.Candidate]", num_beams: int) -> list[int]:
    """A callback's choice of candidates.

    Raises:
        ValueError: it names none, too many, one twice, or one that was lost.
    """
    kept = [int(index) for index in kept]
    possible = beam.alive_indices(candidates)
    if not 1 <= len(kept) <= num_beams or len({*kept} & {*possible}) != len(kept):
        raise ValueError(
            f"`callback_on_chunk_end` returned `kept` {kept}; it must name 1 to {num_beams} different candidates "
            f"of {possible}."
        )
    return kept
