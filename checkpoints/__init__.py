"""Conversion of the authors' published files to folders that `from_pretrained` loads.

Names are loaded on first use (PEP 562).
"""

from importlib import import_module

_EXPORTS = {
    "convert_wan_transformer": "wan",
    "convert_longlive": "generators",
    "convert_self_forcing": "generators",
    "convert_reward_forcing": "generators",
    "convert_causal_forcing": "generators",
    "convert_fastvideo": "generators",
    "convert_hpsv3": "hpsv3",
    "convert_videoalign": "videoalign",
}

__all__ = list(_EXPORTS)


def __getattr__(name: str) -> object:
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
