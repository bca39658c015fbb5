"""The rewards that a call names: found to be rewards first, loaded when everything else was found right."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from . import base


def chosen_reward(
    name: str, argument: Callable | str | Path | bool | None, component: Callable | None
) -> Callable | str | Path | None:
    """A call's argument; the pipeline's component when that is None; none when it is False. Nothing is loaded.

    Raises:
        TypeError: it is neither a reward nor a name of one.
    """
    if argument is False:
        return None
    reward = component if argument is None else argument
    if reward is None or isinstance(reward, str | Path):
        return reward
    if isinstance(reward, type):
        raise TypeError(f"`{name}` is the class {reward.__name__}; give an object of it.")
    if not callable(reward):
        raise TypeError(
            f"`{name}` is a {type(reward).__name__}; it must be a callable `reward(frames, prompt, fps)`, None for "
            "the pipeline's own, or False for none."
        )
    return reward


def loaded_reward(reward: Callable | str | Path | None, device: torch.device | None = None) -> Callable | None:
    """The reward; a converted folder's path, or its id on the Hub, is loaded and goes to `device`."""
    return base.as_component(reward).to(device) if isinstance(reward, str | Path) else reward


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
