"""Teacher forcing: all chunks of a clip through a stock `WanTransformer3DModel` at once, with a stream's contexts.

A clip of N chunks becomes N clean chunks at timestep 0, which see clean chunks alone, and R noisy copies of each,
which see the clean past and themselves. What a chunk sees is the first chunk, the two before it and itself (and
sometimes one older chunk more, as a search may keep). Weights are the stock ones; the arithmetic is that of the stock
forward, with the modulation computed once per chunk instead of once per token and the text padding folded into one
token.

Axes: B clips, G groups (the clean one, then R noisy ones), N chunks, T tokens of a chunk, H heads, D head dim.
"""

import math
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from torch.nn import functional

CHUNK_FRAMES = 3
TEXT_LENGTH = 512


@dataclass(frozen=True, eq=False)
class TextMemory:
    """Prompt embeddings without their padding."""

    embeds: torch.Tensor  # (B, L + 1, text_dim), the last token is zero and stands for all the padding
    bias: torch.Tensor  # (B, L + 1) added to attention logits: 0, -inf for absent tokens, log(number of zero tokens)


@dataclass(frozen=True, eq=False)
class ContextMask:
    """Context that each chunk reads, as slots of one chunk each: first, older, two back, one back, itself."""

    bias: torch.Tensor  # (N, slots) 0 or -inf
    older: torch.Tensor | None  # (N,) index of the older chunk, None when no chunk reads one


def text_memory(embeds: torch.Tensor, attention_mask: torch.Tensor) -> TextMemory:
    """Returns the equivalent of embeddings zero-padded to 512 tokens without a mask, as `WanPipeline` feeds them.

    embeds: (B, L, text_dim); attention_mask: (B, L)
    """
    present = attention_mask.bool()
    lengths = present.sum(dim=1, keepdim=True)
    bias = torch.zeros_like(present, dtype=torch.float32).masked_fill(~present, -math.inf)
    embeds = functional.pad(embeds * present[:, :, None], (0, 0, 0, 1))
    return TextMemory(embeds, torch.cat([bias, (TEXT_LENGTH - lengths).float().log()], dim=1))


def context_mask(num_chunks: int, device: torch.device, *, older: torch.Tensor | None = None) -> ContextMask:
    """The slots that exist for every chunk of a clip.

    older: (N,) a chunk between the first and the window, or -1 where there is none to read
    """
    if num_chunks == 1:
        return ContextMask(torch.zeros(1, 1, device=device), None)
    index = torch.arange(num_chunks, device=device)
    slots = [index >= 1, index >= 3, index >= 2, torch.ones_like(index, dtype=torch.bool)]
    if older is not None:
        slots.insert(1, older > 0)
    seen = torch.stack(slots, dim=1)
    bias = torch.zeros(seen.shape, device=device).masked_fill(~seen, -math.inf)
    return ContextMask(bias, None if older is None else older.clamp(min=0))


def forward_chunks(
    transformer: WanTransformer3DModel,
    chunks: torch.Tensor,
    timesteps: torch.Tensor,
    positions: torch.Tensor,
    text: TextMemory,
    mask: ContextMask,
) -> torch.Tensor:
    """Predicts the velocities of all chunks; those of the clean group are meaningless.

    chunks: (B, G, N, C, chunk_frames, h, w), group 0 clean; a first chunk alone has no past and needs no clean group
    timesteps: (B, G, N)
    positions: (B, N) RoPE position of the first frame of each chunk, the same in all groups
    Returns the shape of `chunks`.
    """
    groups, num_chunks = chunks.shape[1:3]
    hidden = transformer.patch_embedding(chunks.flatten(0, 2)).flatten(2).transpose(1, 2)  # (BGN, T, C')
    time, modulation, words, _ = transformer.condition_embedder(timesteps.flatten(), text.embeds)
    modulation = modulation.unflatten(1, (6, -1))  # (BGN, 6, C')
    rotary = _rotary(transformer, positions, chunks.shape[-2:])
    rotary = tuple(table[:, None].expand(-1, groups, -1, -1, -1, -1).flatten(0, 2) for table in rotary)
    for block in transformer.blocks:
        shift, scale, gate, ffn_shift, ffn_scale, ffn_gate = (block.scale_shift_table + modulation).chunk(6, dim=1)
        normed = block.norm1(hidden) * (1 + scale) + shift
        hidden = hidden + gate * _self_attention(block.attn1, normed, rotary, mask, groups, num_chunks)
        hidden = hidden + _cross_attention(block.attn2, block.norm2(hidden), words, text.bias)
        normed = block.norm3(hidden) * (1 + ffn_scale) + ffn_shift
        hidden = hidden + ffn_gate * block.ffn(normed)
    shift, scale = (transformer.scale_shift_table + time[:, None]).chunk(2, dim=1)
    hidden = transformer.proj_out(transformer.norm_out(hidden) * (1 + scale) + shift)
    return _unpatchify(hidden, transformer.config.patch_size, chunks.shape[-3:]).unflatten(0, chunks.shape[:3])


def _self_attention(
    attention: nn.Module,
    hidden: torch.Tensor,
    rotary: tuple[torch.Tensor, torch.Tensor],
    mask: ContextMask,
    groups: int,
    num_chunks: int,
) -> torch.Tensor:
    """Attention of every chunk (BGN, T, C') over its context slots."""
    heads, tokens = attention.heads, hidden.shape[1]
    query = _rotate(attention.norm_q(attention.to_q(hidden).float()).unflatten(2, (heads, -1)), *rotary)
    key = _rotate(attention.norm_k(attention.to_k(hidden).float()).unflatten(2, (heads, -1)), *rotary)
    value = attention.to_v(hidden).unflatten(2, (heads, -1))
    key, value = (_with_context(x.unflatten(0, (-1, groups, num_chunks)), mask) for x in (key, value))
    bias = mask.bias.repeat_interleave(tokens, dim=1)  # (N, slots * T)
    bias = bias.repeat(hidden.shape[0] // num_chunks, 1)[:, None, None]  # (BGN, 1, 1, slots * T)
    return attention.to_out[0](_attend(query, key, value, bias).flatten(2))


def _with_context(own: torch.Tensor, mask: ContextMask) -> torch.Tensor:
    """Keys or values of the slots of every chunk, (BGN, slots * T, H, D).

    own: (B, G, N, T, H, D)
    """
    num_chunks = own.shape[2]
    if num_chunks == 1:
        return own.flatten(0, 2)
    clean = own[:, :1]  # (B, 1, N, T, H, D)
    slots = [clean[:, :, :1].expand_as(clean)]
    if mask.older is not None:
        slots.append(clean.index_select(2, mask.older))
    padded = functional.pad(clean, (0, 0, 0, 0, 0, 0, 2, 0))
    slots += [padded[:, :, :num_chunks], padded[:, :, 1 : num_chunks + 1]]
    context = torch.cat(slots, dim=3).expand(-1, own.shape[1], -1, -1, -1, -1)
    return torch.cat([context, own], dim=3).flatten(0, 2)


def _cross_attention(
    attention: nn.Module, hidden: torch.Tensor, words: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """Attention of every token to the words of its clip.

    hidden: (BGN, T, C'); words: (B, L + 1, C')
    """
    heads, batch = attention.heads, words.shape[0]
    query = (
        attention.norm_q(attention.to_q(hidden).float())
        .unflatten(0, (batch, -1))
        .flatten(1, 2)
        .unflatten(2, (heads, -1))
    )
    key = attention.norm_k(attention.to_k(words).float()).unflatten(2, (heads, -1))
    value = attention.to_v(words).unflatten(2, (heads, -1))
    return attention.to_out[0](_attend(query, key, value, bias[:, None, None]).reshape(hidden.shape))


def _attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Attention (X, T, H, D) written out: at this size the fused kernel's backward is several times slower on a CPU.

    bias: (X, 1, 1, keys)
    """
    logits = query.transpose(1, 2) @ key.permute(0, 2, 3, 1) * query.shape[-1] ** -0.5  # (X, H, T, keys)
    weights = (logits + bias.to(logits.dtype)).softmax(dim=-1).to(value.dtype)
    return (weights @ value.transpose(1, 2)).transpose(1, 2)


def _rotary(
    transformer: WanTransformer3DModel, positions: torch.Tensor, latent_size: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (B, N, T, 1, D / 2) of the stock RoPE for chunks that start at `positions` (B, N)."""
    rope = transformer.rope
    _, patch_height, patch_width = transformer.config.patch_size
    rows, columns = latent_size[0] // patch_height, latent_size[1] // patch_width
    frames = positions[:, :, None] + torch.arange(CHUNK_FRAMES, device=positions.device)  # (B, N, chunk_frames)
    tables = []
    for table in (rope.freqs_cos[:, 0::2], rope.freqs_sin[:, 1::2]):
        in_time, in_height, in_width = table.split([rope.t_dim // 2, rope.h_dim // 2, rope.w_dim // 2], dim=1)
        grid = (*frames.shape, rows, columns, -1)
        parts = [
            in_time[frames][:, :, :, None, None].expand(grid),
            in_height[:rows][:, None].expand(grid),
            in_width[:columns].expand(grid),
        ]
        tables.append(torch.cat(parts, dim=-1).flatten(2, 4)[:, :, :, None].float())
    return tables[0], tables[1]


def _rotate(states: torch.Tensor, cosine: torch.Tensor, sine: torch.Tensor) -> torch.Tensor:
    """states (BGN, T, H, D), with interleaved pairs as in the stock processor."""
    even, odd = states.unflatten(-1, (-1, 2)).unbind(-1)
    rotated = torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1)
    return rotated.flatten(-2).type_as(states)


def _unpatchify(hidden: torch.Tensor, patch: tuple[int, int, int], latent_size: tuple[int, int, int]) -> torch.Tensor:
    """Tokens (X, T, patch values) to latents (X, C, chunk_frames, h, w), as the stock forward ends."""
    frames, height, width = (side // step for side, step in zip(latent_size, patch, strict=True))
    grid = hidden.reshape(hidden.shape[0], frames, height, width, *patch, -1).permute(0, 7, 1, 4, 2, 5, 3, 6)
    return grid.flatten(6, 7).flatten(4, 5).flatten(2, 3)
