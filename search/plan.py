"""What a call asks for, and one prompt's search as it stands."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from . import beam, memory_sinking, settings, trace

Reward = Callable[[torch.Tensor, list[str], float], torch.Tensor]


@dataclass(frozen=True, eq=False)
class SearchPlan:
    """What the searches of a call have in common. Nothing of it changes while they run."""

    settings: "settings.SearchSettings"
    policy: "memory_sinking.MemoryPolicy"
    image_reward: Reward | None
    video_reward: Reward | None
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

    def release(self) -> None:
        """Lets go of all that only a next chunk would need: a finished search is its videos and its trace."""
        self.beams = [replace(beam, memory=None, decoder_state=None) for beam in self.beams]
        self.context = self.prompt_memory = None

    def best_beams(self, count: int) -> "list[beam.Beam]":
        """The first `count` beams in their final order, or in that of the last chunk while there is none."""
        order = range(len(self.beams)) if self.trace.final is None else self.trace.final.order
        return [self.beams[index] for index in order][:count]


def check_noise(latents: torch.Tensor | None, plan: SearchPlan, num_prompts: int) -> None:
    """
    Raises:
        ValueError: the caller's noise is not that of these videos, or there is a search, which needs noise of its own.
    """
    if latents is None:
        return
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


def per_prompt(name: str, value: object, num_prompts: int) -> list:
    """One value for each prompt.

    Raises:
        ValueError: a list of another length.
    """
    if not isinstance(value, list):
        return [value] * num_prompts
    if len(value) != num_prompts:
        raise ValueError(
            f"`{name}` is a list of {len(value)}, and there are {num_prompts} prompts; give one each, or one for all."
        )
    return value
