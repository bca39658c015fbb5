"""The rewards that a call names: found to be rewards first, loaded when everything else was found right."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from diffusers.utils import logging

from . import base

logger = logging.get_logger(__name__)


def chosen_reward(
    name: str, argument: Callable | str | Path | bool | None, component: Callable | None
) -> Callable | str | Path | None:
    """A call's argument; the pipeline's component when that is None; none when it is False. Nothing is loaded.

    Raises:
        TypeError: it is neither a reward nor a name of one.
        ValueError: it is an empty name.
    """
    if argument is False:
        return None
    reward = component if argument is None else argument
    if reward is not None:
        check_kind(name, reward, "None for the pipeline's own, or False for none")
    return reward


def check_kind(name: str, reward: object, otherwise: str | None = None) -> None:
    """Checks that it is a reward or the name of one; nothing is loaded.

    Args:
        otherwise: what the argument may be besides, for the message.

    Raises:
        TypeError: it is neither.
        ValueError: it is an empty name.
    """
    if isinstance(reward, type):
        raise TypeError(f"`{name}` is the class {reward.__name__}; give an object of it.")
    if not callable(reward) and not isinstance(reward, str | Path):
        wanted = "a callable `reward(frames, prompt, fps)`, or the folder or Hub id of a converted reward"
        wanted += "" if otherwise is None else f"; {otherwise}"
        raise TypeError(f"`{name}` is a {type(reward).__name__}; it must be {wanted}.")
    if callable(reward):
        _check_signature(name, reward)
    if isinstance(reward, str) and not reward:
        raise ValueError(f"`{name}` is an empty text; give the folder or Hub id of a converted reward.")


def _check_signature(name: str, reward: Callable) -> None:
    try:
        signature = inspect.signature(reward)  # of a module not its `forward`: hooks may come before that
    except (TypeError, ValueError):  # some of C's have none
        return
    try:
        signature.bind("frames", "prompt", "fps")
    except TypeError as error:
        raise TypeError(
            f"`{name}` takes {signature}; a reward is called with (frames, prompt, fps): {error}."
        ) from error


def loaded_reward(
    name: str, reward: Callable | str | Path | None, device: torch.device | None = None
) -> Callable | None:
    """The reward; a converted folder's path, or its id on the Hub, is loaded and goes to `device`.

    Raises:
        ValueError: it cannot be loaded.
    """
    if not isinstance(reward, str | Path):
        return reward
    try:
        return base.as_component(reward).to(device)
    except (ValueError, OSError) as error:
        raise ValueError(f"`{name}` cannot be loaded: {error}") from error


def check_rewards(
    rewards: Mapping[str, Callable | str | Path | None], *, words: list[str | None], num_beams: int, has_pixels: bool
) -> None:
    """Of rewards that are only named, and not loaded, all but what their class says is checked.

    Args:
        rewards: under the names of their arguments.
        words: what they are to read, one text per prompt; None where there are only embeddings.
        num_beams: the most that the search keeps.
        has_pixels: whether there is a VAE.

    Raises:
        ValueError: a reward reads what this call does not have, or says that it cannot serve such a search.
    """
    for name, reward in rewards.items():
        if reward is None:
            continue
        if not has_pixels:
            raise ValueError(f"`{name}` reads pixels, and this pipeline has no VAE. Load one, or pass `{name}=False`.")
        if None in words and getattr(reward, "reads_prompt", False):
            raise ValueError(
                f"`{name}` reads the prompt, and there are only `prompt_embeds`. Say it in words: `reward_prompt=...`."
            )
        check_request = getattr(reward, "check_request", None)
        if check_request is not None:
            check_request([text or "" for text in words], num_beams)


def check_sources(sources: object, names: Sequence[str]) -> None:
    """Checks where rewards are said to come from.

    Raises:
        TypeError: it is no dict of the rewards' names to Hub ids.
    """
    if sources is None:
        return
    if not isinstance(sources, dict) or not all(key in names and isinstance(sources[key], str) for key in sources):
        raise TypeError(f"`reward_sources` is {sources!r}; it must be a dict of {' and '.join(names)} to Hub ids.")


def warn_of_missed(names: Sequence[str], sources: Mapping[str, str]) -> None:
    """Says of rewards that a call goes without where the pipeline once had them from."""
    for name in names:
        if name in sources:
            logger.warning(f"There is no `{name}`. The pipeline was saved with the one of `{name}={sources[name]!r}`.")
