"""Make a video with the steps alone: no pipeline loop, no search object.

    python examples/own_loop.py

A chunk is tried again, with other seeds, until its score is as good as that of the chunk before, at most four times.
"""

import torch

from stream_t1.demo import load_pipeline


def main() -> tuple[torch.Tensor, list[int]]:
    """Returns the video, (F, 3, H, W) uint8, and the number of candidates that each chunk took."""
    pipe = load_pipeline()
    prompt = "a red triangle moving right on a black background"
    steps, beams = pipe.steps(prompt, num_frames=57, generator=torch.Generator().manual_seed(0))
    tries = []
    while True:
        candidates = []
        while len(candidates) < 4 and not any(c.score >= beams[0].score for c in candidates):
            candidate = steps.propose(beams, 1, first=len(candidates))
            candidates += steps.score(beams, steps.denoise(beams, candidate))
        best = max(candidates, key=lambda candidate: candidate.score)
        beams = steps.commit(beams, [best])
        tries.append(len(candidates))
        print(f"chunk {steps.chunk_index}: score {best.score:.3f} after {len(candidates)}")
        if steps.is_last:
            break
        steps = steps.ahead()
    print(f"{steps.work.chunk_forwards} forwards of the transformer")
    return torch.cat(beams[0].frames), tries


if __name__ == "__main__":
    main()
