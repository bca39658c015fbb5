"""Draws how each search spends its forwards, from real runs of the demo: the pictures of docs/searches.md.

python examples/draw_searches.py docs/searches
"""

import sys
from pathlib import Path

import torch

from stream_t1.demo import load_pipeline
from stream_t1.evaluation.search_pictures import draw_search
from stream_t1.search import (
    Backtracking,
    BeamSearch,
    BestOfN,
    EarlyPruning,
    EarlyStop,
    EvolutionSearch,
    Lookahead,
    ParticleSearch,
    PromptAdaptive,
    StagedSearch,
)

SEARCHES = {
    "beam": BeamSearch(2, 2),
    "prune-every": BeamSearch(1, 4, prune_every=2),
    "best-of-n": BestOfN(4),
    "early-stop": EarlyStop(BeamSearch(1, 2), margin=0.1, patience=2, max_rounds=4),
    "particles": ParticleSearch(4, strength=10.0, threshold=0.9),
    "evolution": EvolutionSearch(generations=3, population=3, elites=1, mutation=0.5, at_step=1),
    "early-pruning": EarlyPruning(num_candidates=8, keep=2, after_step=1),
    "staged": StagedSearch(budget=[(4, 2), (2, 2), (1, 2), (1, 1)], keep=["median", "best"]),
    "prompt-adaptive": PromptAdaptive(1, 2, strength=2.0),
    "backtracking": Backtracking(BeamSearch(1, 2), bound=0.75, depth=1, retries=1),
    "lookahead": Lookahead(BeamSearch(1, 3), chunks=1, steps=2),
}


def main(folder: str = "searches", num_frames: int = 45) -> list[Path]:
    """Returns the pictures that were drawn."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    Path(folder).mkdir(parents=True, exist_ok=True)
    drawn = []
    for name, search in SEARCHES.items():
        output = pipe(
            "a blue circle moving up on a white background",
            search=search,
            num_frames=num_frames,
            generator=torch.Generator().manual_seed(4),
        )
        drawn.append(Path(folder) / f"{name}.png")
        draw_search(output.trace, drawn[-1])
        print(drawn[-1])
    return drawn


if __name__ == "__main__":
    main(*sys.argv[1:])
