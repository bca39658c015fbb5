"""The searches that ship, by the names under which commands and configurations know them.

Importing this module imports them all: the pipeline does so, and what it imports is what diffusers' loader of remote
code brings. A new search is added to this list.
"""

from . import (
    backtracking,
    beam_search,
    best_of_n,
    early_pruning,
    early_stop,
    evolution_search,
    lookahead,
    particle_search,
    prompt_adaptive,
    staged_search,
)

SHIPPED_SEARCHES: dict[str, type] = {
    "backtracking": backtracking.Backtracking,
    "beam": beam_search.BeamSearch,
    "best-of-n": best_of_n.BestOfN,
    "early-pruning": early_pruning.EarlyPruning,
    "early-stop": early_stop.EarlyStop,
    "evolution": evolution_search.EvolutionSearch,
    "lookahead": lookahead.Lookahead,
    "particles": particle_search.ParticleSearch,
    "prompt-adaptive": prompt_adaptive.PromptAdaptive,
    "staged": staged_search.StagedSearch,
}
