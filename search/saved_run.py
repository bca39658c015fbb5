"""The file of a run that is kept: what each chunk added to the beams, and what the call was asked for.

A safetensors file with JSON in its header, under `stream_t1_run`. It holds latents and noise, prompts as the
transformer reads them, seeds, scores, routes, settings and the traces. Keys and values, pixels and decoder states are
made again, by clean passes and by decoding: so the latents that were decoded together with a kept candidate are there
too, since the last bits of a decode may depend on its batch.

Axes: C channels, F latent frames, h and w latent height and width, L text tokens.
"""

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, is_dataclass, replace
from os import PathLike
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import beam, files, geometry, kept_settings, prompt_search, script, trace

FORMAT = 1
TAG = "stream_t1_run"
PLAIN = ("parent", "seed", "number", "short", "long", "score", "route")  # of a candidate, kept as they are
ADVICE = "Name another file, or move that one."


@dataclass(frozen=True, eq=False)
class KeptCandidate:
    """What is kept of a candidate; rows are of its chunk's tensors."""

    parent: int
    seed: int
    number: int
    short: float | None
    long: float | None
    score: float | None
    route: str | None
    noise: int | None  # row; None: the chunk is given
    latents: int  # row
    decoded_with: tuple[int, ...]  # rows: the latents of the batch that was decoded, its own among them


@dataclass(frozen=True, eq=False)
class KeptChunk:
    """What one chunk added to the kept beams, best first. Its tensors are on the CPU."""

    candidates: tuple[KeptCandidate, ...]  # that were kept, each once
    kept: tuple[int, ...]  # indices of candidates, one per beam
    lineages: tuple[tuple[int, int] | None, ...]  # of the beams
    log_weights: tuple[float, ...]
    prompt: torch.Tensor | None  # (1, L, text dim), if a callback changed it; None: the script's
    tensors: dict[str, torch.Tensor]  # "latents" (rows, C, F, h, w) and, if any is made, "noise" (rows, F, C, h, w)

    @classmethod
    def of(
        cls, survivors: "Sequence[beam.Candidate]", beams: "Sequence[beam.Beam]", prompt: torch.Tensor | None
    ) -> "KeptChunk":
        """What is kept of candidates and the beams that grew from them.

        Raises:
            ValueError: a candidate has a memory of the search's own, which no clean pass makes again.
        """
        unique = list({id(each): each for each in survivors}.values())
        latents: dict[int, torch.Tensor] = {}
        for candidate in unique:
            if "memory" in candidate.own:
                raise ValueError(
                    f"Chunk {candidate.chunk_index}: {candidate} has a memory that the search put in, which no clean "
                    "pass makes again, so `save_to` can't keep this run. Leave `save_to` out, or use another search."
                )
            latents |= {id(each): each for each in (*candidate.decoded_with, candidate.prediction)}
        rows = {key: row for row, key in enumerate(latents)}
        tensors, made = {"latents": torch.stack(list(latents.values())).cpu()}, [c for c in unique if not c.is_given]
        if made:
            tensors["noise"] = torch.stack([each.noise.cpu() for each in made])
        return cls(
            candidates=tuple(
                KeptCandidate(
                    **{name: getattr(candidate, name) for name in PLAIN},
                    noise=None if candidate.is_given else next(row for row, c in enumerate(made) if c is candidate),
                    latents=rows[id(candidate.prediction)],
                    decoded_with=tuple(rows[id(each)] for each in candidate.decoded_with),
                )
                for candidate in unique
            ),
            kept=tuple(next(row for row, each in enumerate(unique) if each is one) for one in survivors),
            lineages=tuple(each.lineage for each in beams),
            log_weights=tuple(each.log_weight for each in beams),
            prompt=prompt,
            tensors=tensors,
        )

    def as_json(self) -> dict[str, object]:
        """All but its tensors."""
        return {name: getattr(self, name) for name in ("candidates", "kept", "lineages", "log_weights")}

    def parent(self, row: int) -> int:
        """The beam before this chunk, best first, from which one after it grew."""
        return self.candidates[self.kept[row]].parent

    def again(
        self, chunk_index: int, rows: Sequence[int], parents: Mapping[int, int], device: torch.device
    ) -> "list[beam.Candidate]":
        """Finished candidates of some beams, with their latents on a device. What was one is one again.

        Args:
            rows: of the beams.
            parents: places of their parents, by their index among all beams.
        """
        latents = [row.clone() for row in self.tensors["latents"].to(device)]
        noise = [row.clone() for row in self.tensors.get("noise", ())]  # on the CPU, where noise is drawn
        made: dict[int, beam.Candidate] = {}
        for index in dict.fromkeys(self.kept[row] for row in rows):
            kept = self.candidates[index]
            plain = {name: getattr(kept, name) for name in PLAIN[1:]}
            made[index] = beam.Candidate(
                parent=parents[kept.parent],
                noise=None if kept.noise is None else noise[kept.noise],
                renoise=(),
                chunk_index=chunk_index,
                step=0 if kept.noise is None else 1,
                prediction=latents[kept.latents],
                decoded_with=tuple(latents[row] for row in kept.decoded_with),
                **plain,
            )
        return [made[self.kept[row]] for row in rows]


def wanted_rows(chunks: Sequence[KeptChunk], num_older: int) -> list[list[int]]:
    """Rows of every chunk's survivors, in order: all of the last chunk's and of `num_older` before it.

    Of earlier chunks those from which these grew.
    """
    rows: list[list[int]] = []
    wanted: set[int] = set()
    for place, chunk in enumerate(reversed(chunks)):
        rows.append(list(range(len(chunk.kept))) if place <= num_older else sorted(wanted))
        wanted = {chunk.parent(row) for row in rows[-1]}
    return rows[::-1]


@dataclass(frozen=True, eq=False)
class KeptPrompt:
    """One prompt's search as it stands."""

    seeds: tuple[int, ...]  # bases
    script: "script.PromptScript"
    chunks: tuple[KeptChunk, ...]
    trace: "trace.SearchTrace"
    num_older: int  # chunks that the search may go back to
    attempts: "dict[int, prompt_search.Attempts]"  # by chunk, of those that were given up

    def cut(self, num_chunks: int) -> "KeptPrompt":
        """The search as it was after so many chunks, if it never went back."""
        record = self.trace
        if num_chunks >= len(self.chunks):
            return self
        monitors = {name: values[:num_chunks] for name, values in record.monitors.items()}
        given_up = [each for each in record.given_up if each.chunk < num_chunks]
        record = replace(record, chunks=record.chunks[:num_chunks], monitors=monitors, given_up=given_up, final=None)
        return replace(self, chunks=self.chunks[:num_chunks], trace=record, num_older=num_chunks, attempts={})


@dataclass(frozen=True, eq=False)
class SavedRun:
    """What a file holds."""

    settings: "kept_settings.KeptSettings"
    levels: list[float]  # sigma of every step, after the shift
    past: torch.Tensor | None  # (C, F, h, w), with what the videos begin, if it is given
    prompts: list[KeptPrompt]

    @property
    def made_with(self) -> "dict[str, trace.Json]":
        """Model, rewards, dtype, device and versions that made it."""
        return self.prompts[0].trace.made_with

    def cut(self, num_chunks: int) -> "SavedRun":
        """The run as it was after so many chunks of every prompt.

        Raises:
            TypeError, ValueError: it is no number of chunks that the run has.
        """
        most = max(len(each.chunks) for each in self.prompts)
        num_chunks = geometry.whole_number("from_chunk", num_chunks, least=0, most=most)
        return replace(self, prompts=[each.cut(num_chunks) for each in self.prompts])


class RunFile:
    """Writes the searches of a call to a file, again after every chunk.

    Args:
        path: of the file.
        version: of this project.
        searches: one per prompt.
        settings: of the call.
        is_new: whether nothing may be at `path` yet.
    """

    def __init__(
        self,
        path: str | PathLike,
        version: str,
        searches: "list[prompt_search.PromptSearch]",
        settings: "kept_settings.KeptSettings",
        *,
        is_new: bool = True,
    ) -> None:
        self.path, self.searches, self.is_new = path, searches, is_new
        self._writer: threading.Thread | None = None
        self._error: Exception | None = None
        inputs = searches[0].inputs
        self._content = {
            "format": FORMAT,
            "version": version,
            "settings": settings.values,
            "given": settings.given,
            "levels": inputs.plan.levels[:-1],
        }
        self._tensors = dict(settings.tensors)
        if inputs.given is not None:
            self._tensors["past"] = inputs.given.cpu()
        self._tensors = {name: _whole(tensor) for name, tensor in self._tensors.items()}

    def write(self) -> None:
        """Begins to write the file anew, beside the work that goes on; it appears whole or not at all.

        Raises:
            OSError: it could not be written the last time; what was there is as it was.
        """
        self.wait()
        tensors = dict(self._tensors)
        prompts = [_prompt_json(search, f"prompts.{row}", tensors) for row, search in enumerate(self.searches)]
        text = json.dumps({**self._content, "prompts": prompts}, allow_nan=False, default=_plain)
        self._writer = threading.Thread(target=self._save, args=(tensors, text), name=f"writing {self.path}")
        self._writer.start()

    def wait(self) -> None:
        """Waits until what `write` began is on the disk.

        Raises:
            OSError: it could not be written; what was there is as it was.
        """
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _save(self, tensors: dict[str, torch.Tensor], text: str) -> None:
        try:
            advice = advice_for(self.path) if self.is_new else ADVICE
            with files.new_file(self.path, replace=not self.is_new, advice=advice) as partial:
                save_file(tensors, partial, metadata={TAG: text})
            self.is_new = False
        except SafetensorError as error:  # of a disk that is full
            self._error = OSError(f"{self.path} could not be written: {error}")
        except Exception as error:  # to be raised where the run is
            self._error = error


def _plain(value: object) -> object:
    """A data class as a dict, without the copies of `asdict`; a number of numpy's as Python's."""
    return vars(value) if is_dataclass(value) else value.item()


def _prompt_json(
    search: "prompt_search.PromptSearch", name: str, tensors: dict[str, torch.Tensor]
) -> dict[str, object]:
    """One prompt's search, with its tensors put under names that begin with `name`."""
    embeds = _Embeds()
    told, chunks = _script_json(search.inputs.script, embeds), []
    for index, chunk in enumerate(search.kept):
        tensors |= {f"{name}.chunks.{index}.{kind}": tensor for kind, tensor in chunk.tensors.items()}
        chunks.append({**chunk.as_json(), "prompt": embeds.row(chunk.prompt)})
    tensors |= {f"{name}.embeds.{index}": tensor for index, tensor in enumerate(embeds.tensors)}
    return {
        "seeds": search.inputs.seeds,
        "script": told,
        "num_embeds": len(embeds.tensors),
        "chunks": chunks,
        "trace": search.trace,
        "num_older": len(search.older),
        "attempts": search.attempts,
    }


class _Embeds:
    """Embedded prompts, each once."""

    def __init__(self) -> None:
        self._given: list[torch.Tensor] = []
        self.tensors: list[torch.Tensor] = []

    def row(self, tensor: torch.Tensor | None) -> int | None:
        """Where it is; None for none."""
        if tensor is None:
            return None
        for row, each in enumerate(self._given):
            if each is tensor:
                return row
        self._given.append(tensor)
        self.tensors.append(_whole(tensor.cpu()))
        return len(self.tensors) - 1


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor in memory of its own, as files of safetensors want it."""
    is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
    return tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format)


def _script_json(told: "script.PromptScript", embeds: _Embeds) -> dict[str, object]:
    rewards = told.reward_changes
    return {
        "changes": [_change_json(change, embeds) for change in told.changes],
        "reward_changes": None if rewards is None else [_change_json(change, embeds) for change in rewards],
        "cuts": told.cuts,
    }


def _change_json(change: "script.PromptChange", embeds: _Embeds) -> dict[str, object]:
    return {**vars(change), "embeds": embeds.row(change.embeds)}


def _read_script(content: "dict[str, trace.Json]", embeds: list[torch.Tensor]) -> "script.PromptScript":
    def read(changes: "list[dict[str, trace.Json]]") -> "tuple[script.PromptChange, ...]":
        rows = ((each, each["embeds"]) for each in changes)
        return tuple(
            script.PromptChange(**{**each, "embeds": None if row is None else embeds[row]}) for each, row in rows
        )

    rewards = content["reward_changes"]
    return script.PromptScript(
        read(content["changes"]), None if rewards is None else read(rewards), tuple(content["cuts"])
    )


def check_new(path: object) -> None:
    """Tries whether a new run can be kept at `path`.

    Raises:
        TypeError: it is no path.
        OSError: something is there, or the folder is absent or takes no file.
    """
    if not isinstance(path, str | PathLike):
        raise TypeError(f"`save_to` is {path!r}; it must be the path of a file that is not there yet.")
    try:
        files.check_place(path, advice=advice_for(path))
    except OSError as error:
        raise type(error)(f"`save_to`: {error}") from error


def advice_for(path: str | PathLike) -> str:
    """What to do where a file is already."""
    try:
        read_header(path)
    except (ValueError, OSError):
        return ADVICE
    return f"It is a saved run: go on with it by `pipe.resume({str(path)!r})`, or move it."


def read_run(path: str | PathLike, version: str) -> SavedRun:
    """Reads a file of `RunFile`.

    Args:
        version: of this project.

    Raises:
        ValueError: it is no saved run, cut short, damaged, or of another format or version.
        OSError: there is no such file, or it can't be read.
    """
    content = read_header(path)
    if content.get("format") != FORMAT:
        raise ValueError(
            f"{path} is a saved run of format {content.get('format')!r}; this version of Stream-T1 reads {FORMAT}."
        )
    if content.get("version") != version:
        raise ValueError(
            f"{path} is a run of Stream-T1 {content.get('version')}, and this is {version}, which might make another "
            "video of it. Go on with that version, or begin anew."
        )
    with safe_open(path, "pt") as file:  # copies: memory of the file's own alignment gives other last bits
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    try:
        if not content["prompts"]:
            raise ValueError("it has no prompt")
        return SavedRun(
            settings=kept_settings.KeptSettings(content["settings"], content["given"], tensors),
            levels=content["levels"],
            past=tensors.get("past"),
            prompts=[_read_prompt(each, f"prompts.{row}", tensors) for row, each in enumerate(content["prompts"])],
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is a damaged saved run: {type(error).__name__}, {error}.") from error


def read_header(path: str | PathLike) -> "dict[str, trace.Json]":
    """What the file's JSON says.

    Raises:
        ValueError: it is no saved run, or cut short.
        FileNotFoundError: there is no such file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file.")
    try:
        with safe_open(path, "pt") as file:
            text = (file.metadata() or {}).get(TAG)
        content = None if text is None else json.loads(text)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no saved run, or is cut short: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is a safetensors file, but no saved run of Stream-T1.")
    return content


def _read_prompt(content: "dict[str, trace.Json]", name: str, tensors: dict[str, torch.Tensor]) -> KeptPrompt:
    embeds = [tensors[f"{name}.embeds.{index}"] for index in range(content["num_embeds"])]
    chunks = []
    for index, chunk in enumerate(content["chunks"]):
        candidates = [{**each, "decoded_with": tuple(each["decoded_with"])} for each in chunk["candidates"]]
        chunks.append(
            KeptChunk(
                candidates=tuple(KeptCandidate(**each) for each in candidates),
                kept=tuple(chunk["kept"]),
                lineages=tuple(None if lineage is None else tuple(lineage) for lineage in chunk["lineages"]),
                log_weights=tuple(chunk["log_weights"]),
                prompt=None if chunk["prompt"] is None else embeds[chunk["prompt"]],
                tensors={
                    kind: tensors[f"{name}.chunks.{index}.{kind}"]
                    for kind in ("latents", "noise")
                    if kind == "latents" or any(each["noise"] is not None for each in candidates)
                },
            )
        )
    return KeptPrompt(
        seeds=tuple(content["seeds"]),
        script=_read_script(content["script"], embeds),
        chunks=tuple(chunks),
        trace=trace.SearchTrace.from_json(content["trace"]),
        num_older=content["num_older"],
        attempts={int(index): prompt_search.Attempts(**each) for index, each in content["attempts"].items()},
    )
