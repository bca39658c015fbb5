"""Argument checks of the rewards.

Axes: B clips, F frames, H height and W width in pixels.
"""

import math
import numbers
from collections.abc import Iterable

import torch
from transformers import PreTrainedTokenizerBase


def whole_number(name: str, value: object, least: int) -> int:
    """Returns `value` as Python's own int; accepts numpy's too.

    Raises:
        TypeError: it is no whole number.
        ValueError: it is below `least`.
    """
    if not isinstance(value, numbers.Integral) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; it must be a whole number, {least} or more.")
    if value < least:
        raise ValueError(f"`{name}` is {value}; it must be a whole number, {least} or more.")
    return int(value)


def real_number(name: str, value: object, above: float | None = None) -> float:
    """Returns `value` as Python's own number, whole ones as int; accepts numpy's too.

    Raises:
        TypeError: it is no real number.
        ValueError: it is not finite, or not above `above`.
    """
    wanted = "a finite number" if above is None else f"a finite number above {above}"
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        raise TypeError(f"`{name}` is {value!r}; it must be {wanted}.")
    if not _is_finite(value) or (above is not None and not value > above):
        raise ValueError(f"`{name}` is {value!r}; it must be {wanted}.")
    return int(value) if isinstance(value, numbers.Integral) else float(value)


def check_type(name: str, value: object, kind: type) -> None:
    """Checks the type of an argument.

    Raises:
        TypeError: `value` is no object of this class.
    """
    if not isinstance(value, kind):
        given = f"the class {value.__name__}" if isinstance(value, type) else f"a {type(value).__name__}"
        raise TypeError(f"`{name}` is {given}; it must be a {kind.__name__}.")


def _is_finite(value: object) -> bool:
    """Tells whether it is a finite real number, of Python or of numpy."""
    if not isinstance(value, numbers.Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int of hundreds of digits
        return False


def check_plain_words(prompts: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> None:
    """Checks that no prompt contains a special token of the tokenizer.

    Raises:
        ValueError: one does, and the model would read it as that token.
    """
    # A token of one character is padding, such as "!", and occurs in any text.
    special = sorted(token for token in tokenizer.get_added_vocab() if len(token) > 1)
    for prompt in dict.fromkeys(prompts):
        # In lower case, as CLIP's tokenizer looks for its tokens.
        found = [token for token in special if token.lower() in prompt.lower()]
        if found:
            raise ValueError(
                f"`prompt` contains {', '.join(found)}, which the reward model reads as a special token. Write it "
                "another way, or give the rewards another text: `reward_prompt=...`."
            )


def check_clips(frames: torch.Tensor, prompt: list[str], fps: float | None, *, needs_fps: bool = False) -> None:
    """Checks the input of a reward.

    Raises:
        ValueError, TypeError: it is invalid; the message says what to do.
    """
    if not torch.is_tensor(frames):
        raise TypeError(f"`frames` is a {type(frames).__name__}; it must be a tensor (B, F, 3, H, W).")
    shape = tuple(frames.shape)
    if frames.ndim != 5 or shape[2] != 3:
        hint = ""
        if frames.ndim == 4:
            hint = " One clip is a batch of one: `frames[None]`."
        elif frames.ndim == 5 and shape[-1] == 3:
            hint = " Channels are last here: `frames.permute(0, 1, 4, 2, 3)`."
        elif frames.ndim == 5 and shape[1] == 3:
            hint = " Channels are before frames here: `frames.transpose(1, 2)`."
        raise ValueError(f"`frames` has shape {shape}; it must be (B, F, 3, H, W).{hint}")
    if frames.numel() == 0:
        raise ValueError(
            f"`frames` has shape {shape}, so there is nothing to score; give at least one frame per clip."
        )
    if frames.dtype != torch.uint8:
        if not frames.is_floating_point():
            raise TypeError(f"`frames` is {frames.dtype}; it must be float in [0, 1], or uint8.")
        low, high = (float(value) for value in torch.aminmax(frames))
        if not (low >= 0.0 and high <= 1.0):  # also where they are NaN
            raise ValueError(
                f"`frames` has values from {low} to {high}; they must be in [0, 1]. Pixels in 0 to 255 are divided by "
                "255, in -1 to 1 by `(frames + 1) / 2`; NaN comes from the decoder."
            )
    if not isinstance(prompt, list | tuple) or not all(isinstance(text, str) for text in prompt):
        raise TypeError(f"`prompt` is {prompt!r}; it must be a list of strings, one per clip.")
    if len(prompt) != len(frames):
        raise ValueError(f"`prompt` has {len(prompt)} texts for {len(frames)} clips; give one per clip.")
    if fps is None and not needs_fps:
        return
    if not (_is_finite(fps) and fps > 0):
        raise ValueError(f"`fps` is {fps!r}; it must be the clips' frames per second, above 0.")
