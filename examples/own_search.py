"""Search in a way of your own: a search is any function of steps and beams that returns what it keeps.

    python examples/own_search.py

The paper's beams are the best of all candidates, so that one beam's children soon fill every place. Here each of two
beams keeps its own best child, and both live on to the end.
"""

import torch

from stream_t1.demo import load_pipeline
from stream_t1.search import BeamSearch, Choice, SearchTrace, rank, split_evenly


def best_of_each(steps, beams):
    """Keeps the best candidate of every beam; of the first chunk, the two best."""
    candidates = steps.propose(beams, split_evenly(4, len(beams)))
    candidates = steps.score(beams, steps.denoise(beams, candidates))
    ranked = rank(candidates)
    if len(beams) == 1:
        return Choice(candidates, ranked[:2])
    best = {candidates[index].parent: index for index in reversed(ranked)}
    return Choice(candidates, sorted(best.values(), key=ranked.index))


best_of_each.num_beams = 2  # the most that it keeps


def chunks_in_common(trace: SearchTrace) -> int:
    """Counts the first chunks that both last beams share."""
    paths = [trace.path(beam_index) for beam_index in range(2)]
    return sum(one is other for one, other in zip(*paths, strict=True))


def main() -> dict[str, int]:
    """Returns the number of chunks that the last two beams share, by search."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    shared = {}
    for name, search in (("best of all", BeamSearch(2, 2)), ("best of each", best_of_each)):
        output = pipe(
            "a blue circle moving up on a white background",
            search=search,
            generator=torch.Generator().manual_seed(1),
        )
        shared[name] = chunks_in_common(output.trace)
        print(f"{name:12}  score {output.trace.final.scores[0]:.3f}, {shared[name]} of 7 chunks in common")
    return shared


if __name__ == "__main__":
    main()
