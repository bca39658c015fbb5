"""Cost of the models at a given size, without running them: operations and peak bytes.

Operations are those of matrix products: linear layers, convolutions and attention, 2 per multiplication and addition.
Norms, activations, rotary embedding and copies are not counted. Bytes are those of a run on tensors without content
(torch's meta device), with attention that never materialises its scores, as in fused kernels.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from diffusers import AutoencoderKLWan
from diffusers.configuration_utils import FrozenDict
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from . import memory, streaming_decoder, streaming_encoder, transformer_causal_wan


class ForwardFlops(NamedTuple):
    """Operations of one call of the transformer."""

    linear: int  # linear layers and the patch embedding
    attention: int  # both products of self-attention and of cross-attention


@dataclass(frozen=True)
class ForwardShape:
    """Sizes that decide how much one call of the transformer computes."""

    batch_size: int  # candidates
    chunk_tokens: int  # of one candidate
    context_tokens: int  # of the memory that the batch reads, the chunk itself not counted
    text_tokens: int  # padding included
    fills_prompt: bool  # the first call of a prompt computes its keys and values for all
    num_times: int = field(default=1, kw_only=True)  # timesteps of one candidate: one, or one per token

    def flops(self, config: FrozenDict) -> ForwardFlops:
        """Operations of the call in a `CausalWanTransformer3DModel` of this config."""
        width = config.num_attention_heads * config.attention_head_dim
        tokens = self.batch_size * self.chunk_tokens
        block = tokens * (6 * width**2 + 2 * width * config.ffn_dim)  # q, k, v, out; cross q, out; feed-forward
        embedded_text = 1  # all that the model embeds of a text that is not read again
        if self.fills_prompt:
            block += self.text_tokens * 2 * width**2
            embedded_text = self.text_tokens
        embedders = self.batch_size * self.num_times * (config.freq_dim * width + 7 * width**2)  # of timesteps
        embedders += embedded_text * (config.text_dim * width + width**2)
        ends = tokens * math.prod(config.patch_size) * (config.in_channels + config.out_channels) * width
        attended = self.chunk_tokens + self.context_tokens + self.text_tokens
        return ForwardFlops(
            linear=2 * (config.num_layers * block + embedders + ends),
            attention=4 * config.num_layers * tokens * attended * width,
        )


@dataclass(frozen=True)
class DecodeCost:
    """Cost of decoding one chunk of one candidate."""

    first_flops: int  # of a video's first chunk
    later_flops: int
    state_bytes: int  # of the decoder's feature cache
    workspace_bytes: int  # peak besides the states, the new frames included


def decode_cost(
    vae: AutoencoderKLWan,
    latent_shape: tuple[int, int, int, int],
    dtype: torch.dtype = torch.float32,
    first_frames: int | None = None,
) -> DecodeCost:
    """Returns the cost of decoding a chunk of latents (C, F, H, W), the first one having `first_frames` if not F."""
    num_channels, num_frames, *size = latent_shape
    decoder, state = streaming_decoder.StreamingWanDecoder(_without_content(vae, dtype)), None
    flops, workspace = [], []
    for frames in (first_frames or num_frames, num_frames):
        latents = torch.empty(1, num_channels, frames, *size, device="meta")
        with FlopCounterMode(display=False) as counter, LiveBytes() as live:
            _, state = decoder(latents, state)
        flops.append(counter.get_total_flops())
        workspace.append(live.peak - state.num_bytes)
    return DecodeCost(*flops, state_bytes=state.num_bytes, workspace_bytes=max(workspace))


@dataclass(frozen=True)
class EncodeCost:
    """Cost of encoding a clip one latent frame after the other."""

    first_flops: int  # of the first latent frame
    later_flops: int
    bytes: int  # feature cache and peak besides


def encode_cost(vae: AutoencoderKLWan, size: tuple[int, int], dtype: torch.dtype = torch.float32) -> EncodeCost:
    """Returns the cost of encoding frames of `size`, height and width in pixels."""
    encoder, state = streaming_encoder.StreamingWanEncoder(_without_content(vae, dtype)), None
    flops, peak = [], []
    for num_frames in (1, vae.config.scale_factor_temporal):
        frames = torch.empty(1, 3, num_frames, *size, device="meta")
        with FlopCounterMode(display=False) as counter, LiveBytes() as live:
            _, state = encoder(frames, state)
        flops.append(counter.get_total_flops())
        peak.append(live.peak)
    return EncodeCost(*flops, bytes=2 * max(peak))  # a state, and the next one


def _without_content(vae: AutoencoderKLWan, dtype: torch.dtype) -> AutoencoderKLWan:
    with torch.device("meta"):
        empty = AutoencoderKLWan.from_config(vae.config)
        torch.nn.Module.to(empty, dtype)  # diffusers' own `to` warns
    return empty


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of parameters and buffers; shared ones count once, quantised ones at their stored size."""
    return sum(_stored_bytes(tensor) for tensor in {*model.parameters(), *model.buffers()})


def _stored_bytes(tensor: torch.Tensor) -> int:
    if not hasattr(tensor, "__tensor_flatten__"):
        return tensor.nbytes
    names, _ = tensor.__tensor_flatten__()  # of a tensor subclass that wraps others
    return sum(_stored_bytes(getattr(tensor, name)) for name in names)


class ModelCosts:
    """Costs of a transformer and a VAE at one size: a chunk of latents (C, F, H, W), and a text of so many tokens.

    Args:
        first_chunk_frames: latent frames of a video's first chunk. Default: F.
    """

    def __init__(
        self,
        transformer: "transformer_causal_wan.CausalWanTransformer3DModel",
        vae: AutoencoderKLWan | None,
        latent_shape: tuple[int, int, int, int],
        text_tokens: int,
        first_chunk_frames: int | None = None,
    ) -> None:
        self.transformer, self.vae, self.latent_shape = transformer, vae, latent_shape
        self.config, self.text_tokens, self.itemsize = transformer.config, text_tokens, transformer.dtype.itemsize
        sides = zip(latent_shape[2:], self.config.patch_size[1:], strict=True)
        self.frame_tokens = math.prod(size // patch for size, patch in sides)
        width = self.config.num_attention_heads * self.config.attention_head_dim
        token_bytes = 2 * self.config.num_layers * width * self.itemsize
        self.frame_bytes, self.text_bytes = self.frame_tokens * token_bytes, text_tokens * token_bytes
        self.decode = None if vae is None else decode_cost(vae, latent_shape, vae.dtype, first_chunk_frames)

    def forward_flops(
        self,
        batch_size: int,
        num_frames: int,
        context_frames: int,
        *,
        fills_prompt: bool = False,
        times_tokens: bool = False,
    ) -> int:
        """Operations of one forward of `batch_size` chunks of `num_frames` over the same memory.

        Args:
            fills_prompt: whether it is the first of its prompt.
            times_tokens: whether every token has its own timestep.
        """
        own, context = (frames * self.frame_tokens for frames in (num_frames, context_frames))
        num_times = own if times_tokens else 1
        shape = ForwardShape(batch_size, own, context, self.text_tokens, fills_prompt, num_times=num_times)
        return sum(shape.flops(self.config))

    def forward_bytes(self, batch_size: int, num_frames: int, context_frames: int) -> int:
        """Bytes of the context that a forward reads, plus the peak inside the forward."""
        num_channels, _, *size = self.latent_shape
        with torch.device("meta"):
            config = {**self.config, "num_layers": 1}
            block = transformer_causal_wan.CausalWanTransformer3DModel.from_config(config)
            torch.nn.Module.to(block, self.transformer.dtype)
            embeds = torch.empty(1, 1, self.config.text_dim, dtype=block.dtype)
            latents = torch.empty(batch_size, num_channels, num_frames, *size, dtype=block.dtype)
            context = memory.ChunkMemory().context(
                (num_frames, *size),
                patch_size=self.config.patch_size,
                head_dim=self.config.attention_head_dim,
                positions="relative",
                prompt=memory.PromptMemory(),
                device=torch.device("meta"),
            )
            if context_frames:
                heads = (self.config.num_attention_heads, self.config.attention_head_dim)
                tokens = context_frames * self.frame_tokens
                context.key, context.value = torch.empty(2, 1, tokens, *heads, dtype=block.dtype)
            with torch.no_grad(), LiveBytes() as live, _FusedAttention():
                block(latents, torch.empty(batch_size, dtype=torch.float32), embeds, context=context)
        return context_frames * self.frame_bytes + live.peak

    def encode_cost(self, size: tuple[int, int]) -> EncodeCost:
        """Cost of encoding a given past of `size`, height and width in pixels."""
        return encode_cost(self.vae, size, self.vae.dtype)

    def decode_flops(self, is_first: bool) -> int:
        return self.decode.first_flops if is_first else self.decode.later_flops

    def decode_bytes(self, batch_size: int, num_states: int) -> int:
        """Bytes of decoder states, plus the peak of decoding a batch; a batch of 0 decodes nothing."""
        if self.decode is None:
            return 0
        batch_size = min(batch_size, 1) if self.vae.use_slicing else batch_size
        return num_states * self.decode.state_bytes + batch_size * self.decode.workspace_bytes


class LiveBytes(TorchDispatchMode):
    """Tracks the most bytes that tensors made under this mode hold at once: `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._alive: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(
        self, function: object, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        output = function(*args, **(kwargs or {}))
        inputs = {StorageWeakRef(x.untyped_storage()) for x in _tensors((args, kwargs))}
        self._alive = {storage: size for storage, size in self._alive.items() if not storage.expired()}
        for tensor in _tensors(output):
            storage = tensor.untyped_storage()
            if StorageWeakRef(storage) not in inputs:
                self._alive[StorageWeakRef(storage)] = storage.nbytes()
        self.peak = max(self.peak, sum(self._alive.values()))
        return output


def _tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(tree) if torch.is_tensor(leaf)]


class _FusedAttention(TorchFunctionMode):
    """Attention that never materialises its scores, as torch would do on the meta device."""

    def __torch_function__(
        self, function: object, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        kwargs = kwargs or {}
        if function is torch.nn.functional.scaled_dot_product_attention:
            return torch.empty_like(kwargs.get("query", args[0] if args else None))
        return function(*args, **kwargs)
