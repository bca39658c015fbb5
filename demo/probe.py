"""An early check that samples follow their captions: first chunks alone, decoded and judged by the checker.

A first chunk is nine frames, the least that the checker takes, and costs four forwards: cheap enough to be measured
while the transformer trains, beside the gaps of `train_transformer.caption_gaps`.
"""

from collections.abc import Sequence

from diffusers import AutoencoderKLWan

from .checker import check
from .clips import SHAPES, Caption
from .latents import decode_latents
from .score import summarize_verdicts
from .train_transformer import TextToVideo, sample_first_chunks


def probe_first_chunks(
    model: TextToVideo, vae: AutoencoderKLWan, captions: Sequence[Caption], seed: int
) -> dict[str, float]:
    """Shares of sampled first chunks that follow each attribute, and that show each shape."""
    videos = decode_latents(vae, sample_first_chunks(model, captions, seed)).cpu()
    verdicts = [check(video) for video in videos]
    shares = summarize_verdicts(verdicts, captions)
    names = ("color", "background", "motion", "shape", "all_attributes")
    follows = {f"sample_{name}": shares[name] for name in names}
    for shape in SHAPES:
        shown = [verdict.shape == shape for verdict, c in zip(verdicts, captions, strict=True) if c.shape == shape]
        follows[f"sample_{shape}"] = sum(shown) / max(1, len(shown))
    return follows
