"""The values of the search. A step is a function from beams to candidates to beams.

Nothing here is written again once made, and a beam's parts are shared by everything that grows from it.

Axes: C channels, F latent frames (or pixel frames), H and W latent (or pixel) height and width.
"""

from dataclasses import dataclass, field, replace

import torch
from diffusers.utils import logging

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Beam:
    """A partial video that is kept. The pipeline puts into `memory` and `decoder_state` what its models need."""

    memory: object
    decoder_state: object = None  # None: nothing is decoded yet, or it is needed no more
    latents: tuple[torch.Tensor | None, ...] = ()  # one (C, F, H, W) per chunk; None: forgotten, in an endless stream
    frames: tuple[torch.Tensor | None, ...] = ()  # one (F, 3, H, W) uint8 per chunk; empty when nobody asks for pixels
    noise: torch.Tensor | None = None  # (F, C, H, W) initial noise of the last chunk
    seeds: tuple[int, ...] = ()  # one per chunk, as are the next three
    short: tuple[float, ...] = ()
    long: tuple[float, ...] = ()
    routes: tuple[str | None, ...] = ()
    score: float = 0.0  # of the last chunk; higher is better

    def forget(self, num_chunks: int) -> "Beam":
        """The beam without the latents and pixels of its first chunks; None stands for each."""
        gone = (None,) * num_chunks
        frames = (*gone, *self.frames[num_chunks:]) if self.frames else ()
        return replace(self, latents=(*gone, *self.latents[num_chunks:]), frames=frames)


@dataclass(frozen=True, eq=False)
class Candidate:
    """One possible next chunk of one beam."""

    parent: int  # index of its beam
    seed: int
    noise: torch.Tensor  # (F, C, H, W) initial noise
    latents: torch.Tensor  # (C, F, H, W), clean
    frames: torch.Tensor | None = None  # (F, 3, H, W) uint8
    decoder_state: object = None
    short: float | None = None
    long: float | None = None
    score: float | None = None
    route: str | None = None
    parts: dict[str, float] = field(default_factory=dict)
    lost: str | None = None  # why it can't be kept

    def with_reward(self, kind: str, score: float, parts: dict[str, float]) -> "Candidate":
        """The candidate with an "image" (short) or "video" (long) reward."""
        named = {**self.parts, **{f"{kind}.{name}": value for name, value in parts.items()}}
        if kind == "image":
            return replace(self, short=score, parts=named)
        return replace(self, long=score, parts=named)

    def extend(self, parent: Beam) -> Beam:
        """The parent beam with this chunk at its end; its memory is still the parent's."""
        return replace(
            parent,
            decoder_state=self.decoder_state,
            latents=(*parent.latents, self.latents),
            frames=parent.frames if self.frames is None else (*parent.frames, self.frames),
            noise=self.noise,
            seeds=(*parent.seeds, self.seed),
            short=(*parent.short, self.short),
            long=(*parent.long, self.long),
            routes=(*parent.routes, self.route),
            score=self.score,
        )


def lose(candidate: Candidate, reason: str, chunk_index: int, index: int) -> Candidate:
    """The candidate without scores, pixels and decoder state, and a warning that says which and why."""
    logger.warning(f"Chunk {chunk_index}: candidate {index} is lost, {reason}.")
    return set_aside(candidate, reason)


def set_aside(candidate: Candidate, reason: str) -> Candidate:
    """The candidate without scores, pixels and decoder state."""
    return replace(candidate, lost=reason, short=None, long=None, score=None, frames=None, decoder_state=None)


def alive_indices(candidates: list[Candidate]) -> list[int]:
    """The candidates that are not lost."""
    return [index for index, candidate in enumerate(candidates) if candidate.lost is None]


def newest(chunks: tuple[torch.Tensor, ...], count: int) -> tuple[torch.Tensor, ...]:
    """The last `count` chunks, or all when there are fewer."""
    return chunks[max(len(chunks) - count, 0) :]
