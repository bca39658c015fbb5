"""Can noise propagation act on this model? It shapes the initial noise, and there are other draws.

    python examples/what_makes_candidates_differ.py

A few-step sampler adds fresh noise after every step but the last. Here first chunks are made that differ in all draws,
in the initial noise alone, or in the later draws alone, and the variance of their latents is compared. Where nearly
all of it comes from the later draws, correlating initial noises changes little, whatever the beta.
"""

from dataclasses import replace

import torch

from stream_t1 import StreamT1Pipeline
from stream_t1.demo import load_pipeline
from stream_t1.demo.clips import train_captions
from stream_t1.search import Candidate

NUM_CANDIDATES = 8
SHARED = {"everything": (), "the initial noise": ("renoise",), "the later draws": ("noise",)}


def first_chunks(pipe: StreamT1Pipeline, prompt: str, seed: int, shared: tuple[str, ...]) -> torch.Tensor:
    """Makes clean latents (B, C, F, h, w) of first chunks; `shared` names the draws that all take from the first."""
    generator = torch.Generator().manual_seed(seed)
    steps, beams = pipe.steps(prompt, image_reward=False, video_reward=False, generator=generator)
    candidates: list[Candidate] = steps.propose(beams, [NUM_CANDIDATES])
    draws = {name: getattr(candidates[0], name) for name in shared}
    candidates = steps.denoise(beams, [replace(candidate, **draws) for candidate in candidates])
    return torch.stack([candidate.latents for candidate in candidates])


def main(num_prompts: int = 12) -> dict[str, float]:
    """Returns the variance of the latents among candidates, by what differs between them; mean over prompts."""
    pipe = load_pipeline()
    variances = dict.fromkeys(SHARED, 0.0)
    for seed, caption in enumerate(train_captions()[:num_prompts]):
        for name, shared in SHARED.items():
            latents = first_chunks(pipe, caption.text, seed, shared)
            variances[name] += latents.var(dim=0).mean().item() / num_prompts
    for name, variance in variances.items():
        print(f"{name:18} {variance:.4f}")
    return variances


if __name__ == "__main__":
    main()
