"""Keys of the original Wan transformer and of models trained from it, mapped to diffusers' names."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

from ..loaders.wan_names import diffusers_name
from .reading import Checkpoint, listing

FLAT = "flat"  # name of a layout whose weights are at the top level of the file
HALLMARK = "patch_embedding.weight"  # every Wan transformer has it, under this name

Value = TypeVar("Value")


@dataclass(frozen=True)
class WanLayout:
    """Place and keys of a Wan transformer in a checkpoint."""

    dict_name: str  # as in `Checkpoint.dicts`
    keys: Mapping[str, str]  # the checkpoint's, by diffusers'

    @property
    def name(self) -> str:
        return self.dict_name or FLAT

    def __str__(self) -> str:
        place = f"the dict `{self.dict_name}`" if self.dict_name else "the top level of the file"
        return f"{place}, with keys like `{next(iter(self.keys.values()))}`"


def find_wan_layouts(checkpoint: Checkpoint) -> list[WanLayout]:
    """Finds every Wan transformer that a checkpoint holds."""
    layouts = []
    for dict_name, infos in checkpoint.dicts.items():
        if any(key.endswith(HALLMARK) for key in infos):
            keys = convert_wan_transformer({key: key for key in infos})
            if HALLMARK in keys:  # and not under the name of a larger model's part
                layouts.append(WanLayout(dict_name, keys))
    return layouts


def choose_wan_layout(checkpoint: Checkpoint, preferred: tuple[str, ...], named: str | None = None) -> WanLayout:
    """Chooses the transformer to convert.

    Args:
        preferred: dicts in order, of which the first present is taken.
        named: a layout's name, instead of that order.

    Raises:
        ValueError: there is no such transformer; the message says what there is.
    """
    layouts = {layout.name: layout for layout in find_wan_layouts(checkpoint)}
    if not layouts:
        keys = [key for infos in checkpoint.dicts.values() for key in infos]
        raise ValueError(
            f"{checkpoint.path} holds no Wan transformer: none of its {len(keys)} keys is `{HALLMARK}`. They are "
            f"{listing(keys)}; `stream-t1 inspect` says more."
        )
    names = [dict_name or FLAT for dict_name in preferred] if named is None else [named]
    for name in names:
        if name in layouts:
            return layouts[name]
    wanted = " or ".join(f"`{name}`" for name in names)
    raise ValueError(f"{checkpoint.path} has the layouts {', '.join(layouts)}, and not {wanted}; name one of its own.")


def convert_wan_transformer(state_dict: Mapping[str, Value]) -> dict[str, Value]:
    """Maps original Wan keys to those of diffusers' `WanTransformer3DModel`; the values are the same objects.

    Args:
        state_dict: tensors, or anything else that has such keys, with or without the trainers' prefixes (`model.`,
            `module.`, `generator.`, `_fsdp_wrapped_module.`).

    Raises:
        ValueError: two keys are the same without their prefixes.
    """
    converted: dict[str, Value] = {}
    for original, value in state_dict.items():
        key = diffusers_name(original)
        if key in converted:
            raise ValueError(
                f"The state dict has {key!r} twice, the second time as {original!r}: convert one model at a time."
            )
        converted[key] = value
    return converted
