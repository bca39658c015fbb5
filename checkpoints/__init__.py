"""From the files that the models' authors publish to diffusers' layout."""

from .wan import convert_wan_transformer

__all__ = ["convert_wan_transformer"]
