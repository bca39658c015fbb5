"""Rewards: their base classes, the paper's two reward models, light ones, and combinations of them."""

from .base import PictureReward, Reward, RewardOutput
from .clip import AestheticReward, CLIPScoreReward, PickScoreReward
from .combining import GatedReward, WeightedReward
from .consistency import BackgroundConsistencyReward, SubjectConsistencyReward
from .hpsv3 import HPSv3Reward
from .pixel_statistics import (
    ChunkSeamReward,
    DynamicDegreeReward,
    ExposureReward,
    SharpnessReward,
    TemporalFlickerReward,
)
from .qwen2_vl import Qwen2VLRewardModel
from .videoalign import VideoAlignReward

__all__ = [
    "AestheticReward",
    "BackgroundConsistencyReward",
    "CLIPScoreReward",
    "ChunkSeamReward",
    "DynamicDegreeReward",
    "ExposureReward",
    "GatedReward",
    "HPSv3Reward",
    "PickScoreReward",
    "PictureReward",
    "Qwen2VLRewardModel",
    "Reward",
    "RewardOutput",
    "SharpnessReward",
    "SubjectConsistencyReward",
    "TemporalFlickerReward",
    "VideoAlignReward",
    "WeightedReward",
]
