"""Can candidates be pruned early? It depends on how well the score of an unfinished prediction ranks the final ones.

    python examples/early_scores.py
    python examples/early_scores.py --model FOLDER --image-reward hpsv3 --video-reward videoalign --prompt "a cat" ...

At every chunk some candidates are scored after each denoising step, by the rewards that a search would use, and the
best at the end goes on. Printed is Spearman's rank correlation between the scores after a step and the final ones,
mean over prompts and its standard error: 1 where that step ranks candidates as the last one does, 0 where it knows
nothing.
`EarlyPruning(..., after_step=s)` pays where the correlation after step s is high.
"""

import argparse
from collections.abc import Sequence

import numpy as np
import torch

from stream_t1 import StreamT1Pipeline
from stream_t1.demo import load_pipeline
from stream_t1.demo.clips import train_captions


def scores_by_step(pipe: StreamT1Pipeline, prompt: str, num_candidates: int, **arguments: object) -> np.ndarray:
    """Scores (chunks, steps, candidates) of a video whose chunks are the best of so many; NaN where one was lost."""
    found = []
    steps, beams = pipe.steps(prompt, **arguments)
    while True:
        candidates, by_step = steps.propose(beams, num_candidates), []
        for step in range(1, steps.num_steps + 1):
            candidates = steps.score(beams, steps.denoise(beams, candidates, until=step))
            by_step.append([np.nan if candidate.score is None else candidate.score for candidate in candidates])
        found.append(by_step)
        if steps.is_last:
            return np.array(found)
        beams = steps.commit(beams, [candidates[int(np.nanargmax(by_step[-1]))]])
        steps = steps.ahead()


def rank_correlation(values: np.ndarray, others: np.ndarray) -> float:
    """Spearman's correlation of two lists of numbers, ties at their mean rank; NaN where one has a single value."""
    present = np.isfinite(values) & np.isfinite(others)
    ranks = [
        (v[:, None] > v).sum(axis=1) + 0.5 * (v[:, None] == v).sum(axis=1) for v in (values[present], others[present])
    ]
    first, second = (rank - rank.mean() for rank in ranks)
    spread = np.sqrt((first**2).sum() * (second**2).sum())
    return float((first * second).sum() / spread) if spread > 0 else float("nan")


def correlations(scores: np.ndarray) -> np.ndarray:
    """(chunks, steps - 1) of scores (chunks, steps, candidates): each step but the last against it."""
    return np.array([[rank_correlation(early, chunk[-1]) for early in chunk[:-1]] for chunk in scores])


def print_table(found: np.ndarray) -> None:
    """Prints correlations (prompts, chunks, steps - 1): chunk by chunk, and mean over the chunks."""
    titles = [f"after step {step}" for step in range(1, found.shape[2] + 1)]
    print(f"{'chunk':>5}", *(f"{title:>16}" for title in titles))
    rows = {str(chunk): found[:, chunk] for chunk in range(found.shape[1])}
    for name, values in {**rows, "all": np.nanmean(found, axis=1)}.items():
        cells = []
        for column in values.T:
            known = column[np.isfinite(column)]
            error = f" +- {known.std(ddof=1) / np.sqrt(len(known)):.2f}" if len(known) > 1 else ""
            cells.append(f"{known.mean():.2f}{error}" if len(known) else "-")
        print(f"{name:>5}", *(f"{cell:>16}" for cell in cells))


def main(arguments: Sequence[str] | None = None) -> np.ndarray:
    """Returns the correlations, (prompts, chunks, steps - 1)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="folder or Hub id that StreamT1Pipeline loads; default: the demo")
    parser.add_argument("--image-reward", help="folder or Hub id of a converted reward; the demo has its own")
    parser.add_argument("--video-reward", help="likewise")
    parser.add_argument(
        "--prompt", action="append", help="repeat for more; default: captions that the demo was trained on"
    )
    parser.add_argument("--num-prompts", type=int, default=4, help="how many of these captions; default: %(default)s")
    parser.add_argument("--num-candidates", type=int, default=8, help="of every chunk; default: %(default)s")
    parser.add_argument("--num-frames", type=int, default=81, help="default: %(default)s")
    options = parser.parse_args(arguments)
    pipe = load_pipeline() if options.model is None else StreamT1Pipeline.from_pretrained(options.model)
    for name in ("image_reward", "video_reward"):
        if getattr(options, name) is not None:
            setattr(pipe, name, getattr(options, name))
    if torch.accelerator.is_available():
        pipe.to(torch.accelerator.current_accelerator())
    found = []
    for seed, prompt in enumerate(options.prompt or [each.text for each in train_captions()[: options.num_prompts]]):
        generator = torch.Generator().manual_seed(seed)
        scores = scores_by_step(
            pipe, prompt, options.num_candidates, num_frames=options.num_frames, generator=generator
        )
        found.append(correlations(scores))
    print_table(np.array(found))
    return np.array(found)


if __name__ == "__main__":
    main()
