"""What made a video, as far as it is known: model, rewards, device and versions. Traces and saved runs keep it."""

import re
from collections.abc import Callable
from pathlib import Path

import diffusers
import torch
from diffusers.utils import logging

from .models.fingerprint import fingerprint
from .rewards.shipped import SHIPPED_REWARDS
from .search.choice import search_name
from .search.plan import SearchPlan
from .search.recorded import as_config
from .search.trace import Json

logger = logging.get_logger(__name__)

MODELS = ("text_encoder", "transformer", "vae")
GEOMETRY = ("chunk_frames", "first_chunk_frames", "window_frames", "sink_frames", "fps")
SNAPSHOT = re.compile(r"snapshots/([0-9a-f]{40})(?:/|$)")  # of the Hub's cache, which names folders by their commit
UNTOLD = {"training", "micro_batch_size"}  # attributes of rewards that say how they are run, not what they score


def made_with(pipe: "StreamT1Pipeline", plan: SearchPlan) -> dict[str, Json]:  # noqa: F821 - it imports this file
    """What makes the videos of a call, as plain JSON."""
    return {
        "model": model_identity(pipe),
        "rewards": reward_identities(plan),
        "dtype": str(plan.dtype).removeprefix("torch."),
        "device": _device_name(plan.device),
        "versions": _versions(),
    }


def model_identity(pipe: "StreamT1Pipeline") -> dict[str, Json]:  # noqa: F821
    """A model's name and revision, as far as they are known, its weights' fingerprints, and its config's numbers.

    Of a folder the name is its own, without the path to it.
    """
    path = str(pipe.config.get("_name_or_path") or "")
    loaded_from = str(getattr(getattr(pipe.transformer, "config", None), "_name_or_path", None) or "").replace(
        "\\", "/"
    )
    revision = SNAPSHOT.search(f"{loaded_from} {path}")
    return {
        "name": (Path(path).name if Path(path).is_dir() else path) or None,
        "revision": None if revision is None else revision.group(1),
        "weights": {name: fingerprint(getattr(pipe, name)) for name in MODELS},
        **{name: pipe.config[name] for name in GEOMETRY},
    }


def reward_identities(plan: SearchPlan) -> dict[str, Json]:
    """The rewards and monitors of a call, by the names of their arguments."""
    return {name: reward_identity(reward) for name, reward in plan.rewards.items()}


def reward_identity(reward: Callable | str | Path | None) -> dict[str, Json] | None:
    """A reward's name, source on the Hub, plain attributes, weights' fingerprint, and what it is made of."""
    if reward is None:
        return None
    if isinstance(reward, str | Path):
        return {"name": str(reward)}
    attributes = {} if hasattr(reward, "__name__") else getattr(reward, "__dict__", {})
    settings = {
        name: as_config(value)
        for name, value in attributes.items()
        if not name.startswith("_") and name not in UNTOLD and _is_plain(value)
    }
    identity = {"name": search_name(reward), "source": getattr(reward, "source", None), "settings": settings}
    if isinstance(reward, torch.nn.Module) and reward.state_dict():
        identity["weights"] = fingerprint(reward)
    inner = getattr(reward, "rewards", None)
    if isinstance(inner, list | tuple):
        identity["rewards"] = [reward_identity(each) for each in inner if callable(each)]
    return identity


def check_same_model(made: dict[str, Json], pipe: "StreamT1Pipeline", whose: str) -> None:  # noqa: F821
    """Checks that a pipeline has the model that made something; what else may change its last bits is warned of.

    Args:
        made: by `made_with`; empty when it is not known.
        whose: of what, for messages.

    Raises:
        ValueError: it is another model.
    """
    if not made:
        return logger.warning(f"{whose} does not say which model made it; it may be another one.")
    model, own, dtype = made["model"], model_identity(pipe), str(pipe.transformer.dtype).removeprefix("torch.")
    pairs = {name: (model["weights"].get(name), own["weights"][name]) for name in ("transformer", "vae")}
    other = [name for name, pair in pairs.items() if None not in pair and pair[0] != pair[1]]
    if other:
        name = model["name"] or "another model"
        revision = f" at revision {model['revision']}" if model["revision"] else ""
        raise ValueError(
            f"{whose} is of {name}{revision}, with other weights of the {' and the '.join(other)} than this "
            "pipeline's. Load that model, with the LoRA that it had."
        )
    numbers = {name: (model.get(name), own[name]) for name in GEOMETRY}
    numbers["dtype"] = made["dtype"], dtype
    for name, (theirs, mine) in numbers.items():
        if theirs != mine:
            raise ValueError(f"{whose} was made with `{name}` {theirs}, and this pipeline has {mine}. Load it alike.")
    here = {"device": _device_name(pipe._execution_device), **_versions()}
    differing = [
        f"{name} {theirs} (here {here[name]})"
        for name, theirs in {"device": made["device"], **made["versions"]}.items()
        if theirs != here[name]
    ]
    if differing:
        logger.warning(f"{whose} was made with {', '.join(differing)}: the last bits may differ.")


def check_same_rewards(made: dict[str, Json], plan: SearchPlan, whose: str) -> None:
    """
    Raises:
        ValueError: a reward or monitor is not the one that `made` tells of.
    """
    theirs, mine = made["rewards"], reward_identities(plan)
    for name in theirs | mine:
        pair = theirs.get(name), mine.get(name)
        if _comparable(pair[0]) != _comparable(pair[1]):
            told = [_told(each) for each in pair]
            raise ValueError(f"{whose} was made with {told[0]} as `{name}`, and here it is {told[1]}. Give that one.")


def _comparable(identity: dict[str, Json] | None) -> object:
    """What must agree: of rewards that do not ship, attributes may be their state."""
    if identity is None:
        return None
    settings = identity.get("settings") if identity["name"] in SHIPPED_REWARDS else None
    inner = [_comparable(each) for each in identity.get("rewards", ())]
    return identity["name"], identity.get("weights"), settings, inner


def _told(identity: dict[str, Json] | None) -> str:
    if identity is None:
        return "none"
    weights = f" with the weights {identity['weights']}" if identity.get("weights") else ""
    settings = identity.get("settings") or {}
    named = ", ".join(f"{name}={value!r}" for name, value in settings.items())
    return f"{identity['name']}({named}){weights}" if named else f"{identity['name']}{weights}"


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "diffusers": diffusers.__version__}


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _device_name(device: torch.device) -> str:
    return f"cuda, {torch.cuda.get_device_name(device)}" if device.type == "cuda" else device.type
