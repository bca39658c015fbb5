"""Search by one number, watch others: does what is searched for cost something else?

    python examples/search_one_watch_others.py

Searches the demo model for motion that follows the prompt, one part of its motion reward, and records the other parts,
and the scores of three other rewards on the chunks that were kept. None of these decides anything.
"""

import torch

from stream_t1.demo import load_pipeline
from stream_t1.demo.rewards import LegibilityReward, MotionReward
from stream_t1.rewards import ChunkSeamReward, SharpnessReward

WATCHED = {
    "motion": MotionReward(),
    "legibility": LegibilityReward(),
    "sharpness": SharpnessReward(),
    "seam": ChunkSeamReward(frames_per_chunk=12),
}


def follows_the_motion(frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor:
    """The part `motion` of the motion reward alone, (B,)."""
    return MotionReward()(frames, prompt, fps).parts["motion"]


def main() -> dict[str, list[float]]:
    """Returns the searched and the watched scores, parts included, of the best beam after every chunk, by name."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        "a blue cross moving in circles on a white background",
        num_frames=57,
        num_beams=2,
        num_candidates=3,
        image_reward=False,
        video_reward=follows_the_motion,
        monitors=WATCHED,
        generator=torch.Generator().manual_seed(0),
    )
    kept = [[c for c in chunk.candidates if c.kept] for chunk in output.trace.chunks]
    found = {"searched": [max(candidates, key=lambda c: c.score).long for candidates in kept]}
    found |= {name: [beams[0] for beams in scores] for name, scores in sorted(output.trace.monitors.items())}
    for name, scores in found.items():
        print(f"{name:22}", *(f"{score:8.3f}" for score in scores))
    return found


if __name__ == "__main__":
    main()
