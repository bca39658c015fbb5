"""Adapter files for Wan's transformer: each key of a file is understood, or the file is refused.

A file holds low-rank pairs, `W += scale * B A` (Hu et al. 2021), and whole differences of parameters, under the names
of PEFT, diffusers, ComfyUI or kohya's trainers:

    lora_A, lora_B or lora_down, lora_up    the pair of a linear or convolutional layer
    lora_B.bias                             a difference of the layer's bias, scaled as the pair is
    alpha                                   scale = alpha / rank; 1 where neither the file nor its config has one
    diff, diff_b, diff_m                    differences of a module's weight, bias and modulation, not scaled
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch

from . import adapter_config, wan_names

PREFIXES = ("base_model.model.", "diffusion_model.", "transformer.", *wan_names.PREFIXES)
UNDERSCORED = ("lora_unet_", "lycoris_")  # before module names with "_" instead of "."
NAMES_WITH_UNDERSCORE = re.compile(
    "(self_attn|cross_attn|norm_[qk]|to_[qkv]|to_out|time_embedding|text_embedding|time_projection|patch_embedding|"
    "condition_embedder|time_embedder|text_embedder|time_proj|linear_[12]|proj_out|scale_shift_table)|_"
)
KINDS = {
    "down": re.compile(r"(.+)\.(?:lora_A(?:\.\w+)?|lora_down|lora\.down)\.weight"),
    "up": re.compile(r"(.+)\.(?:lora_B(?:\.\w+)?|lora_up|lora\.up)\.weight"),
    "up_bias": re.compile(r"(.+)\.(?:lora_B(?:\.\w+)?|lora_up|lora\.up)\.bias"),
    "alpha": re.compile(r"(.+)\.alpha"),
    "diff": re.compile(r"(.+)\.diff"),
    "diff_b": re.compile(r"(.+)\.diff_b"),
    "diff_m": re.compile(r"(.+)\.diff_m"),
}
PARAMETERS = {
    "up_bias": "bias",
    "diff_b": "bias",
    "diff_m": "modulation",
}  # the parameter that a kind changes; by default the weight
NUM_LISTED = 3


class Described(Protocol):
    """A tensor, or the shape and dtype of one that is not read yet."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Pair:
    """A low-rank change of one weight, by its keys in the file."""

    down: str  # A (rank, in, ...)
    up: str  # B (out, rank, ...)
    rank: int
    scale: float


@dataclass(frozen=True)
class Adapter:
    """Changes of a model's parameters, by their names in diffusers."""

    pairs: Mapping[str, Pair] = field(default_factory=dict)
    differences: Mapping[str, list[tuple[str, float]]] = field(default_factory=dict)  # keys in the file, and scales

    @property
    def parameters(self) -> list[str]:
        return list({**self.pairs, **self.differences})

    def keys(self, parameter: str) -> list[str]:
        """Keys of the file that change a parameter."""
        pair = self.pairs.get(parameter)
        return [
            *(() if pair is None else (pair.down, pair.up)),
            *(key for key, _ in self.differences.get(parameter, ())),
        ]


def split_key(key: str) -> tuple[str, str] | None:
    """Returns module, as the file names it, and kind of an adapter's key; None for any other key."""
    return next(((match[1], kind) for kind, pattern in KINDS.items() if (match := pattern.fullmatch(key))), None)


def is_adapter(keys: Iterable[str]) -> bool:
    """Tells whether a state dict with these keys changes a model instead of being one."""
    return any((parts := split_key(key)) and parts[1] != "alpha" for key in keys)


def open_adapter(
    infos: Mapping[str, Described],
    read: Callable[[list[str]], Mapping[str, torch.Tensor]],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    name: str,
    config: Mapping[str, object] | None = None,
    alpha: float | None = None,
) -> Adapter:
    """Opens an adapter, each key of which must have a parameter to change.

    Args:
        infos: the file's tensors by key, not read.
        read: reads tensors by their keys; called for alphas only.
        shapes: of the model's parameters, by their names in diffusers.
        name: of the file, for messages.
        config: PEFT's config of the adapter.
        alpha: of the training, above 0, if the caller knows it; it must not contradict the file or the config.

    Raises:
        ValueError: keys are of an unknown kind, belong to no parameter, lack their other half or do not fit, each with
            their number and names; or alphas contradict each other.
    """
    if alpha is not None and not 0 < alpha < math.inf:
        raise ValueError(f"The LoRA's alpha is {alpha}; it must be a number above 0, or left out, for its rank.")
    modules = _modules(infos, name)
    parameters = {module: _parameters(module, kinds, shapes) for module, kinds in modules.items()}
    _check_modules(parameters, shapes, name)
    _check_halves(modules, name)
    _check_shapes(modules, parameters, infos, shapes, name)
    scaling = adapter_config.Scaling(name, alpha, config or {})
    alphas = read([kinds["alpha"] for kinds in modules.values() if "alpha" in kinds])
    adapter = Adapter({}, {})
    for module, kinds in modules.items():
        named, scale = parameters[module], 1.0
        if "down" in kinds:
            rank = infos[kinds["down"]].shape[0]
            in_file = float(alphas[kinds["alpha"]]) if "alpha" in kinds else None
            scale = scaling.scale(module, _config_names(module), rank, in_file)
            adapter.pairs[named["down"]] = Pair(kinds["down"], kinds["up"], rank, scale)
        for kind in ("up_bias", "diff", "diff_b", "diff_m"):
            if kind in kinds:
                change = (kinds[kind], scale if kind == "up_bias" else 1.0)
                adapter.differences.setdefault(named[kind], []).append(change)
    return adapter


def for_diffusers(
    adapter: Adapter, tensors: Mapping[str, torch.Tensor], shapes: Mapping[str, tuple[int, ...]], *, name: str
) -> dict[str, torch.Tensor]:
    """State dict of the adapter that diffusers' `load_lora_weights` applies in full, alphas multiplied into B.

    A difference D of a linear layer's weight becomes the pair D, I; one that is 0 everywhere is left out.

    Args:
        tensors: of all of the adapter's keys.
        shapes, name: as for `open_adapter`.

    Raises:
        ValueError: it changes parameters that PEFT has no layer for: norms, modulations, a convolution's bias.
    """
    differences = {
        parameter: sum(scale * tensors[key].float() for key, scale in changes)
        for parameter, changes in adapter.differences.items()
    }
    differences = {parameter: value for parameter, value in differences.items() if bool(value.any())}
    linear = {parameter.rpartition(".")[0] for parameter, shape in shapes.items() if len(shape) == 2}
    impossible = [
        key
        for parameter in differences
        if parameter.rpartition(".")[0] not in linear or not parameter.endswith((".weight", ".bias"))
        for key, _ in adapter.differences[parameter]
    ]
    if impossible:
        raise ValueError(
            f"{name} has {len(impossible)} changes that can't be applied beside the weights: {_listing(impossible)}. "
            "PEFT adapts linear layers only. `stream-t1 convert ... --lora FILE` merges all of it."
        )
    modules = dict.fromkeys(parameter.rpartition(".")[0] for parameter in (*adapter.pairs, *differences))
    has_biases = any(parameter.endswith(".bias") for parameter in differences)
    state = {}
    for module in modules:
        pair = adapter.pairs.get(f"{module}.weight")
        weight, bias = (differences.get(f"{module}.{kind}") for kind in ("weight", "bias"))
        down, up = (tensors[pair.down], tensors[pair.up]) if pair is not None else (None, None)
        is_plain = pair is not None and pair.scale == 1.0 and weight is None and bias is None
        # PEFT needs matrices of one dtype, of more than 8 bits.
        if not is_plain or down.dtype != up.dtype or down.dtype.itemsize == 1:
            down, up = _float_pair(pair, weight, tensors, shapes[f"{module}.weight"])
        state[f"transformer.{module}.lora_A.weight"] = down
        state[f"transformer.{module}.lora_B.weight"] = up
        if has_biases:  # PEFT has them for all layers of an adapter or for none
            state[f"transformer.{module}.lora_B.bias"] = up.new_zeros(len(up)) if bias is None else bias
    return state


def _modules(infos: Mapping[str, Described], name: str) -> dict[str, dict[str, str]]:
    """Keys by module and kind, modules as the file names them."""
    modules: dict[str, dict[str, str]] = {}
    unknown, twice = [], []
    for key in infos:
        parts = split_key(key)
        if parts is None:
            unknown.append(key)
            continue
        module, kind = parts
        kinds = modules.setdefault(module, {})
        if kind in kinds:
            twice.append(kinds[kind])
        kinds[kind] = key
    if not any(set(kinds) - {"alpha"} for kinds in modules.values()):
        raise ValueError(f"{name} holds no LoRA: none of its {len(infos)} keys is like `lora_A.weight` or `.diff`.")
    unknown += [kinds["alpha"] for kinds in modules.values() if "alpha" in kinds and not {"down", "up"} & set(kinds)]
    if unknown:
        raise ValueError(f"{name} has {len(unknown)} keys that are none of a LoRA's: {_listing(unknown)}.")
    if twice:
        raise ValueError(
            f"{name} has several adapters for one module: {_listing(twice)} and others. Save the wanted one in a file "
            "of its own."
        )
    return modules


def _parameters(module: str, kinds: Mapping[str, str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Returns the parameters that a module's keys change, in diffusers' names, by kind."""
    itself = wan_names.diffusers_name(_dotted(module), PREFIXES)
    names = {}
    for kind in kinds:
        is_parameter = kind in ("diff", "diff_m") and itself in shapes  # a modulation, which is in no module
        names[kind] = itself if is_parameter else _weight_name(module, PARAMETERS.get(kind, "weight"))
    return names


def _weight_name(module: str, parameter: str = "weight") -> str:
    """A parameter of a module, in diffusers' names."""
    return wan_names.diffusers_name(f"{_dotted(module)}.{parameter}", PREFIXES)


def _config_names(module: str) -> tuple[str, str]:
    """Returns a module's names that a pattern of PEFT's config may match: the file's and diffusers'."""
    return wan_names.without_prefixes(module, PREFIXES), _weight_name(module).removesuffix(".weight")


def _dotted(module: str) -> str:
    """A module's name with dots, where kohya's trainers write `lora_unet_blocks_0_self_attn_q`."""
    prefix = next((prefix for prefix in UNDERSCORED if module.startswith(prefix)), None)
    if prefix is None:
        return module
    return NAMES_WITH_UNDERSCORE.sub(lambda match: match[1] or ".", module.removeprefix(prefix)).strip(".")


def _check_modules(
    parameters: Mapping[str, Mapping[str, str]],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
) -> None:
    absent = [module for module, names in parameters.items() if not set(names.values()) <= set(shapes)]
    if absent:
        raise ValueError(
            f"The transformer has no module for {len(absent)} of this LoRA's modules: {_listing(absent)}. {name} is "
            "for another model, or in a layout that is unknown here."
        )
    owners: dict[tuple[str, str], str] = {}
    for module, names in parameters.items():
        for kind, parameter in names.items():
            other = owners.setdefault((parameter, kind), module)
            if other != module:
                raise ValueError(
                    f"{name} has {parameter} twice, as {other} and as {module}: load one adapter at a time."
                )


def _check_halves(modules: Mapping[str, Mapping[str, str]], name: str) -> None:
    halves = []
    for module, kinds in modules.items():
        present = {"down", "up"} & set(kinds)
        if len(present) == 1 or "up_bias" in kinds and not present:
            weight = _weight_name(module)
            absent = ", ".join(f"lora_{side}" for side, kind in (("A", "down"), ("B", "up")) if kind not in present)
            halves.append(f"{weight} has no {absent}")
    if halves:
        raise ValueError(
            f"{name} lacks half of the pair of {len(halves)} of its {len(modules)} modules: {_listing(halves, '; ')}."
        )


def _check_shapes(
    modules: Mapping[str, Mapping[str, str]],
    parameters: Mapping[str, Mapping[str, str]],
    infos: Mapping[str, Described],
    shapes: Mapping[str, tuple[int, ...]],
    name: str,
) -> None:
    faults = []
    for module, kinds in modules.items():
        faults += _misfits(kinds, parameters[module], infos, shapes)
    if faults:
        raise ValueError(
            f"{name} is not a LoRA of this model: {len(faults)} changes in its {len(modules)} modules do not fit "
            f"({_listing(faults, '; ')})."
        )


def _misfits(
    kinds: Mapping[str, str],
    names: Mapping[str, str],
    infos: Mapping[str, Described],
    shapes: Mapping[str, tuple[int, ...]],
) -> Iterable[str]:
    """Yields everything that is wrong with the keys of one module."""
    found = {kind: tuple(infos[key].shape) for kind, key in kinds.items()}
    if "down" in kinds:
        weight = names["down"]
        wanted, down, up = shapes[weight], found["down"], found["up"]
        if len(wanted) < 2:
            yield f"{weight} is no linear layer of the model"
        elif (
            len(down) != len(wanted)
            or down[1:] != wanted[1:]
            or up != (wanted[0], down[0], *(1 for _ in wanted[2:]))
            or down[0] == 0
        ):
            yield f"{weight} is {wanted}, its A and B are {down} and {up}"
    for kind in ("up_bias", "diff", "diff_b", "diff_m"):
        if kind in kinds and found[kind] != shapes[names[kind]]:
            yield f"{names[kind]} is {shapes[names[kind]]}, {kinds[kind]} is {found[kind]}"
    if "alpha" in kinds and math.prod(found["alpha"]) != 1:
        yield f"{kinds['alpha']} is {found['alpha']}, and must be one number"
    dtypes = {kind: infos[key].dtype for kind, key in kinds.items() if kind != "alpha"}
    if not all(dtype.is_floating_point for dtype in dtypes.values()):
        what = "A and B" if set(dtypes) == {"down", "up"} else ", ".join(kinds[kind] for kind in dtypes)
        yield f"{next(iter(names.values()))} has {what} of {' and '.join(map(str, dtypes.values()))}, no floats"


def _float_pair(
    pair: Pair | None, difference: torch.Tensor | None, tensors: Mapping[str, torch.Tensor], shape: tuple[int, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    """A and B of one module in float32, alpha multiplied into B, a difference of the weight (out, in) appended."""
    downs, ups = [], []
    if pair is not None:
        downs.append(tensors[pair.down].float())
        ups.append(tensors[pair.up].float() * pair.scale)
    if difference is not None:
        out_features, in_features = shape
        is_wide = out_features <= in_features
        identity = torch.eye(min(shape), dtype=torch.float32, device=difference.device)
        downs.append(difference if is_wide else identity)
        ups.append(identity if is_wide else difference)
    if not downs:  # of a bias alone
        downs, ups = [torch.zeros(1, shape[1], dtype=torch.float32)], [torch.zeros(shape[0], 1, dtype=torch.float32)]
    return torch.cat(downs), torch.cat(ups, dim=1)


def _listing(names: Iterable[str], separator: str = ", ") -> str:
    names = list(names)
    return separator.join(names[:NUM_LISTED]) + (f"{separator}..." if len(names) > NUM_LISTED else "")
