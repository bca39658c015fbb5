"""What a reward is, and how the search calls one."""

from .base import Reward, RewardOutput

__all__ = ["Reward", "RewardOutput"]
