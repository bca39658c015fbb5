"""The arguments of a call in the file of its run, and the call that a file is of."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from . import policy_config, request, saved_run, shipped, trace

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


def as_kept(asked: "request.VideoRequest") -> "tuple[dict[str, trace.Json], list[str]]":
    """The arguments of a call that a file can hold, and the names of those that it can't."""
    settings, given = {}, []
    for each in fields(asked):
        value = getattr(asked, each.name)
        if each.name in (*UNKEPT, "latents"):
            continue
        try:
            settings[each.name] = _kept(value)
        except TypeError:
            given.append(each.name)
    return settings, given


def _kept(value: object) -> "trace.Json":
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
        return _kept(value.tolist())
    if isinstance(value, list | tuple):
        return [_kept(each) for each in value]
    if isinstance(value, dict):
        return {"entries": {name: _kept(each) for name, each in value.items()}}
    if isinstance(getattr(value, "source", None), str):
        return value.source
    for kind, registry in _registries().items():
        name = next((name for name, known in registry.items() if _is_of(value, known)), None)
        if name is not None and is_dataclass(value):
            numbers = {each.name: _kept(getattr(value, each.name)) for each in fields(value) if each.init}
            return {kind: name, "fields": numbers}
    raise TypeError(f"a {type(value).__name__} is not kept in a file")


def _from_kept(value: "trace.Json") -> object:
    """The value of `_kept`.

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
    run: "saved_run.SavedRun",
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
