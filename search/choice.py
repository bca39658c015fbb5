"""What a search is, what it gives, and the checks of both.

A search is a callable, called once per chunk with `(steps, beams)`, that gives a `Choice`. `steps` is a
`stream_t1.chunk_steps.ChunkSteps`. A plain function will do; an object may say more by these attributes:

- `num_beams`: the most that it keeps; absent, 1;
- `drops`: whether it ever drops a candidate, for which it needs a reward; absent, True;
- `num_lineages`: how many base seeds it draws, so that candidate i of chunk 0 and all that grows from it have the
  seeds of the i-th of so many calls; absent, 1;
- `compares_rounds`: whether candidates that are ranked together are scored in several calls, which scores that are
  normalised within a call do not allow; absent, False;
- `check(num_steps, num_chunks)`: raises ValueError for a run that it cannot serve; `num_chunks` is None for an endless
  stream;
- `work(chunk_index, num_parents)`: the least and the most `SearchWork` of a chunk, for estimates.
"""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from numbers import Integral

import numpy as np
import torch

from . import beam, geometry, trace


@dataclass(frozen=True, eq=False)
class Choice:
    """All candidates that were tried at a chunk, and which are kept."""

    candidates: "Sequence[beam.Candidate]"
    kept: Sequence[int]  # indices into `candidates`, best first; one that is there twice gives two beams
    log_weights: Sequence[float] | None = None  # of the beams, as many as `kept`; None: 0 each
    reserve: Sequence[int] = ()  # who takes the places of those that `max_lag` drops, best first

    @property
    def survivors(self) -> "list[beam.Candidate]":
        """The kept candidates, best first."""
        return [self.candidates[index] for index in self.kept]

    def traces(self) -> "list[trace.CandidateTrace]":
        """The record of every candidate, and which beams it becomes."""
        places = [
            [place for place, kept in enumerate(self.kept) if kept == row] for row in range(len(self.candidates))
        ]
        return [trace.CandidateTrace.of(*each) for each in zip(self.candidates, places, strict=True)]

    def without_lost(self) -> "Choice":
        """The choice without kept candidates that were lost after it was made."""
        rows = [row for row, index in enumerate(self.kept) if self.candidates[index].lost is None]
        weights = None if self.log_weights is None else [self.log_weights[row] for row in rows]
        return replace(self, kept=[self.kept[row] for row in rows], log_weights=weights)


@dataclass(frozen=True)
class SearchPass:
    """Candidates that are denoised together, and then scored."""

    candidates: int
    first: int = 0  # steps that they had done before
    until: int | None = None  # and have done after it; None: all


@dataclass(frozen=True)
class SearchWork:
    """What a search does at one chunk, for estimates."""

    passes: tuple[SearchPass, ...]
    kept: int
    batch: int | None = None  # the most candidates of one parent that are denoised together; None: all of them

    @classmethod
    def of(cls, candidates: int, kept: int, batch: int | None = None) -> "SearchWork":
        """The work of a search that denoises all candidates to the end."""
        return cls((SearchPass(candidates),), kept, batch)


def search_name(search: Callable) -> str:
    """A function's own name; otherwise its class's."""
    return getattr(search, "__name__", type(search).__name__)


def most_kept(search: Callable) -> int:
    """The most beams that a search keeps."""
    return int(getattr(search, "num_beams", 1))


def check_search(search: object, argument: str = "search") -> None:
    """
    Raises:
        TypeError: `search` is a class, cannot be called, or says of itself what is no number, or not true or false.
        ValueError: it keeps no beam.
    """
    if isinstance(search, type):
        raise TypeError(
            f"`{argument}` is the class {search.__name__}; give an object of it, such as {search.__name__}()."
        )
    if not callable(search):
        raise TypeError(
            f"`{argument}` is a {type(search).__name__}; it must be a callable `search(steps, beams)` that gives a "
            "`Choice`, such as BeamSearch(2, 4)."
        )
    check_takes(argument, search, ("steps", "beams"))
    of = f" of `{argument}`, {search_name(search)},"
    for name in ("num_beams", "num_lineages"):
        geometry.whole_number(name, getattr(search, name, 1), least=1, of=of)
    for name in ("drops", "compares_rounds"):
        geometry.true_or_false(name, getattr(search, name, True), of)


def check_takes(name: str, function: Callable, arguments: Sequence[str]) -> None:
    """
    Raises:
        TypeError: `function` cannot be called with so many arguments, as far as its signature is known.
    """
    is_module = isinstance(function, torch.nn.Module) and type(function).__call__ is torch.nn.Module.__call__
    try:
        signature = inspect.signature(function.forward if is_module else function)
    except (TypeError, ValueError):  # some of C's have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"`{name}` is {search_name(function)}{signature}; it is called with ({', '.join(arguments)}): {error}."
        ) from error


def check_choice(
    choice: object, search: Callable, num_parents: int, *, at_most: int | None = None, may_repeat: bool = True
) -> Choice:
    """The choice, with indices and weights as plain numbers.

    Args:
        num_parents: beams that the search was given.
        at_most: beams that may be kept; default: those of `most_kept`.
        may_repeat: whether a candidate may be kept twice.

    Raises:
        TypeError: it is no `Choice` of candidates.
        ValueError: it keeps nothing, too many, what is not there, was lost or is unfinished, or has other weights
            than beams. Nothing is raised when every candidate was lost: then `kept` is empty.
    """
    name, at_most = search_name(search), most_kept(search) if at_most is None else at_most
    if not isinstance(choice, Choice):
        raise TypeError(f"{name} gave a {type(choice).__name__}; a search gives a `Choice(candidates, kept)`.")
    candidates = choice.candidates
    if not isinstance(candidates, list | tuple) or not all(isinstance(each, beam.Candidate) for each in candidates):
        raise TypeError(f"{name} gave `candidates` that are no list of `Candidate`.")
    kept, reserve = _indices(choice.kept, f"{name}: `kept`"), _indices(choice.reserve, f"{name}: `reserve`")
    if not candidates:
        raise ValueError(f"{name} tried no candidate; `candidates` of its `Choice` is empty.")
    for index in (*kept, *reserve):
        if not 0 <= index < len(candidates):
            raise ValueError(f"{name} keeps candidate {index} of {len(candidates)}; indices begin at 0.")
        candidate = candidates[index]
        if candidate.lost is not None:
            raise ValueError(f"{name} keeps candidate {index}, which was lost: {candidate.lost}.")
        if not candidate.is_finished:
            done = f"{candidate.step} of {candidate.num_steps} steps done"
            raise ValueError(f"{name} keeps candidate {index} with {done}; denoise what is kept to the end.")
        if not isinstance(candidate.parent, Integral) or not 0 <= candidate.parent < num_parents:
            raise ValueError(f"{name} keeps candidate {index} of parent {candidate.parent}; of {num_parents} beams.")
    if not kept and beam.alive_indices(candidates):
        raise ValueError(f"{name} keeps nothing of {len(candidates)} candidates; keep 1 to {at_most}.")
    if len(kept) > at_most:
        raise ValueError(
            f"{name} keeps {len(kept)} candidates, and says that it keeps at most {at_most}. Let its `num_beams` say "
            "the most."
        )
    if not may_repeat and len(set(kept)) < len(kept):
        raise ValueError(f'{name} keeps a candidate twice: with `candidate_seeds="reference"` both would be the same.')
    return Choice(list(candidates), kept, _weights(choice, name), reserve)


def _indices(values: object, what: str) -> list[int]:
    """Whole numbers as Python's own, from a list or a one-dimensional array or tensor of them.

    Raises:
        TypeError: they are something else.
    """
    values = _as_list(values)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{what} is a {type(values).__name__}; it must be a list of indices into `candidates`.")
    for index in values:
        if not isinstance(index, Integral) or isinstance(index, bool):
            raise TypeError(f"{what} has {index!r}; it holds indices into `candidates`, whole numbers.")
    return [int(index) for index in values]


def _as_list(values: object) -> object:
    """An array's or a dense tensor's numbers as a list; everything else as it is."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    if torch.is_tensor(values) and values.layout == torch.strided and not (values.is_meta or values.is_nested):
        return values.tolist()
    return values


def _weights(choice: Choice, name: str) -> list[float] | None:
    if choice.log_weights is None:
        return None
    values = _as_list(choice.log_weights)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{name} gave `log_weights` that are a {type(values).__name__}; give a list of numbers.")
    weights = [geometry.real_number("log_weights", weight, f" of {name}") for weight in values]
    if len(weights) != len(choice.kept):
        raise ValueError(f"{name} gave {len(weights)} `log_weights` for {len(choice.kept)} beams; give one each.")
    return weights


def kept_by_callback(answer: object, candidates: "Sequence[beam.Candidate]", num_beams: int) -> list[int] | None:
    """A callback's choice of candidates; None if it makes none.

    Args:
        answer: what `callback_on_chunk_end` gave.

    Raises:
        TypeError: it is no dict, or `kept` no list of indices.
        ValueError: it has other keys, or names none, too many, one twice, or one that was lost.
    """
    kept = answer_of("callback_on_chunk_end", answer, ("candidates", "kept")).get("kept")
    if kept is None:
        return None
    kept = _indices(kept, "`callback_on_chunk_end` returned `kept`, which")
    possible = [index for index in beam.alive_indices(candidates) if candidates[index].is_finished]
    if not 1 <= len(kept) <= num_beams or len({*kept} & {*possible}) != len(kept):
        raise ValueError(
            f"`callback_on_chunk_end` returned `kept` {kept}; it must name 1 to {num_beams} different candidates "
            f"of {possible}."
        )
    return kept


def answer_of(name: str, answer: object, keys: Sequence[str]) -> Mapping[str, object]:
    """What a callback gave: a dict; an empty one for None.

    Raises:
        TypeError: it gave something else.
        ValueError: there are other keys in it.
    """
    if answer is None:
        return {}
    if not isinstance(answer, Mapping):
        raise TypeError(f"`{name}` returned a {type(answer).__name__}; it must return a dict or None.")
    unknown = [key for key in answer if key not in keys]
    if unknown:
        raise ValueError(f"`{name}` returned {unknown[0]!r}; what it returns may have {', '.join(keys)}.")
    return answer


def as_config(value: object) -> object:
    """What a trace keeps of a search or a policy: its name and its fields, all of them plain JSON.

    Infinite numbers become "inf" or "-inf", of which JSON has none; functions their name; objects without fields of
    their own, other than numbers and texts, their class's name.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, int):
        return value
    if isinstance(value, list | tuple):
        return [as_config(each) for each in value]
    if hasattr(value, "item"):  # a number of numpy's or torch's
        return as_config(value.item())
    if is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        named = {} if hasattr(value, "__name__") else vars(value) if hasattr(value, "__dict__") else {}
        named = {name: each for name, each in named.items() if isinstance(each, bool | int | float | str | None)}
    return {"name": search_name(value), **{name: as_config(each) for name, each in named.items()}}
