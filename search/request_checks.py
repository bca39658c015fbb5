"""Checks of a call's arguments, of texts, tensors and callbacks, each told with its name."""

import torch

from . import choice, geometry

CALLBACKS = {  # and what they are called with
    "callback_on_step_end": ("pipe", "step", "timestep", "tensors"),
    "callback_on_chunk_end": ("pipe", "chunk_index", "state"),
}


def per_prompt(name: str, value: object, kind: type, num_prompts: int) -> list:
    """One value of a kind, or None, for each prompt, from one for all or a list.

    Raises:
        TypeError: something else.
        ValueError: a list of another length.
    """
    values = value if isinstance(value, list) else [value] * num_prompts
    for each in values:
        if each is not None and not isinstance(each, kind):
            wanted = f"a {kind.__name__} or a list with one for each prompt"
            raise TypeError(f"`{name}` is {value!r}; it must be {wanted}.")
    if len(values) != num_prompts:
        raise ValueError(
            f"`{name}` is a list of {len(values)}, and there are {num_prompts} prompts; give one each, or one for all."
        )
    return values


def check_texts(prompt: object) -> None:
    """
    Raises:
        TypeError, ValueError: `prompt` is neither a text nor a list of texts.
    """
    texts = [prompt] if isinstance(prompt, str) else prompt
    if not (isinstance(texts, list) and texts and all(isinstance(text, str) for text in texts)):
        raise TypeError(
            f"`prompt` is {prompt!r}; it must be a string, or a list of one or more strings. Prompts that change "
            "along a video are a `PromptTimeline`."
        )
    for text in texts:
        check_encodable("prompt", text)


def check_float_tensor(name: str, tensor: object, of: str = "") -> None:
    """
    Args:
        name, of: for messages, as of `geometry.whole_number`.

    Raises:
        TypeError: `tensor` is no plain tensor of floats with content.
    """
    given = None
    if not torch.is_tensor(tensor):
        given = f"a {type(tensor).__name__}"
    elif tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
        given = "on the meta device" if tensor.is_meta else "nested" if tensor.is_nested else f"{tensor.layout}"
    elif not tensor.is_floating_point():
        given = f"{tensor.dtype}"
    if given is not None:
        raise TypeError(f"`{name}`{of} is {given}; it must be a dense tensor of floats.")


def check_finite(name: str, tensor: torch.Tensor, of: str = "") -> None:
    """
    Raises:
        ValueError: some of its numbers are infinite or NaN.
    """
    if not bool(torch.isfinite(tensor.float()).all()):
        raise ValueError(f"`{name}`{of} has numbers that are not finite.")


def check_prompt_embeds(embeds: object, text_dim: int, *, num_prompts: int | None = None, of: str = "") -> None:
    """
    Raises:
        TypeError, ValueError: `embeds` are no (prompts, tokens, text dim), all finite.
    """
    check_float_tensor("prompt_embeds", embeds, of)
    shape, prompts = tuple(embeds.shape), "1 or more prompts" if num_prompts is None else f"{num_prompts}"
    is_right = len(shape) == 3 and shape[0] > 0 and shape[1] > 0 and shape[2] == text_dim
    if not is_right or num_prompts not in (None, shape[0]):
        raise ValueError(f"`prompt_embeds`{of} has shape {shape}; it must be ({prompts}, tokens, {text_dim}).")
    check_finite("prompt_embeds", embeds, of)


def check_encodable(name: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise ValueError(f"`{name}` is {text!r}, which has half a character (a surrogate) in it.") from error


def check_callback(name: str, callback: object) -> None:
    if isinstance(callback, type):
        raise TypeError(f"`{name}` is the class {callback.__name__}; give an object of it, or a function.")
    if callback is None:
        return
    if not callable(callback):
        raise TypeError(f"`{name}` is {callback!r}; it must be a function or None.")
    choice.check_takes(name, callback, CALLBACKS[name])


def plain_attention_kwargs(given: object) -> dict[str, float | torch.Tensor]:
    if not isinstance(given, dict) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"`attention_kwargs` is {given!r}; it must be a dict of names to numbers or tensors.")
    numbers = {name: value for name, value in given.items() if name == "scale" or not torch.is_tensor(value)}
    numbers = {name: geometry.real_number(f"attention_kwargs[{name!r}]", value) for name, value in numbers.items()}
    return {**given, **numbers}
