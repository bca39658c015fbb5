"""The search: the paper's three units, the searches, the values they work on, and the record of what they did."""

from .backtracking import Backtracking
from .beam import Beam, Candidate
from .beam_search import BeamSearch
from .best_of_n import BestOfN
from .choice import Choice, SearchWork
from .early_pruning import EarlyPruning
from .early_stop import EarlyStop
from .evolution_search import EvolutionSearch
from .lookahead import Lookahead
from .memory_sinking import EMASink, MemoryPolicy, RewardRoutedSink, Route, SlidingWindow, StaticSink
from .noise_propagation import propagate_noise, split_evenly
from .particle_search import ParticleSearch
from .prompt_adaptive import PromptAdaptive
from .reward_pruning import fuse_scores, keep_best, normalize_scores, rank
from .search_names import parse_search, search_text
from .staged_search import StagedSearch
from .trace import SearchTrace

__all__ = [
    "Backtracking",
    "Beam",
    "BeamSearch",
    "BestOfN",
    "Candidate",
    "Choice",
    "EMASink",
    "EarlyPruning",
    "EarlyStop",
    "EvolutionSearch",
    "Lookahead",
    "MemoryPolicy",
    "ParticleSearch",
    "PromptAdaptive",
    "RewardRoutedSink",
    "Route",
    "SearchTrace",
    "SearchWork",
    "SlidingWindow",
    "StagedSearch",
    "StaticSink",
    "fuse_scores",
    "keep_best",
    "normalize_scores",
    "parse_search",
    "propagate_noise",
    "rank",
    "search_text",
    "split_evenly",
]
