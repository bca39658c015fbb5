"""Can noise propagation act on this model? It shapes the initial noise, and there are other draws.

    python examples/what_makes_candidates_differ.py

A few-step sampler adds fresh noise after every step but the last. Here first chunks are made that differ in all draws,
in the initial noise alone, or in the later draws alone, and the variance of their latents is compared. Where nearly
all of it comes from the later draws, correlating initial noises changes little, whatever the beta.
"""

import torch

from stream_t1 import StreamT1Pipeline
from stream_t1.demo import load_pipeline
from stream_t1.demo.clips import train_captions

NUM_CANDIDATES = 8
DIFFERING = {"everything": (True, True), "the initial noise": (True, False), "the later draws": (False, True)}


@torch.no_grad()
def first_chunks(pipe: StreamT1Pipeline, prompt: str, noise: list[torch.Tensor]) -> torch.Tensor:
    """Clean latents (B, C, F, h, w) of first chunks; `noise` has one such tensor for every step."""
    pipe.scheduler.set_timesteps(sigmas=[step / 1000 for step in pipe.config.denoising_steps])
    levels = (*pipe.scheduler.levels, 0.0)
    prompt_embeds, _ = pipe.encode_prompt(prompt)
    latents, *later = noise
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        velocity = pipe.transformer(
            hidden_states=latents,
            timestep=timestep.expand(len(latents)),
            encoder_hidden_states=prompt_embeds.expand(len(latents), -1, -1),
            return_dict=False,
        )[0]
        fresh = later[step] if step < len(later) else None
        latents = pipe.scheduler.step_between(velocity, latents, levels[step], levels[step + 1], fresh)
    return latents


def main(num_prompts: int = 12) -> dict[str, float]:
    """The variance of the latents among candidates, by what differs between them; mean over prompts."""
    pipe = load_pipeline()
    shape = (NUM_CANDIDATES, pipe.transformer.config.in_channels, pipe.config.chunk_frames, 8, 8)
    variances = dict.fromkeys(DIFFERING, 0.0)
    for index, caption in enumerate(train_captions()[:num_prompts]):
        generator = torch.Generator().manual_seed(index)
        draws = [torch.randn(shape, generator=generator) for _ in pipe.config.denoising_steps]
        for name, (initial, later) in DIFFERING.items():
            differs = [initial] + [later] * (len(draws) - 1)
            noise = [d if own else d[:1].expand_as(d) for d, own in zip(draws, differs, strict=True)]
            variances[name] += first_chunks(pipe, caption.text, noise).var(dim=0).mean().item() / num_prompts
    for name, variance in variances.items():
        print(f"{name:18} {variance:.4f}")
    return variances


if __name__ == "__main__":
    main()
