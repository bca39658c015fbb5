"""What a call asks for, and one prompt's search as it stands."""

from collections.abc import Callable
from dataclasses import dataclass, replace

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
    num_chunks: int
    latent_shape: tuple[int, int, int, int]  # one chunk's C, F, h, w
    sink_frames: int  # first latent frames that are sinks: the policy's say
    rolling_frames: int  # latent frames of the window without the first sinks, with the current chunk
    levels: tuple[float, ...]  # sigma of every step, then 0
    timesteps: torch.Tensor  # (steps,)
    device: torch.device  # where the models run; looked up once, the pipeline walks all its modules for it
    dtype: torch.dtype  # of the latents that the transformer is fed
    has_pixels: bool  # whether anybody looks at frames
    attention_kwargs: dict[str, float] | None = None
    callback_on_step_end: Callable | None = None
    callback_tensor_inputs: tuple[str, ...] = ("latents",)
    callback_on_chunk_end: Callable | None = None

    @property
    def has_reward(self) -> bool:
        return self.image_reward is not None or self.video_reward is not None

    @property
    def num_steps(self) -> int:
        return len(self.levels) - 1

    def fusion_weight(self, chunk_index: int) -> float:
        """Of the short score."""
        return reward_pruning.fusion_weight(chunk_index, self.num_chunks, self.settings.short_weight_cap)


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

    @property
    def chunk_index(self) -> int:
        """Of the chunk that is being made."""
        return len(self.trace.chunks)

    def change_prompt(self, prompt_embeds: torch.Tensor, prompt_memory: object) -> bool:
        """Takes another prompt for the rest of the video, with an empty memory of it; False when it is no other."""
        prompt_embeds = prompt_embeds.to(self.prompt_embeds)
        if torch.equal(prompt_embeds, self.prompt_embeds):
            return False
        self.prompt_embeds, self.prompt_memory = prompt_embeds, prompt_memory
        return True

    def release(self) -> None:
        """Lets go of all that only a next chunk would need: a finished search is its videos and its trace."""
        self.beams = [replace(beam, memory=None, decoder_state=None) for beam in self.beams]
        self.context = self.prompt_memory = None

    def best_beams(self) -> "list[beam.Beam]":
        """As many beams as the call asks for, in their final order; fewer, with a warning, when fewer are left."""
        wanted = self.plan.settings.num_videos_per_prompt
        if len(self.beams) < wanted:
            logger.warning(f"{len(self.beams)} of {wanted} videos are left for a prompt: candidates were lost.")
        return [self.beams[index] for index in self.trace.final.order][:wanted]


def check_prompt_embeds(prompt_embeds: torch.Tensor, text_dim: int) -> None:
    """
    Raises:
        TypeError: it is no tensor.
        ValueError: it is not of one or more prompts, for this transformer.
    """
    if not torch.is_tensor(prompt_embeds):
        raise TypeError(f"`prompt_embeds` is a {type(prompt_embeds).__name__}; it must be a tensor.")
    if prompt_embeds.ndim != 3 or len(prompt_embeds) == 0 or prompt_embeds.shape[2] != text_dim:
        shape = tuple(prompt_embeds.shape)
        raise ValueError(f"`prompt_embeds` has shape {shape}; it must be (1 or more prompts, tokens, {text_dim}).")


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
