"""What searches and callbacks give, checked before the work that would be wasted on it."""

from collections.abc import Mapping, Sequence
from numbers import Integral

import numpy as np
import torch

from . import beam, choice, geometry


def check_choice(
    made: object,
    name: str,
    *,
    chunk_index: int,
    num_parents: int,
    at_most: int,
    most_back: int,
    has_reward: bool,
    may_repeat: bool,
) -> "choice.Choice":
    """The choice, with indices and weights as plain numbers.

    It is known by what it has, since a search may be of another copy of this code.

    Args:
        name: of the search.
        num_parents: beams that the search was given.
        at_most: beams that may be kept.
        most_back: chunks that it may go back.
        has_reward: whether what is kept must have a score.
        may_repeat: whether a candidate may be kept twice.

    Raises:
        TypeError: it is no `Choice` of candidates.
        ValueError: it keeps nothing, too many, what is not there, was lost, is unfinished, has no score or is of
            another chunk, or has other weights than beams; or it goes back too far, or keeps something then. Nothing
            is raised when every candidate was lost: then `kept` is empty.
    """
    if not all(hasattr(made, part) for part in ("candidates", "kept", "log_weights", "reserve", "back", "notes")):
        raise TypeError(f"{name} gave a {type(made).__name__}; a search gives a `Choice(candidates, kept)`.")
    candidates = made.candidates
    if not isinstance(candidates, list | tuple) or not all(hasattr(each, "is_finished") for each in candidates):
        raise TypeError(f"{name} gave `candidates` that are not all of `Candidate`, in a list.")
    kept, reserve = _indices(made.kept, name), _indices(made.reserve, name)
    if not candidates:
        raise ValueError(f"{name} tried no candidate; `candidates` of its `Choice` is empty.")
    for index in (*kept, *reserve):
        if not 0 <= index < len(candidates):
            raise ValueError(f"{name} keeps candidate {index} of {len(candidates)}; indices begin at 0.")
        problem = _problem(candidates[index], chunk_index, num_parents, has_reward)
        if problem is not None:
            raise ValueError(f"{name} keeps candidate {index}{problem}.")
    notes = [str(note) for note in made.notes]
    if made.back is not None:
        back = geometry.whole_number("back", made.back, least=0, most=most_back, of=f" of the `Choice` of {name}")
        if kept:
            raise ValueError(f"{name} goes back {back} chunks and keeps candidates; `kept` must be empty then.")
        return choice.Choice(list(candidates), [], back=back, notes=notes)
    if not kept and beam.alive_indices(candidates):
        raise ValueError(f"{name} keeps nothing of {len(candidates)} candidates; keep 1 to {at_most}.")
    if len(kept) > at_most:
        raise ValueError(
            f"{name} keeps {len(kept)} candidates, and says that it keeps at most {at_most}. Let its `num_beams` say "
            "the most."
        )
    if not may_repeat and len(set(kept)) < len(kept):
        raise ValueError(f'{name} keeps a candidate twice: with `candidate_seeds="reference"` both would be the same.')
    return choice.Choice(list(candidates), kept, _weights(made, name), reserve, notes=notes)


def _problem(candidate: "beam.Candidate", chunk_index: int, num_parents: int, has_reward: bool) -> str | None:
    """Why a candidate cannot be kept."""
    if candidate.lost is not None:
        return f", which was lost: {candidate.lost}"
    if not candidate.is_finished:
        return f" with {candidate.step} of {candidate.num_steps} steps done; denoise what is kept to the end"
    if candidate.chunk_index != chunk_index:
        return f" of chunk {candidate.chunk_index} at chunk {chunk_index}"
    if not isinstance(candidate.parent, Integral) or not 0 <= candidate.parent < num_parents:
        return f" of parent {candidate.parent}; of {num_parents} beams"
    if has_reward and candidate.score is None:
        return " without a score; call `steps.score` on what is kept"
    return None


def _indices(values: object, who: str) -> list[int]:
    """Whole numbers as Python's own, from a list or a one-dimensional array or tensor of them.

    Raises:
        TypeError: they are something else.
    """
    values = _as_list(values)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        given = f"a {type(values).__name__}"
        raise TypeError(f"{who} keeps {given}; `kept` holds indices into `candidates`, in a list.")
    for index in values:
        if not isinstance(index, Integral) or isinstance(index, bool):
            raise TypeError(f"{who} keeps {index!r}; `kept` holds indices into `candidates`, whole numbers.")
    return [int(index) for index in values]


def _as_list(values: object) -> object:
    """An array's or a dense tensor's numbers as a list; everything else as it is."""
    if isinstance(values, np.ndarray):
        return values.tolist()
    if torch.is_tensor(values) and values.layout == torch.strided and not (values.is_meta or values.is_nested):
        return values.tolist()
    return values


def _weights(made: "choice.Choice", name: str) -> list[float] | None:
    if made.log_weights is None:
        return None
    values = _as_list(made.log_weights)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes):
        raise TypeError(f"{name} gave `log_weights` that are a {type(values).__name__}; give a list of numbers.")
    weights = [geometry.real_number("log_weights", weight, f" of {name}") for weight in values]
    if len(weights) != len(made.kept):
        raise ValueError(f"{name} gave {len(weights)} `log_weights` for {len(made.kept)} beams; give one each.")
    return weights


def kept_by_callback(answer: object, made: "choice.Choice", num_beams: int) -> "choice.Choice":
    """The choice after a callback: the search's, unless it names other candidates, which keep their weights.

    Args:
        answer: what `callback_on_chunk_end` gave.

    Raises:
        TypeError: it is no dict, or `kept` no list of indices.
        ValueError: it has other keys, or names none, too many, one twice, or one that was lost.
    """
    kept = answer_of("callback_on_chunk_end", answer, ("candidates", "kept")).get("kept")
    if kept is None:
        return made
    kept = _indices(kept, "`callback_on_chunk_end`")
    if kept == list(made.kept):
        return made
    possible = [index for index in beam.alive_indices(made.candidates) if made.candidates[index].is_finished]
    if not 1 <= len(kept) <= num_beams or len({*kept} & {*possible}) != len(kept):
        raise ValueError(
            f"`callback_on_chunk_end` returned `kept` {kept}; it must name 1 to {num_beams} different candidates "
            f"of {possible}."
        )
    weights = dict(zip(made.kept, made.log_weights, strict=True)) if made.log_weights is not None else None
    own = None if weights is None else [weights.get(index, 0.0) for index in kept]
    return choice.Choice(made.candidates, kept, own, notes=made.notes)


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
