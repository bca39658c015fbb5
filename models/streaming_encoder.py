"""The Wan VAE's encoder, a few frames at a time, with its feature cache as a value.

As `AutoencoderKLWan.encode` does, it encodes the first frame of a video alone and then as many at a time as make one
latent frame, so a long clip needs no more room than a short one. Encoding in pieces equals encoding at once.

Axes: B batch, C channels, F frames, H and W height and width, h and w those of latents.
"""

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import patchify
from diffusers.utils.torch_utils import get_module_execution_device

from . import pictures, streaming_decoder

# The encoder's feature cache of a clip so far, per convolution (B, C, F, H, W) or the VAE's own marker.
EncoderState = tuple["torch.Tensor | str | None", ...]


class StreamingWanEncoder:
    """Encodes a video piece by piece: `latents, state = encoder(frames, state)`.

    Args:
        vae: its weights and dtype are used as they are.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae

    @property
    def _factor(self) -> int:
        """Frames per latent frame, but for the first."""
        return self.vae.config.scale_factor_temporal

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor, state: EncoderState | None = None) -> tuple[torch.Tensor, EncoderState]:
        """Encodes the next frames of each clip.

        Args:
            frames: (B, 3, F, H, W) pixels in [-1, 1]; in the released VAE 4 n + 1 of them at the beginning of a video,
                4 n later.
            state: what the last call returned, or None at the beginning of a video.

        Returns:
            Latents (B, C, F, h, w) in the model's space, float32: the mean of their distribution, standardised with
            the VAE config's `latents_mean` and `latents_std`. And the state for the next call.

        Raises:
            ValueError: the frames make no whole number of latent frames, or VAE tiling is on.
        """
        moments, state = self._moments(frames, state)
        return self._mean(moments), state

    @torch.no_grad()
    def encode(self, frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Encodes a whole clip with one latent frame's work at a time, and with the bits of `vae.encode`.

        Args:
            frames: (F, 3, H, W) of any size, uint8 or floats in [0, 1].
            size: height and width to which they are fitted.

        Returns:
            Latents (C, F, h, w) as of a call, on the CPU.
        """
        moments, state = [], None
        for piece in (frames[:1], *frames[1:].split(self._factor)):
            if len(piece):
                video = pictures.fitted(piece, size).transpose(0, 1)[None] * 2.0 - 1.0
                encoded, state = self._moments(video, state)
                moments.append(encoded)
        # At once, as the VAE does: the last bits of a convolution depend on how many frames it is given.
        return self._mean(torch.cat(moments, dim=2))[0].to("cpu")

    def _moments(self, frames: torch.Tensor, state: EncoderState | None) -> tuple[torch.Tensor, EncoderState]:
        """The encoder's output for frames in [-1, 1], and its next state."""
        streaming_decoder.StreamingWanDecoder(self.vae).check()
        num_first = 1 if state is None else 0
        if frames.shape[2] < max(num_first, 1) or (frames.shape[2] - num_first) % self._factor:
            wanted = f"{self._factor} n + 1" if state is None else f"{self._factor} n"
            raise ValueError(f"`frames` has {frames.shape[2]} frames; it must have {wanted} here.")
        if hasattr(self.vae, "_hf_hook"):  # `vae.encode` would call it; its parts, called alone, do not
            self.vae._hf_hook.pre_forward(self.vae)
        frames = frames.to(get_module_execution_device(self.vae), self.vae.dtype)
        if self.vae.config.patch_size is not None:
            frames = patchify(frames, patch_size=self.vae.config.patch_size)
        features = [None] * self.vae._cached_conv_counts["encoder"] if state is None else list(state)
        encoded = []
        for piece in (*frames[:, :, :num_first].split(1, dim=2), *frames[:, :, num_first:].split(self._factor, dim=2)):
            if piece.shape[2]:
                encoded.append(self.vae.encoder(piece, feat_cache=features, feat_idx=[0]))
        return torch.cat(encoded, dim=2), tuple(features)

    def _mean(self, moments: torch.Tensor) -> torch.Tensor:
        """The mean of the latents' distribution, standardised."""
        latents, _ = self.vae.quant_conv(moments).float().chunk(2, dim=1)
        shape = (1, -1, 1, 1, 1)
        mean = latents.new_tensor(self.vae.config.latents_mean).view(shape)
        inverse_std = 1.0 / latents.new_tensor(self.vae.config.latents_std).view(shape)
        return (latents - mean) * inverse_std  # in the order of diffusers' WanImageToVideoPipeline: the same bits
