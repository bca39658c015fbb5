"""The arguments of a call in the file of its run, and the call that a file is of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch

from . import given_past, policy_config, request, saved_run, shipped, timeline, trace

# Arguments that are not needed again, or kept in another form.
UNKEPT = ("generator", "save_to", "horizon", "prompt_embeds", *given_past.PIXELS, *given_past.LATENTS)
PREFIX = "settings."  # of their tensors' names
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
class KeptSettings:
    """The arguments of a call that a file holds."""

    values: "dict[str, trace.Json]"
    given: list[str]  # those that no file holds, and that `resume` is given again
    tensors: dict[str, torch.Tensor]  # of `values`, by the names that they have there

    @classmethod
    def of(cls, arguments: Mapping[str, object]) -> "KeptSettings":
        """What is kept of arguments, by name."""
        values, given, tensors = {}, [], {}
        for name, value in arguments.items():
            if name in UNKEPT:
                continue
            try:
                values[name] = _kept(value, tensors)
            except TypeError:
                given.append(name)
        return cls(values, given, tensors)

    @classmethod
    def of_request(cls, asked: "request.VideoRequest") -> "KeptSettings":
        return cls.of({each.name: getattr(asked, each.name) for each in fields(asked)})

    def changed(self, changes: Mapping[str, object]) -> "KeptSettings":
        """The settings with other arguments, but for those that are only given again."""
        new = KeptSettings.of({name: value for name, value in changes.items() if name not in self.given})
        if new.tensors:
            raise TypeError(f"{', '.join(changes)}: tensors can't be changed in a saved run.")
        values = {name: value for name, value in self.values.items() if name not in new.given} | new.values
        tensors = {name: each for name, each in self.tensors.items() if name.startswith(PREFIX)}
        return KeptSettings(values, [*self.given, *new.given], tensors)

    def arguments(self) -> dict[str, object]:
        """The arguments by name.

        Raises:
            KeyError, TypeError, ValueError: a value is of no class that ships, or has other fields.
        """
        return {name: _from_kept(value, self.tensors) for name, value in self.values.items()}


def _kept(value: object, tensors: dict[str, torch.Tensor]) -> "trace.Json":
    """A value as JSON, its tensors put into `tensors` under the names that stand for them.

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
        return _kept(value.tolist(), tensors)
    if isinstance(value, torch.Tensor):
        name = f"{PREFIX}{len(tensors)}"
        tensors[name] = value.detach().cpu().clone()  # the caller's may be a prompt's too
        return {"tensor": name}
    if isinstance(value, list | tuple):
        return [_kept(each, tensors) for each in value]
    if isinstance(value, Mapping):
        return {"entries": [[_kept(each, tensors) for each in pair] for pair in value.items()]}
    if isinstance(getattr(value, "source", None), str):
        return value.source
    for kind, registry in _registries().items():
        name = next((name for name, known in registry.items() if _is_of(value, known)), None)
        if name is not None and is_dataclass(value):
            numbers = {each.name: _kept(getattr(value, each.name), tensors) for each in fields(value) if each.init}
            return {kind: name, "fields": numbers}
    raise TypeError(f"a {type(value).__name__} is not kept in a file")


def _from_kept(value: "trace.Json", tensors: Mapping[str, torch.Tensor]) -> object:
    """The value of `_kept`.

    Raises:
        KeyError, TypeError, ValueError: there is none of this name, or with such fields.
    """
    if isinstance(value, list):
        return [_from_kept(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if "number" in value:
        return float(value["number"])
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "entries" in value:
        return {key: _from_kept(each, tensors) for key, each in value["entries"]}
    kind = next(kind for kind in _registries() if kind in value)
    arguments = {name: _from_kept(each, tensors) for name, each in value["fields"].items()}
    return _registries()[kind][value[kind]](**arguments)


def _registries() -> dict[str, Mapping[str, type]]:
    """Classes that a file may name, and no others are ever made from one."""
    timelines = {"timeline": timeline.PromptTimeline}
    return {
        "search": shipped.SHIPPED_SEARCHES,
        "policy": policy_config.SHIPPED_POLICIES,
        "prompt": timelines,
    }


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
    allowed = dict.fromkeys((*run.settings.given, *GIVEN_AGAIN, *changeable))
    foreign = [name for name in changes if name not in allowed]
    if foreign:
        raise TypeError(
            f"`resume` was given `{foreign[0]}`, which the saved run has, or which can't change. It takes "
            f"{', '.join(allowed)}."
        )
    missing = [name for name in run.settings.given if name not in changes]
    if missing:
        raise ValueError(
            f"{path} does not hold {' and '.join(f'`{name}`' for name in missing)} of its call, which no file does; "
            f"give it again: `pipe.resume({str(path)!r}, {missing[0]}=...)`."
        )
    kept = {name: value for name, value in run.settings.arguments().items() if name not in changes}
    if "search" in changes and changes["search"] is not None:
        kept |= {"num_beams": None, "num_candidates": None}
    elif "num_beams" in changes or "num_candidates" in changes:
        kept["search"] = None
    if kept["prompt"] is None:
        kept["prompt_embeds"] = torch.cat([each.script.embeds(0) for each in run.prompts])
    if run.past is not None:
        config = run.prompts[0].trace.config
        is_picture = config["given"] in ("image", "image_latents")
        kept |= {"image_latents" if is_picture else "video_latents": run.past[None], "resize": None}
        kept |= {name: config[name] for name in ("height", "width")}
    if num_frames is not None and num_frames != kept["num_frames"]:
        if kept["latents"] is not None:
            raise ValueError(f"{path} is a run with `latents`, the noise of its own length; it can't be made longer.")
        if num_frames < kept["num_frames"]:
            raise ValueError(
                f"`num_frames` is {num_frames}, and {path} is a run of {kept['num_frames']}; give as many or more."
            )
        kept["num_frames"] = num_frames
    return request.VideoRequest(**{**kept, **changes})
