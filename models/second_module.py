"""A second model over the weights of a first, so that a pipeline can change the model and leave its owner's as it is.

Modules with children are made again; those without, which hold nearly all weights, are the same objects in both. Both
models see changes of weights: moving, casting, loading, quantising, fusing an adapter. Attributes of modules with
children are each model's own: hooks, adapters, attention processors, flags. The second starts with those of the first.
"""

import functools
import types
from collections import OrderedDict

import torch
from diffusers.utils import logging

# Attributes that both share: a module's weights, and the adapters merged into them. Other containers are copied.
SHARED = ("_parameters", "_buffers", "merged_adapters")
BOOKS = (dict, OrderedDict, list, set)  # a config is of a class of its own, and is replaced when it changes

logger = logging.get_logger(__name__)


def second_module(module: torch.nn.Module, kind: type[torch.nn.Module]) -> torch.nn.Module:
    """Makes a model of another class over the same weights.

    Args:
        kind: its class, whose objects have the attributes of `module`.

    Raises:
        ValueError: a module that would be made again carries a hook of diffusers, which serves one model only.
    """
    made: dict[torch.nn.Module, torch.nn.Module] = {}
    second = _second(module, kind, made)
    if any(vars(each).get("_compiled_call_impl") is not None for each in made):
        logger.warning(
            "`transformer` has modules that `compile()` compiled for it alone. Compile `pipe.transformer` too."
        )
    return second


def _second(
    first: torch.nn.Module, kind: type[torch.nn.Module], made: dict[torch.nn.Module, torch.nn.Module]
) -> torch.nn.Module:
    """Makes the second of a module and of its children.

    Args:
        made: second modules so far, by the first ones; tied weights stay in one module.
    """
    if first in made:
        return made[first]
    registry = getattr(first, "_diffusers_hook", None)  # a call of `WanPipeline` leaves an empty one
    is_hooked = registry is not None and bool(registry.hooks)
    if not first._modules or (is_hooked and hasattr(first, "base_layer")):  # an adapter's hook does not hold others
        return first
    if is_hooked:
        raise ValueError(
            f"`transformer` is already under group offload or a step cache; its hooks ({', '.join(registry.hooks)}) "
            "serve one pipeline. For group offload, build the pipeline first, then call "
            "`pipe.enable_group_offload(...)`; end a step cache with `transformer.disable_cache()`."
        )
    if hasattr(first, "_orig_mod"):  # what `torch.compile(model)` wraps
        inner_kind = type(first._orig_mod) if kind is type(first) else kind
        made[first] = type(first)(_second(first._orig_mod, inner_kind, made), first.dynamo_ctx)
        return made[first]
    made[first] = second = object.__new__(kind)
    for name, value in vars(first).items():
        is_own = type(value) in BOOKS and name not in SHARED
        second.__dict__[name] = value.copy() if is_own else _rebound(value, first, second)
    for name in ("_compiled_call_impl", "_diffusers_hook"):  # made for the first alone
        second.__dict__.pop(name, None)
    children = first._modules.items()
    second.__dict__["_modules"] = {
        name: None if child is None else _second(child, type(child), made) for name, child in children
    }
    return second


def _rebound(value: object, first: torch.nn.Module, second: torch.nn.Module) -> object:
    """A method, or partial function, of the second module instead of the first; hooks of accelerate leave both."""
    if isinstance(value, types.MethodType) and value.__self__ is first:
        is_own = value.__func__ is getattr(type(first), value.__name__, None)
        return types.MethodType(getattr(type(second), value.__name__) if is_own else value.__func__, second)
    if isinstance(value, functools.partial) and any(each is first for each in value.args):
        rebound = functools.partial(
            value.func, *(second if each is first else each for each in value.args), **value.keywords
        )
        rebound.__dict__.update({name: _rebound(each, first, second) for name, each in vars(value).items()})
        return rebound
    return value
