"""The file of a run that is kept: what each chunk added to the beams, and what the call was asked for.

A safetensors file with JSON in its header, under `stream_t1_run`. It holds latents and noise, prompts as the
transformer reads them, seeds, scores, routes, settings and the traces. Keys and values, pixels and decoder states are
made again, by clean passes and by decoding: so the latents that were decoded together with a kept candidate are there
too, since the last bits of a decode may depend on its batch.

Axes: C channels, F latent frames, h and w latent height and width, L text tokens.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from . import beam, files, geometry, policy_config, prompt_search, request, shipped, trace

FORMAT = 1
TAG = "stream_t1_run"
ADVICE = "Name another file, or move that one."
UNKEPT = ("generator", "save_to", "prompt_embeds", "horizon")  # arguments that are not needed again, or kept otherwise
GIVEN_AGAIN = (  # arguments that may be what no file holds
    "search",
    "memory",
    "image_reward",
    "video_reward",
    "monitors",
    "attention_kwargs",
    "callback_on_step_end",
    "callback_on_chunk_end",
)


@dataclass(frozen=True, eq=False)
class KeptChunk:
    """What one chunk added to the kept beams, best first. Its tensors are on the CPU."""

    survivors: "tuple[beam.Candidate, ...]"  # without what is made again; one may be there twice
    lineages: tuple[tuple[int, int] | None, ...]  # of the beams that grew from them
    log_weights: tuple[float, ...]
    prompt: torch.Tensor  # (1, L, text dim), as its clean pass read it

    @classmethod
    def of(
        cls, survivors: "Sequence[beam.Candidate]", beams: "Sequence[beam.Beam]", prompt: torch.Tensor
    ) -> "KeptChunk":
        """What is kept of candidates and the beams that grew from them.

        Raises:
            ValueError: a candidate has a memory of the search's own, which no clean pass makes again.
        """
        for candidate in survivors:
            if "memory" in candidate.own:
                raise ValueError(
                    f"Chunk {candidate.chunk_index}: {candidate} has a memory that the search put in, which no clean "
                    "pass makes again, so `save_to` can't keep this run. Leave `save_to` out, or use another search."
                )
        moved: dict[int, torch.Tensor] = {}
        kept: dict[int, beam.Candidate] = {}
        for candidate in survivors:
            if id(candidate) not in kept:
                kept[id(candidate)] = _moved(_bare(candidate), torch.device("cpu"), moved)
        lineages = tuple(each.lineage for each in beams)
        weights = tuple(each.log_weight for each in beams)
        return cls(tuple(kept[id(each)] for each in survivors), lineages, weights, prompt)

    def on(self, device: torch.device, rows: Sequence[int], parents: Mapping[int, int]) -> "list[beam.Candidate]":
        """Some of its candidates, with their latents on a device; those that are one stay one.

        Args:
            rows: of the candidates.
            parents: places of their parents, by their index among all beams.
        """
        moved: dict[int, torch.Tensor] = {}
        placed: dict[int, beam.Candidate] = {}
        for row in rows:
            candidate = self.survivors[row]
            if id(candidate) not in placed:
                noise = candidate.noise  # stays on the CPU, where noise is drawn
                parent = parents[candidate.parent]
                placed[id(candidate)] = replace(_moved(candidate, device, moved), noise=noise, parent=parent)
        return [placed[id(self.survivors[row])] for row in rows]


def _bare(candidate: "beam.Candidate") -> "beam.Candidate":
    """A finished candidate without what is made again, or in the trace."""
    drawn = {"renoise": (), "drawn": (), "step": 1, "noisy": None}
    made = {"frames": None, "decoder_state": None, "thumbnail": None, "parts": {}}
    return replace(candidate, **drawn, **made)


def _moved(candidate: "beam.Candidate", device: torch.device, moved: dict[int, torch.Tensor]) -> "beam.Candidate":
    """The candidate with its tensors on a device; what is one tensor stays one."""

    def move(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in moved:
            moved[id(tensor)] = tensor.to(device)
        return moved[id(tensor)]

    together = tuple(move(each) for each in candidate.decoded_with)
    return replace(
        candidate, noise=move(candidate.noise), prediction=move(candidate.prediction), decoded_with=together
    )


def wanted_rows(chunks: Sequence[KeptChunk], num_older: int) -> list[list[int]]:
    """Rows of every chunk's survivors, in order: all of the last chunk's and of `num_older` before it.

    Of earlier chunks those from which these grew.
    """
    rows: list[list[int]] = []
    wanted: set[int] = set()
    for place, chunk in enumerate(reversed(chunks)):
        rows.append(list(range(len(chunk.survivors))) if place <= num_older else sorted(wanted))
        wanted = {chunk.survivors[row].parent for row in rows[-1]}
    return rows[::-1]


@dataclass(frozen=True, eq=False)
class KeptPrompt:
    """One prompt's search as it stands."""

    seeds: tuple[int, ...]  # bases
    prompt: torch.Tensor  # (1, L, text dim), as the first chunk reads it
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

    version: str  # of this project
    settings: "dict[str, trace.Json]"  # arguments of the call, but those of `given`
    given: list[str]  # arguments that no file holds, and that `resume` is given again
    levels: list[float]  # sigma of every step, after the shift
    latents: torch.Tensor | None  # (prompts, C, F, h, w), the caller's noise
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
        is_new: whether nothing may be at `path` yet.
    """

    def __init__(
        self,
        path: str | PathLike,
        version: str,
        searches: "list[prompt_search.PromptSearch]",
        *,
        is_new: bool = True,
    ) -> None:
        self.path, self.searches, self.is_new = path, searches, is_new
        plan = searches[0].plan
        settings, given = kept_settings(plan.request)
        self._content = {
            "format": FORMAT,
            "version": version,
            "settings": settings,
            "given": given,
            "levels": list(plan.levels[:-1]),
        }
        self._latents = plan.request.latents

    def write(self) -> None:
        """Writes the file anew; it appears whole or not at all.

        Raises:
            OSError: it can't be written; what was there is as it was.
        """
        store = _Tensors()
        content = {
            **self._content,
            "latents": None if self._latents is None else store.name(self._latents.cpu()),
            "prompts": [self._prompt(search, store) for search in self.searches],
        }
        text = json.dumps(content, allow_nan=False, default=lambda number: number.item())
        with files.new_file(self.path, replace=not self.is_new, advice=advice_for(self.path)) as partial:
            save_file(store.tensors, partial, metadata={TAG: text})
        self.is_new = False

    def _prompt(self, search: "prompt_search.PromptSearch", store: "_Tensors") -> "dict[str, trace.Json]":
        return {
            "seeds": list(search.inputs.seeds),
            "prompt": store.name(search.first_prompt),
            "chunks": [_chunk_json(chunk, store) for chunk in search.kept],
            "trace": search.trace.as_json(),
            "num_older": len(search.older),
            "attempts": {str(index): asdict(each) for index, each in search.attempts.items()},
        }


class _Tensors:
    """Tensors under short names; what is one tensor has one."""

    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}
        self._kept: list[torch.Tensor] = []  # so that no id is given to another one

    def name(self, tensor: torch.Tensor) -> str:
        if id(tensor) not in self._names:
            name = f"t{len(self._names)}"
            is_whole = tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.nbytes
            self.tensors[name] = tensor if is_whole else tensor.clone(memory_format=torch.contiguous_format)
            self._names[id(tensor)] = name
            self._kept.append(tensor)
        return self._names[id(tensor)]


# Fields of a candidate that a file keeps as they are.
PLAIN = ("parent", "seed", "chunk_index", "number", "short", "long", "score", "route")


def _chunk_json(chunk: KeptChunk, store: _Tensors) -> "dict[str, trace.Json]":
    unique = list({id(each): each for each in chunk.survivors}.values())
    return {
        "candidates": [
            {
                **{name: getattr(candidate, name) for name in PLAIN},
                "lineage": candidate.lineage,
                "noise": store.name(candidate.noise),
                "latents": store.name(candidate.prediction),
                "decoded_with": [store.name(each) for each in candidate.decoded_with],
            }
            for candidate in unique
        ],
        "kept": [next(row for row, each in enumerate(unique) if each is kept) for kept in chunk.survivors],
        "lineages": chunk.lineages,
        "log_weights": chunk.log_weights,
        "prompt": store.name(chunk.prompt),
    }


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
        _header(path)
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
    content = _header(path)
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
        return SavedRun(
            version=content["version"],
            settings=content["settings"],
            given=content["given"],
            levels=content["levels"],
            latents=None if content["latents"] is None else tensors[content["latents"]],
            prompts=[_read_prompt(each, tensors) for each in content["prompts"]],
        )
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise ValueError(f"{path} is a damaged saved run: {type(error).__name__}, {error}.") from error


def _header(path: str | PathLike) -> "dict[str, trace.Json]":
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


def _read_prompt(content: "dict[str, trace.Json]", tensors: dict[str, torch.Tensor]) -> KeptPrompt:
    return KeptPrompt(
        seeds=tuple(content["seeds"]),
        prompt=tensors[content["prompt"]],
        chunks=tuple(_read_chunk(chunk, tensors) for chunk in content["chunks"]),
        trace=trace.SearchTrace.from_json(content["trace"]),
        num_older=content["num_older"],
        attempts={int(index): prompt_search.Attempts(**each) for index, each in content["attempts"].items()},
    )


def _read_chunk(content: "dict[str, trace.Json]", tensors: dict[str, torch.Tensor]) -> KeptChunk:
    unique = [
        beam.Candidate(
            **{name: each[name] for name in PLAIN},
            lineage=None if each["lineage"] is None else tuple(each["lineage"]),
            noise=tensors[each["noise"]],
            renoise=(),
            step=1,
            prediction=tensors[each["latents"]],
            decoded_with=tuple(tensors[name] for name in each["decoded_with"]),
        )
        for each in content["candidates"]
    ]
    return KeptChunk(
        tuple(unique[row] for row in content["kept"]),
        tuple(None if lineage is None else tuple(lineage) for lineage in content["lineages"]),
        tuple(content["log_weights"]),
        tensors[content["prompt"]],
    )


def kept_settings(asked: "request.VideoRequest") -> "tuple[dict[str, trace.Json], list[str]]":
    """The arguments of a call that a file can hold, and the names of those that it can't."""
    settings, given = {}, []
    for each in fields(asked):
        value = getattr(asked, each.name)
        if each.name in (*UNKEPT, "latents"):
            continue
        try:
            settings[each.name] = _as_kept(value)
        except TypeError:
            given.append(each.name)
    return settings, given


def _as_kept(value: object) -> "trace.Json":
    """A value as JSON.

    Raises:
        TypeError: it is neither plain, nor a search or a policy that ships, nor loaded from the Hub.
    """
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, float) and not np.isfinite(value):
        return {"number": str(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.ndarray | np.generic):
        return _as_kept(value.tolist())
    if isinstance(value, list | tuple):
        return [_as_kept(each) for each in value]
    if isinstance(value, dict):
        return {"entries": {name: _as_kept(each) for name, each in value.items()}}
    if isinstance(getattr(value, "source", None), str):
        return value.source
    for kind, registry in _registries().items():
        name = next((name for name, known in registry.items() if _is_of(value, known)), None)
        if name is not None and is_dataclass(value):
            numbers = {each.name: _as_kept(getattr(value, each.name)) for each in fields(value) if each.init}
            return {kind: name, "fields": numbers}
    raise TypeError(f"a {type(value).__name__} is not kept in a file")


def _from_kept(value: "trace.Json") -> object:
    """The value of `_as_kept`.

    Raises:
        KeyError, TypeError, ValueError: there is none of this name, or with such fields.
    """
    if isinstance(value, list):
        return [_from_kept(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "number" in value:
        return float(value["number"])
    if "entries" in value:
        return {name: _from_kept(each) for name, each in value["entries"].items()}
    kind = next(kind for kind in _registries() if kind in value)
    return _registries()[kind][value[kind]](**{name: _from_kept(each) for name, each in value["fields"].items()})


def _registries() -> dict[str, Mapping[str, type]]:
    """Classes that a file may name, and no others are ever made from one."""
    return {"search": shipped.SHIPPED_SEARCHES, "policy": policy_config.SHIPPED_POLICIES}


def _is_of(value: object, known: type) -> bool:
    """Whether a value is of a class, of this copy of the code or of another one."""
    own = type(value)
    modules = {each.__module__.rpartition(".")[2] for each in (own, known)}
    return own.__qualname__ == known.__qualname__ and len(modules) == 1


def asked_again(
    run: SavedRun,
    path: str | PathLike,
    num_frames: int | None,
    changes: Mapping[str, object],
    changeable: Sequence[str],
) -> "request.VideoRequest":
    """The call that a file is of.

    Args:
        num_frames: of a longer video; None: as long as it was.
        changes: arguments that `resume` is given, by their names.
        changeable: those that it may be given, beside what is no shipped class.

    Raises:
        TypeError, ValueError: something is missing, may not be given, or is not valid.
    """
    allowed = dict.fromkeys((*run.given, *GIVEN_AGAIN, *changeable))
    foreign = [name for name in changes if name not in allowed]
    if foreign:
        raise TypeError(
            f"`resume` was given `{foreign[0]}`, which the saved run has, or which can't change. It takes "
            f"{', '.join(allowed)}."
        )
    missing = [name for name in run.given if name not in changes]
    if missing:
        raise ValueError(
            f"{path} does not hold {' and '.join(f'`{name}`' for name in missing)} of its call, which no file does; "
            f"give it again: `pipe.resume({str(path)!r}, {missing[0]}=...)`."
        )
    kept = {name: _from_kept(value) for name, value in run.settings.items() if name not in changes}
    if "search" in changes and changes["search"] is not None:
        kept |= {"num_beams": None, "num_candidates": None}
    elif "num_beams" in changes or "num_candidates" in changes:
        kept["search"] = None
    if kept["prompt"] is None:
        kept["prompt_embeds"] = torch.cat([each.prompt for each in run.prompts])
    if num_frames is not None and num_frames != kept["num_frames"]:
        if run.latents is not None:
            raise ValueError(f"{path} is a run with `latents`, the noise of its own length; it can't be made longer.")
        if num_frames < kept["num_frames"]:
            raise ValueError(
                f"`num_frames` is {num_frames}, and {path} is a run of {kept['num_frames']}; give as many or more."
            )
        kept["num_frames"] = num_frames
    return request.VideoRequest(**{**kept, **changes}, latents=run.latents)
