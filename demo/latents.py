"""Clips as normalised latents: the training set of the transformer, made once so that its steps never touch the VAE.

Axes: B clips, C channels, F latent frames, h and w latent height and width.
"""

import random
from collections.abc import Sequence

import torch
from diffusers import AutoencoderKLWan

from .clips import Caption, draw_clips
from .train_vae import decode_piece, empty_caches, encode_piece

CLIP_FRAMES = 81
EMPTY_CHANNEL = 0.1  # deviation under which a VAE trained against a unit Gaussian carries nothing in a channel


@torch.no_grad()
def encode_frames(vae: AutoencoderKLWan, frames: torch.Tensor) -> torch.Tensor:
    """Encodes uint8 frames (B, 4 F - 3, 3, H, W) to latents (B, C, F, h, w): means, not normalised."""
    pixels = frames.to(vae.device).transpose(1, 2).float() / 127.5 - 1
    return encode_piece(vae, pixels, empty_caches(vae)[0]).chunk(2, dim=1)[0]


@torch.no_grad()
def decode_latents(vae: AutoencoderKLWan, latents: torch.Tensor) -> torch.Tensor:
    """Decodes normalised latents to frames (B, 4 F - 3, 3, H, W) in [0, 1]."""
    mean, std = latent_statistics(vae)
    pixels = decode_piece(vae, latents.to(vae.device) * std + mean, empty_caches(vae)[1])
    return (pixels.transpose(1, 2) / 2 + 0.5).clamp(0, 1)


def measure_latents(vae: AutoencoderKLWan, captions: Sequence[Caption], seed: int) -> None:
    """Writes the mean and the deviation of every latent channel over these captions' clips into the VAE's config."""
    clips = draw_clips(captions, CLIP_FRAMES, seed)
    latents = encode_frames(vae, torch.stack([clip.frames for clip in clips])).transpose(0, 1).flatten(1)
    std = latents.std(dim=1)
    std = torch.where(std < EMPTY_CHANNEL, 1.0, std)  # scaled to 1, its rounding errors would have to be learned
    vae.register_to_config(latents_mean=latents.mean(dim=1).tolist(), latents_std=std.tolist())


def latent_statistics(vae: AutoencoderKLWan) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation per channel from the VAE's config, (C, 1, 1, 1)."""
    statistics = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(values, device=vae.device)[:, None, None, None] for values in statistics)
    return mean, std


def encode_captions(
    vae: AutoencoderKLWan,
    captions: Sequence[Caption],
    seed: int,
    num_frames: int = CLIP_FRAMES,
    batch_clips: int = 16,
) -> torch.Tensor:
    """Normalised latents (captions, C, F, h, w) float16 of one clip per caption."""
    mean, std = latent_statistics(vae)
    batches = []
    for start in range(0, len(captions), batch_clips):
        clips = draw_clips(captions[start : start + batch_clips], num_frames, seed + start)
        latents = encode_frames(vae, torch.stack([clip.frames for clip in clips]))
        batches.append(((latents - mean) / std).half().cpu())
    return torch.cat(batches)


def repeat_captions(captions: Sequence[Caption], num_clips: int, seed: int) -> list[Caption]:
    """`num_clips` captions, every one about as often, in mixed order."""
    repeated = [captions[i % len(captions)] for i in range(num_clips)]
    random.Random(seed).shuffle(repeated)
    return repeated
