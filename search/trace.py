"""The record of a search: what was tried, what it scored, what was kept and remembered, and what it cost.

Plain numbers and text, no tensors: `trace.save("trace.json")`, `SearchTrace.load("trace.json")`.
"""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from os import PathLike

import torch

from . import beam, files

STAGES = ("encode", "denoise", "clean_pass", "recache", "decode", "reward", "monitor")

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]


@dataclass(frozen=True)
class CandidateTrace:
    """One candidate of one chunk."""

    parent: int  # index among the beams before this chunk, best first; 0 at chunk 0
    seed: int
    short: float | None  # image reward of the chunk; None when lost
    long: float | None  # video reward of the window
    score: float | None  # the two fused, after normalisation if any
    kept: bool
    route: str | None  # decided for this chunk, for when it leaves the window; None at chunk 0
    parts: dict[str, float] = field(default_factory=dict)  # "image.NAME" and "video.NAME" to the reward's parts
    lost: str | None = None  # why it has no score
    thumbnail: str | None = None  # a small picture out of the chunk, as a data URL; None unless it was asked for
    kept_as: list[int] = field(default_factory=list)  # which of the next beams it became; before version 0.2 not told
    step: int | None = None  # denoising steps done; its scores are of the prediction after them
    own: list[str] = field(default_factory=list)  # put instead of the drawn: "noise", "memory"; "given": a given chunk
    partial_scores: list[list[float]] = field(default_factory=list)  # [step, score] of predictions before this one
    round: int = 0  # of a search that has several at a chunk
    generation: int = 0  # of a search that has children
    ancestor: int | None = None  # index, among the chunk's candidates, of the one whose child it is
    log_weight: float | None = None  # as its search weighed it, before any resampling

    @classmethod
    def of(cls, candidate: "beam.Candidate", kept_as: list[int]) -> "CandidateTrace":
        own = {"kept": bool(kept_as), "kept_as": kept_as}
        own["partial_scores"] = [list(each) for each in candidate.partial_scores]
        names = (field.name for field in fields(cls) if field.name not in own)
        return cls(**own, **{name: getattr(candidate, name) for name in names})


@dataclass(frozen=True)
class EvictionTrace:
    """A chunk that left a kept beam's window."""

    beam: int  # index among the kept beams, best first
    chunk: int  # which chunk left
    route: str  # as decided when it was made
    done: str  # as done; a full sink makes an average of an append


@dataclass
class ChunkWork:
    """What one chunk cost, roll-outs of later ones included. Filled while the chunk is made."""

    forwards: int = 0  # transformer chunk forwards while denoising; a batch of 3 counts 3
    clean_passes: int = 0  # transformer chunk forwards that commit kept candidates to memory
    recached_chunks: int = 0  # transformer chunk forwards that remember the past under a new prompt
    latents_decoded: int = 0  # latent frames through the VAE decoder
    latents_encoded: int = 0  # latent frames that the VAE encoder made of a given past
    frames_scored: int = 0  # frames that rewards read
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @property
    def chunk_forwards(self) -> int:
        """All forwards of the transformer, the unit in which searches are compared."""
        return self.forwards + self.clean_passes + self.recached_chunks

    @contextmanager
    def timed(self, stage: str, device: torch.device) -> Iterator[None]:
        """Adds the wall time of the block to `seconds[stage]`, the device's queue included."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            if device.type != "cpu":
                torch.accelerator.synchronize(device)
            self.seconds[stage] += time.perf_counter() - begin


@dataclass(frozen=True)
class ChunkTrace:
    """One chunk of the search."""

    fusion_weight: float  # of the short score
    candidates: list[CandidateTrace]  # in order of parents
    evicted: list[EvictionTrace]  # as the chunk was committed
    sinks: list[list[int]]  # per kept beam, the first latent frame of each sink
    work: ChunkWork
    log_weights: list[float] = field(default_factory=list)  # of the kept beams; empty where none has any but 0
    notes: list[str] = field(default_factory=list)  # the search's own
    # Older traces lack the next four: every chunk had the words of the trace's `config`.
    prompt: str | None = None  # None: there were only embeddings
    reward_prompt: str | None = None  # what rewards read
    prompt_weight: float = 1.0  # of the prompt, below 1 in a transition: what was before it has the rest
    is_cut: bool = False  # whether the chunk begins with a scene cut

    @classmethod
    def of(
        cls,
        candidates: list[CandidateTrace],
        beams: "list[beam.Beam]",
        fusion_weight: float,
        work: ChunkWork,
        notes: Sequence[str] = (),
        words: dict[str, str | float | bool | None] | None = None,
    ) -> "ChunkTrace":
        """The record of a chunk from its candidates, the beams that grew from them, and what is told of its prompt."""
        evicted = [EvictionTrace(place, *left) for place, beam in enumerate(beams) for left in beam.evicted]
        weights = [beam.log_weight for beam in beams]
        return cls(
            fusion_weight,
            candidates,
            evicted,
            sinks=[beam.sink_start_frames for beam in beams],
            work=work,
            log_weights=weights if any(weights) else [],
            notes=list(notes),
            **(words or {}),
        )

    def remembered(self, beams: "list[beam.Beam]") -> "ChunkTrace":
        """The record of a video's last chunk after clean passes that make the video longer."""
        evicted = [EvictionTrace(place, *left) for place, beam in enumerate(beams) for left in beam.evicted]
        num_passes = sum(bool(candidate.kept_as) for candidate in self.candidates)
        work = replace(self.work, clean_passes=self.work.clean_passes + num_passes)
        return replace(self, evicted=evicted, sinks=[beam.sink_start_frames for beam in beams], work=work)

    def grown_into(self, beam_index: int) -> CandidateTrace:
        """The candidate that became a beam; in traces before version 0.2, beams stand in the order of their scores."""
        for candidate in self.candidates:
            if beam_index in candidate.kept_as:
                return candidate
        return sorted((c for c in self.candidates if c.kept), key=lambda c: -c.score)[beam_index]


@dataclass(frozen=True)
class GivenUpTrace:
    """An attempt at a chunk that was given up, by a search that went back to this chunk or to an older one."""

    chunk: int
    record: ChunkTrace  # what it was; of the chunk at which the search turned back, nothing is kept


@dataclass(frozen=True)
class FinalTrace:
    """The order of the last beams."""

    selection: str  # "video_reward", "image_reward" (its mean) or "score"
    order: list[int]  # indices of the last chunk's kept beams, best first
    scores: list[float | None]  # in that order; None where the reward gave no number


@dataclass(frozen=True)
class SearchTrace:
    """One prompt's search."""

    config: dict[str, Json]
    seed: int  # base of the candidates' seeds
    fps: float
    version: str  # of this project
    chunks: list[ChunkTrace]
    final: FinalTrace | None = None  # None while the search runs
    # name, or "NAME.PART", to, per chunk, the kept candidates; None where a monitor had no number
    monitors: dict[str, list[list[float | None]]] = field(default_factory=dict)
    given_up: list[GivenUpTrace] = field(default_factory=list)  # in the order in which they were made
    call_seed: int | None = None  # of the generator that the bases were drawn from; None without a generator
    seeds: list[int] = field(default_factory=list)  # all bases: `seed`, then those of further lineages
    made_with: dict[str, Json] = field(default_factory=dict)  # model, rewards, dtype, device and versions

    @property
    def records(self) -> list[ChunkTrace]:
        """All that was done: every chunk, and then every attempt that was given up."""
        return [*self.chunks, *(attempt.record for attempt in self.given_up)]

    @property
    def works(self) -> list[ChunkWork]:
        """What `records` cost."""
        return [record.work for record in self.records]

    def give_up(self, num_chunks: int, attempt: ChunkTrace) -> None:
        """Enters an attempt at the next chunk with which the last `num_chunks` are given up too."""
        first = len(self.chunks) - num_chunks
        records = [*self.chunks[first:], attempt]
        self.given_up.extend(GivenUpTrace(first + place, record) for place, record in enumerate(records))
        for records in (self.chunks, *self.monitors.values()):
            del records[first:]

    def add(self, chunk: ChunkTrace, monitored: dict[str, list[float | None]]) -> None:
        """Enters a finished chunk; a part that a monitor gives for some chunks only is empty for the others."""
        for name in self.monitors.keys() | monitored.keys():
            self.monitors.setdefault(name, [[] for _ in self.chunks]).append(monitored.get(name, []))
        self.chunks.append(chunk)

    def best_path(self) -> list[CandidateTrace]:
        """The best video's chunks: its candidate of every chunk, the first one first.

        Raises:
            ValueError: the search is not finished.
        """
        if self.final is None:
            raise ValueError("This search is not finished: the best of its beams is not known.")
        return self.path(self.final.order[0])

    def path(self, beam_index: int) -> list[CandidateTrace]:
        """The chunks of one of the last kept beams, the first one first."""
        path = []
        for chunk in reversed(self.chunks):
            path.append(chunk.grown_into(beam_index))
            beam_index = path[-1].parent
        return path[::-1]

    def keep_last(self, num_chunks: int) -> None:
        """Forgets all but the last chunks, and attempts, in place."""
        for records in (self.chunks, self.given_up, *self.monitors.values()):
            del records[:-num_chunks]

    def save(self, path: str | PathLike, *, overwrite: bool = False) -> None:
        """Writes the trace as JSON; what a caller gave as numpy's numbers are plain ones there.

        The file appears whole or not at all. It replaces another trace.

        Args:
            overwrite: whether it replaces any other file as well.

        Raises:
            FileExistsError: something else is at `path`.
            OSError: `path` can't be written; what was there is as it was.
        """
        content = {"made_by": files.SEAL, **self.as_json()}
        text = json.dumps(content, indent=1, allow_nan=False, default=lambda number: number.item()) + "\n"
        advice = "It is no trace; name another file, or replace it with `overwrite=True`."
        with files.new_file(path, replace=overwrite or files.is_sealed(path), advice=advice) as file:
            file.write_bytes(files.sealed(text))

    @classmethod
    def load(cls, path: str | PathLike) -> "SearchTrace":
        """Reads what `save` wrote, of this version or an older one.

        Raises:
            ValueError: it is no trace, or a damaged one.
            OSError: there is no such file, or it can't be read.
        """
        with open(path, encoding="utf-8") as file:
            try:
                content = json.load(file)
                content.pop("made_by", None)
                return cls.from_json(content)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path} is no trace, or a damaged one: {error}") from error

    def as_json(self) -> dict[str, Json]:
        """The trace as plain values, of which `from_json` makes it again."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Json]) -> "SearchTrace":
        """The trace of `as_json`; fields that an older version did not have get their defaults."""
        content = dict(content)
        chunks = [_chunk(each) for each in content.pop("chunks")]
        given_up = [GivenUpTrace(each["chunk"], _chunk(each["record"])) for each in content.pop("given_up", [])]
        final = content.pop("final")
        final = None if final is None else FinalTrace(**final)
        return cls(**content, chunks=chunks, final=final, given_up=given_up)


def _chunk(content: dict[str, Json]) -> ChunkTrace:
    parts = {
        "candidates": [CandidateTrace(**candidate) for candidate in content["candidates"]],
        "evicted": [EvictionTrace(**eviction) for eviction in content["evicted"]],
        "work": ChunkWork(**content["work"]),
    }
    return ChunkTrace(**{**content, **parts})
