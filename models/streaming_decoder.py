"""The Wan VAE's decoder, a few latent frames at a time, with its feature cache as a value.

`AutoencoderKLWan` decodes latent frame by latent frame and keeps the last input frames of every causal convolution. It
hides that cache in the model and clears it after each call. Here the cache is passed in and returned: decoding in
pieces equals decoding at once, and a state can be continued in several ways.

Axes: B batch, C channels, F frames, H and W height and width.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from diffusers import AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import unpatchify
from diffusers.utils.torch_utils import get_module_execution_device


@dataclass(frozen=True, eq=False)
class DecoderState:
    """The decoder's feature cache of a clip so far. Immutable: decoding from it makes a new one."""

    features: tuple["torch.Tensor | str | None", ...]  # per convolution (B, C, F, H, W), or the VAE's own marker
    batch_size: int

    def expand(self, batch_size: int) -> "DecoderState":
        """This one clip's state as the common past of `batch_size` clips; nothing is copied."""
        return DecoderState(
            tuple(f.expand(batch_size, -1, -1, -1, -1) if torch.is_tensor(f) else f for f in self.features), batch_size
        )

    @property
    def num_bytes(self) -> int:
        return sum(f.numel() * f.element_size() for f in self.features if torch.is_tensor(f))


class StreamingWanDecoder:
    """Decodes a video chunk by chunk: `frames, state = decoder(latents, state)`.

    Args:
        vae: its weights, dtype and `use_slicing` (one clip at a time, which saves memory) are used as they are.
    """

    def __init__(self, vae: AutoencoderKLWan) -> None:
        self.vae = vae

    def check(self) -> None:
        """Checks the VAE's settings.

        Raises:
            ValueError: VAE tiling is on.
        """
        if self.vae.use_tiling:
            raise ValueError(
                "VAE tiling is on, and a streaming decode has no state per tile. Call `vae.disable_tiling()`; "
                "`vae.enable_slicing()` lowers the memory of a decode as well."
            )

    @torch.no_grad()
    def __call__(self, latents: torch.Tensor, state: DecoderState | None = None) -> tuple[torch.Tensor, DecoderState]:
        """Decodes the next latents of each clip.

        Args:
            latents: (B, C, F, H, W) in the model's space, that is standardised with the VAE config's `latents_mean`
                and `latents_std`.
            state: what the last call returned, or None at the beginning of a video. A state of one clip may serve B.

        Returns:
            Pixels in [-1, 1], (B, 3, frames, height, width): 4 frames per latent frame, 1 for the very first (in the
            released VAE). And the state for the next call.

        Raises:
            ValueError: VAE tiling is on, or `state` is of another number of clips.
        """
        video, features = self._decode(latents, state)
        return video, DecoderState(tuple(features), latents.shape[0])

    @torch.no_grad()
    def continuations(
        self, latents: torch.Tensor, state: DecoderState | None
    ) -> Iterator[tuple[torch.Tensor, DecoderState]]:
        """Decodes B continuations of one clip's state, each to pixels (3, frames, height, width) and a state.

        One batch, or one at a time when the VAE's slicing is on. The states have storage of their own, so that
        dropping one frees it.
        """
        for batch in latents.split(1) if self.vae.use_slicing else (latents,):
            video, features = self._decode(batch, state)
            yield from zip(video, _split(features, batch.shape[0]), strict=True)

    def _decode(
        self, latents: torch.Tensor, state: DecoderState | None
    ) -> tuple[torch.Tensor, list["torch.Tensor | str | None"]]:
        self.check()
        if state is not None and state.batch_size not in (1, latents.shape[0]):
            raise ValueError(f"`state` is of {state.batch_size} clips, `latents` of {latents.shape[0]}.")
        if hasattr(self.vae, "_hf_hook"):  # `vae.decode` would call it; its parts, called alone, do not
            self.vae._hf_hook.pre_forward(self.vae)
        if state is not None and state.batch_size < latents.shape[0]:
            state = state.expand(latents.shape[0])
        latents = self._to_vae_space(latents)
        features = [None] * self._num_features if state is None else list(state.features)
        frames = []
        for index, latent in enumerate(self.vae.post_quant_conv(latents).split(1, dim=2)):
            is_first = state is None and index == 0
            frames.append(self.vae.decoder(latent, feat_cache=features, feat_idx=[0], first_chunk=is_first))
        video = torch.cat(frames, dim=2)
        if self.vae.config.patch_size is not None:
            video = unpatchify(video, patch_size=self.vae.config.patch_size)
        return video.clamp(-1.0, 1.0), features

    @property
    def _num_features(self) -> int:
        return self.vae._cached_conv_counts["decoder"]

    def _to_vae_space(self, latents: torch.Tensor) -> torch.Tensor:
        latents = latents.to(get_module_execution_device(self.vae), self.vae.dtype)
        shape = (1, -1, 1, 1, 1)
        mean = latents.new_tensor(self.vae.config.latents_mean).view(shape)
        inverse_std = 1.0 / latents.new_tensor(self.vae.config.latents_std).view(shape)
        return latents / inverse_std + mean  # in WanPipeline's order of operations: the same bits


def _split(features: list["torch.Tensor | str | None"], batch_size: int) -> list[DecoderState]:
    """Makes a state per clip. Empties the list on the way, so that at most one feature is in memory twice."""
    if batch_size == 1:
        return [DecoderState(tuple(features), 1)]
    rows: list[list] = [[] for _ in range(batch_size)]
    features.reverse()
    while features:
        feature = features.pop()
        for index, row in enumerate(rows):
            row.append(feature[index : index + 1].clone() if torch.is_tensor(feature) else feature)
    return [DecoderState(tuple(row), 1) for row in rows]
