"""The values of the search: a beam, and a candidate for its next chunk.

Nothing here is written again once made, and a beam's parts are shared by everything that grows from it.

Axes: C channels, F latent frames (or pixel frames), H and W latent (or pixel) height and width.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

import torch
from diffusers.utils import logging

logger = logging.get_logger(__name__)


class Released(Enum):
    """Stands for a memory or a decoder state that was let go, which is not the same as an empty one."""

    RELEASED = "released"


RELEASED = Released.RELEASED


@dataclass(frozen=True, eq=False, repr=False)
class Beam:
    """A partial video that is kept. The steps put into `memory` and `decoder_state` what the models need."""

    memory: "object | Literal[Released.RELEASED]"
    decoder_state: "object | Literal[Released.RELEASED] | None" = None  # None: nothing is decoded yet
    latents: tuple[torch.Tensor | None, ...] = ()  # one (C, F, H, W) per chunk; None: forgotten, in an endless stream
    frames: tuple[torch.Tensor | None, ...] = ()  # one (F, 3, H, W) uint8 per chunk; empty when nobody asks for pixels
    noise: torch.Tensor | None = None  # (F, C, H, W) initial noise of the last chunk; None: it is given
    seeds: tuple[int, ...] = ()  # one per chunk, as are the next four
    short: tuple[float | None, ...] = ()  # image reward; None without one
    long: tuple[float | None, ...] = ()  # video reward; None without one
    scores: tuple[float, ...] = ()  # the two fused; higher is better
    routes: tuple[str | None, ...] = ()
    lineage: tuple[int, int] | None = None  # which of the run's base seeds, and a branch of it; None: the beam's place
    log_weight: float = 0.0  # kept for searches that weigh their beams
    evicted: tuple[tuple[int, str, str], ...] = ()  # when last committed: chunks that left, their route, what was done

    def __repr__(self) -> str:
        return f"Beam(depth={self.depth}, score={self.score:.4g}, seeds={self.seeds})"

    @property
    def depth(self) -> int:
        """Chunks so far; the index of the next one."""
        return len(self.seeds)

    @property
    def score(self) -> float:
        """The last chunk's fused score; 0 before the first."""
        return self.scores[-1] if self.scores else 0.0

    @property
    def sink_start_frames(self) -> list[int]:
        """First latent frame of each sink; none when the memory was let go."""
        return [] if self.memory is RELEASED else [sink.start_frame for sink in self.memory.sinks]

    def forget(self, num_chunks: int) -> "Beam":
        """The beam without the latents and pixels of its first chunks; None stands for each."""
        gone = (None,) * num_chunks
        frames = (*gone, *self.frames[num_chunks:]) if self.frames else ()
        return replace(self, latents=(*gone, *self.latents[num_chunks:]), frames=frames)


@dataclass(frozen=True, eq=False, repr=False)
class Candidate:
    """One possible next chunk of one beam, after `step` of its denoising steps.

    A search may change what is not denoised yet: `dataclasses.replace(candidate, noise=..., renoise=..., memory=...)`.
    """

    parent: int  # index of its beam
    seed: int
    noise: torch.Tensor | None  # (F, C, H, W) initial noise; None: the chunk is given, and not made
    renoise: tuple[torch.Tensor, ...]  # the same shape, added after each step but the last
    chunk_index: int = 0
    number: int = 0  # counts a chunk's candidates in the order in which they were proposed
    drawn: tuple[torch.Tensor, ...] = ()  # `noise` and `renoise` as its seed gave them
    lineage: tuple[int, int] | None = None  # as the beam's that grows from it
    memory: object | None = None  # read, and grown, instead of the beam's
    step: int = 0  # denoising steps done
    prediction: torch.Tensor | None = None  # (C, F, H, W) clean latents as predicted so far; None before any step
    noisy: torch.Tensor | None = None  # (C, F, H, W) next step's input, if it is not `prediction` noised by `renoise`
    frames: torch.Tensor | None = None  # (F, 3, H, W) uint8, of `prediction`
    decoder_state: object | None = None  # after `frames`
    decoded_with: tuple[torch.Tensor, ...] = ()  # the predictions of the batch that was decoded, its own among them
    short: float | None = None
    long: float | None = None
    score: float | None = None
    route: str | None = None
    parts: dict[str, float] = field(default_factory=dict)
    partial_scores: tuple[tuple[int, float], ...] = ()  # (step, score) of earlier predictions
    round: int = 0  # of a search that has several at a chunk
    generation: int = 0  # of a search that has children
    ancestor: int | None = None  # index, among the chunk's candidates, of the one whose child it is
    log_weight: float | None = None  # as its search weighed it, before any resampling
    thumbnail: str | None = None  # a small picture of `frames`, as a data URL, if the call asks for it
    lost: str | None = None  # why it can't be kept
    error: Exception | None = None  # behind `lost`, if a reward raised one

    def __repr__(self) -> str:
        told = f"score={self.score}" if self.lost is None else f"lost={self.lost!r}"
        place = f"chunk_index={self.chunk_index}, number={self.number}, parent={self.parent}, seed={self.seed}"
        return f"Candidate({place}, step={self.step} of {self.num_steps}, {told})"

    @property
    def is_given(self) -> bool:
        return self.noise is None

    @property
    def num_steps(self) -> int:
        return 0 if self.is_given else len(self.renoise) + 1

    @property
    def own(self) -> list[str]:
        """What a search put instead of what its seed and its beam gave: "noise", "memory", both or nothing.

        Of a chunk that the caller gave: "given".
        """
        if self.is_given:
            return ["given"]
        is_drawn = not self.drawn or all(a is b for a, b in zip((self.noise, *self.renoise), self.drawn, strict=True))
        return ([] if is_drawn else ["noise"]) + ([] if self.memory is None else ["memory"])

    @property
    def is_finished(self) -> bool:
        return self.step == self.num_steps

    @property
    def latents(self) -> torch.Tensor | None:
        """The chunk, (C, F, H, W); None before the last step is done."""
        return self.prediction if self.is_finished else None

    def with_reward(self, kind: Literal["image", "video"], score: float, parts: dict[str, float]) -> "Candidate":
        """The candidate with an "image" (short) or "video" (long) reward."""
        named = {**self.parts, **{f"{kind}.{name}": value for name, value in parts.items()}}
        return replace(self, parts=named, **{"short" if kind == "image" else "long": score})

    def without_scores(self) -> "Candidate":
        """The candidate without pixels, decoder state and scores, which were of an earlier prediction."""
        nothing = dict.fromkeys(("frames", "decoder_state", "short", "long", "score", "route"))
        return replace(self, parts={}, decoded_with=(), **nothing)

    def going_on(self) -> "Candidate":
        """`without_scores`, with a score that it had in `partial_scores`."""
        scored = () if self.score is None else ((self.step, self.score),)
        return replace(self.without_scores(), partial_scores=(*self.partial_scores, *scored))

    def extend(self, parent: Beam) -> Beam:
        """The parent beam with this chunk at its end; its memory is still what the chunk read."""
        return replace(
            parent,
            memory=parent.memory if self.memory is None else self.memory,
            decoder_state=RELEASED if self.frames is None else self.decoder_state,  # undecoded, it has no state
            latents=(*parent.latents, self.latents),
            frames=parent.frames if self.frames is None else (*parent.frames, self.frames),
            noise=self.noise,
            seeds=(*parent.seeds, self.seed),
            short=(*parent.short, self.short),
            long=(*parent.long, self.long),
            scores=(*parent.scores, self.score),
            routes=(*parent.routes, self.route),
            lineage=self.lineage,
        )


def lose(candidate: Candidate, reason: str, chunk_index: int, error: Exception | None = None) -> Candidate:
    """The candidate without scores, pixels and decoder state, and a warning that says which and why."""
    logger.warning(f"Chunk {chunk_index}: candidate {candidate.number} is lost, {reason}.")
    return replace(set_aside(candidate, reason), error=error)


def set_aside(candidate: Candidate, reason: str) -> Candidate:
    """The candidate without scores, pixels and decoder state."""
    return replace(candidate.without_scores(), lost=reason)


def alive_indices(candidates: Sequence[Candidate]) -> list[int]:
    """Indices of the candidates that are not lost."""
    return [index for index, candidate in enumerate(candidates) if candidate.lost is None]


def newest(chunks: tuple[torch.Tensor, ...], count: int) -> tuple[torch.Tensor, ...]:
    """The last `count` chunks, or all when there are fewer."""
    return chunks[max(len(chunks) - count, 0) :]


def check_place(beams: Sequence[Beam], candidates: Sequence[Candidate], chunk_index: int) -> None:
    """Checks that beams, and candidates of theirs, are at a chunk.

    Raises:
        ValueError: a beam is of another depth, or a candidate of none of them or of another chunk.
    """
    for beam in beams:
        if beam.depth != chunk_index:
            raise ValueError(
                f"These are the steps of chunk {chunk_index}, and a beam has {beam.depth} chunks. After each chunk, "
                "go on with `steps = steps.ahead()`."
            )
    for candidate in candidates:
        if candidate.chunk_index != chunk_index or not 0 <= candidate.parent < len(beams):
            raise ValueError(
                f"{candidate} is of no beam here: these are the steps of chunk {chunk_index}, with {len(beams)} beams."
            )


def parted(beams: Sequence[Beam]) -> list[Beam]:
    """The beams; of those with one lineage all but the first get a branch of it, so that none shares seeds."""
    branched, taken = [], set()
    for beam in beams:
        while beam.lineage is not None and beam.lineage in taken:
            beam = replace(beam, lineage=(beam.lineage[0], beam.lineage[1] + 1))
        taken.add(beam.lineage)
        branched.append(beam)
    return branched
