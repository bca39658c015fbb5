"""The searches that ship, by the names under which commands and configurations know them.

Importing this module imports them all: the pipeline does so, and what it imports is what diffusers' loader of remote
code brings. A new search is added to this list.
"""

from collections.abc import Mapping
from dataclasses import MISSING, Field, fields

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


def number_fields(search: type) -> dict[str, Field]:
    """The whole and real numbers among the arguments of a search, by name."""
    return {field.name: field for field in fields(search) if field.type in (int, float)}


def search_of(name: str, numbers: Mapping[str, int | float]) -> object:
    """A shipped search with some of its numbers; where it wants another search, that is the beam search.

    Raises:
        TypeError, ValueError: it has no such number, lacks one that has no default, or one is out of range.
    """
    search = SHIPPED_SEARCHES[name]
    wanted = [field for field in fields(search) if field.default is MISSING]
    inner = [field.name for field in wanted if field.name not in number_fields(search)]
    rest = {key: number for key, number in numbers.items() if key not in number_fields(search)}
    unknown = [key for key in rest if not inner or key not in number_fields(beam_search.BeamSearch)]
    missing = [field.name for field in wanted if field.name not in (*numbers, *inner)]
    for problem, names in (("has no", unknown), ("needs", missing)):
        if names:
            raise ValueError(
                f"`search` is {name!r}, which {problem} {' and no '.join(f'`{each}`' for each in names)}."
            )
    own = {key: number for key, number in numbers.items() if key not in rest}
    return search(**{key: beam_search.BeamSearch(**rest) for key in inner}, **own)
