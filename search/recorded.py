"""What a trace keeps of searches and policies: their names and numbers, as plain JSON."""

import math
from dataclasses import fields, is_dataclass

from . import choice


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
    if isinstance(value, dict):
        return {str(name): as_config(each) for name, each in value.items()}
    if hasattr(value, "item") and getattr(value, "size", None) == 1:  # a number of numpy's
        return as_config(value.item())
    if hasattr(value, "numel"):  # tensors are no settings
        return f"a tensor of {tuple(value.shape)}"
    if is_dataclass(value):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
    else:
        named = {} if hasattr(value, "__name__") else vars(value) if hasattr(value, "__dict__") else {}
        named = {name: each for name, each in named.items() if isinstance(each, bool | int | float | str | None)}
    return {**{name: as_config(each) for name, each in named.items()}, "name": choice.search_name(value)}
