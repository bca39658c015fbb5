"""The search: the paper's three units, the values they work on, and the record of what they did."""

from .beam import Beam, Candidate
from .memory_sinking import EMASink, MemoryPolicy, RewardRoutedSink, Route, SlidingWindow, StaticSink
from .noise_propagation import propagate_noise
from .reward_pruning import fuse_scores, keep_best, normalize_scores
from .settings import SearchSettings
from .trace import SearchTrace

__all__ = [
    "Beam",
    "Candidate",
    "EMASink",
    "MemoryPolicy",
    "RewardRoutedSink",
    "Route",
    "SearchSettings",
    "SearchTrace",
    "SlidingWindow",
    "StaticSink",
    "fuse_scores",
    "keep_best",
    "normalize_scores",
    "propagate_noise",
]
