"""Stage 1 of the demo's training: a small stock `AutoencoderKLWan` for the moving shapes.

A causal video VAE sees far into the past, so it must be trained in the middle of long clips and not at their start
alone. Here a step trains three latent frames of a stream of clips and hands its feature caches, detached, to the step
that continues these clips (truncated back-propagation through time): no frame is computed twice.

Axes: B batch, C channels, F frames, H height, W width.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify, unpatchify
from torch import nn

from .clips import draw_clips, train_captions

LATENT_CHANNELS = 8
LATENT_SIDE = 8  # of a frame, 64 pixels
PATCH = 2


@dataclass(frozen=True)
class VAESettings:
    """Length and data of the VAE's training."""

    base_dim: int = 16
    num_steps: int = 5600
    batch_clips: int = 4
    matrix_learning_rate: float = 1e-2  # Muon
    learning_rate: float = 2e-3  # AdamW
    object_weight: float = 7.0  # of pixels near the shape, against 1 elsewhere
    first_frame_weight: float = 4.0  # on top, since first frames are rare and have a path of their own in the stack
    kl_weight: float = 1e-4  # per latent element
    num_streams: int = 8  # batches of clips that take turns, so that neighbouring steps see different clips
    pieces_per_stream: int = 8  # of 3 latent frames each
    short_streams: int = 4  # of the streams, with clips of 1, 2, 3.. pieces, so that starts are seen often enough


def build_vae(base_dim: int) -> AutoencoderKLWan:
    """Builds the untrained VAE; 64x64 pixels become 8x8 latents, four frames one."""
    return AutoencoderKLWan(
        base_dim=base_dim,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        patch_size=PATCH,
        scale_factor_spatial=8,
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


class MatrixMuon:
    """Muon for the convolution kernels, each seen as a matrix of its outputs; AdamW for all other weights."""

    def __init__(self, module: nn.Module, matrix_learning_rate: float, learning_rate: float) -> None:
        weights = list(module.parameters())
        self.kernels = [weight for weight in weights if weight.ndim >= 4]
        self.matrices = [nn.Parameter(_as_matrix(kernel.data)) for kernel in self.kernels]  # share memory
        others = [weight for weight in weights if weight.ndim < 4]
        self.optimizers = [
            torch.optim.Muon(self.matrices, lr=matrix_learning_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"),
            torch.optim.AdamW(others, lr=learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
        ]
        self.peaks = [matrix_learning_rate, learning_rate]

    def step(self, share: float) -> None:
        """Takes one step at this share of the peak learning rates."""
        for kernel, matrix in zip(self.kernels, self.matrices, strict=True):
            matrix.grad = _as_matrix(kernel.grad)
        for optimizer, peak in zip(self.optimizers, self.peaks, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = share * peak
            optimizer.step()

    def state_dict(self) -> list[dict]:
        return [optimizer.state_dict() for optimizer in self.optimizers]

    def load_state_dict(self, states: list[dict]) -> None:
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)


@dataclass(eq=False)
class ClipStream:
    """A batch of clips that is read piece by piece, with the caches that the pieces leave behind."""

    settings: VAESettings
    seed: int
    vae: AutoencoderKLWan
    num_pieces: int
    piece_index: int = 0
    frames: torch.Tensor | None = None  # (B, F, 3, H, W) uint8
    coverage: torch.Tensor | None = None  # (B, F, H, W)
    encoder_cache: list = field(default_factory=list)
    decoder_cache: list = field(default_factory=list)

    def next_piece(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pixels (B, 3, F, H, W) in [-1, 1] and weights (B, 1, F, H, W) of the next 9 (at the start) or 12 frames."""
        if self.frames is None or self.piece_index == self.num_pieces:
            self._draw()
        start = max(0, 12 * self.piece_index - 3)
        stop = 12 * self.piece_index + 9
        self.piece_index += 1
        device = self.vae.device
        pixels = self.frames[:, start:stop].to(device).transpose(1, 2).float() / 127.5 - 1
        near = nn.functional.max_pool2d(self.coverage[:, start:stop].to(device), 7, stride=1, padding=3) > 0
        weights = 1 + (self.settings.object_weight - 1) * near[:, None].float()
        if start == 0:
            weights[:, :, :1] *= self.settings.first_frame_weight
        return pixels, weights

    def detach(self) -> None:
        """Cuts the caches from the graph of the piece that made them."""
        for cache in (self.encoder_cache, self.decoder_cache):
            for index, feature in enumerate(cache):
                if torch.is_tensor(feature):
                    cache[index] = feature.detach()

    def _draw(self) -> None:
        generator = random.Random(self.seed)
        captions = generator.choices(train_captions(), k=self.settings.batch_clips)
        clips = draw_clips(captions, 12 * self.num_pieces - 3, self.seed)
        self.frames = torch.stack([clip.frames for clip in clips])
        self.coverage = torch.stack([clip.coverage for clip in clips])
        self.encoder_cache, self.decoder_cache = empty_caches(self.vae)
        self.piece_index = 0
        self.seed += self.settings.num_streams


def empty_caches(vae: AutoencoderKLWan) -> tuple[list, list]:
    """Feature caches of an encoder and a decoder that have seen nothing."""
    counts = vae._cached_conv_counts
    return [None] * counts["encoder"], [None] * counts["decoder"]


def train_vae(
    settings: VAESettings,
    *,
    device: torch.device,
    seed: int,
    state_path: Path,
    log: Callable[[int, dict[str, float]], None],
    save_every: int = 250,
) -> AutoencoderKLWan:
    """Trains the VAE for `settings.num_steps`. Resumes from `state_path`, with clips that it has not seen yet."""
    torch.manual_seed(seed)
    vae = build_vae(settings.base_dim).to(device).train()
    for weight in vae.parameters():
        if weight.ndim == 5:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)
    optimizer = MatrixMuon(vae, settings.matrix_learning_rate, settings.learning_rate)
    first_step = 0
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimizer.load_state_dict(state["optimizer"])
        first_step = state["step"]
    lengths = [*range(1, settings.short_streams + 1)]
    lengths += [settings.pieces_per_stream] * (settings.num_streams - len(lengths))
    streams = [
        ClipStream(settings, seed + 10_000 * (first_step + 1) + i, vae, length) for i, length in enumerate(lengths)
    ]
    for step in range(first_step, settings.num_steps):
        measures = _train_step(vae, streams[step % len(streams)], settings)
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step(warmup_cosine(step, settings.num_steps))
        vae.zero_grad(set_to_none=True)
        log(step, measures)
        if (step + 1) % save_every == 0 or step + 1 == settings.num_steps:
            state = {"step": step + 1, "vae": vae.state_dict(), "optimizer": optimizer.state_dict()}
            save_state(state, state_path)
    vae.eval().requires_grad_(False)
    return vae


def warmup_cosine(step: int, num_steps: int, num_warmup: int = 100) -> float:
    """Learning rate as a share of its peak: a linear rise, then half a cosine to 0."""
    num_warmup = min(num_warmup, max(1, num_steps // 10))
    if step < num_warmup:
        return (step + 1) / num_warmup
    progress = (step - num_warmup) / max(1, num_steps - num_warmup)
    return 0.5 * (1 + torch.cos(torch.tensor(torch.pi * progress)).item())


def save_state(state: dict, path: Path) -> None:
    """Writes the file whole or not at all, so that a kill leaves the older state."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(state, partial)
    partial.replace(path)


def encode_piece(vae: AutoencoderKLWan, pixels: torch.Tensor, cache: list) -> torch.Tensor:
    """Posterior parameters (B, 2C, F', h, w) of the next frames; an empty cache takes the first frame alone.

    Unlike `vae.encode`, all frames after the first go through the encoder at once, which gives the same and is faster.
    """
    patches = patchify(pixels, PATCH)
    patches = patches.contiguous(memory_format=torch.channels_last_3d)
    parts = []
    if cache[0] is None:
        parts.append(vae.encoder(patches[:, :, :1], feat_cache=cache, feat_idx=[0]))
        patches = patches[:, :, 1:]
    if patches.shape[2] > 0:
        parts.append(vae.encoder(patches, feat_cache=cache, feat_idx=[0]))
    return vae.quant_conv(torch.cat(parts, dim=2))


def decode_piece(vae: AutoencoderKLWan, latents: torch.Tensor, cache: list) -> torch.Tensor:
    """Pixels (B, 3, F, H, W), not clamped, of the next latent frames."""
    hidden = vae.post_quant_conv(latents)
    parts = []
    if cache[0] is None:
        parts.append(vae.decoder(hidden[:, :, :1], feat_cache=cache, feat_idx=[0], first_chunk=True))
        hidden = hidden[:, :, 1:]
    if hidden.shape[2] > 0:
        parts.append(vae.decoder(hidden, feat_cache=cache, feat_idx=[0]))
    return unpatchify(torch.cat(parts, dim=2), PATCH)


def _train_step(vae: AutoencoderKLWan, stream: ClipStream, settings: VAESettings) -> dict[str, float]:
    pixels, weights = stream.next_piece()
    with torch.autocast(pixels.device.type, torch.bfloat16):
        mean, log_variance = encode_piece(vae, pixels, stream.encoder_cache).float().chunk(2, dim=1)
        log_variance = log_variance.clamp(-20, 10)
        latents = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        decoded = decode_piece(vae, latents, stream.decoder_cache).float()
    error = decoded - pixels
    fidelity = ((error.abs() + error.square()) * weights).sum() / (3 * weights.sum())
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
    (fidelity + settings.kl_weight * kl).backward()
    stream.detach()
    squared = error.detach().clamp(-2, 2).square().mean() / 4  # of pixels in [0, 1]
    return {"fidelity": fidelity.item(), "kl": kl.item(), "psnr": (-10 * squared.log10()).item()}


def _as_matrix(kernel: torch.Tensor) -> torch.Tensor:
    """A convolution kernel as (outputs, everything else), a view where the kernel is channels-last or 1x1."""
    order = [0, *range(2, kernel.ndim), 1]
    last = kernel.permute(order)
    return last.flatten(1) if last.is_contiguous() else kernel.flatten(1)
