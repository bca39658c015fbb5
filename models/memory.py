"""The memory of a beam, its KV cache: keys and values of its clean chunks (paper section 3.3, Memory Sinking).

`CachedChunk` and `ChunkMemory` are values. `append` and `evict_oldest` return a new memory that shares the tensors of
the old one, so beams that fork share everything and none can write into another's past.

Keys are kept *before* rotary embedding: sinks are averaged there, and one store then serves absolute and relative
positions. `ChunkMemory.context` turns a memory into what a forward reads, once per chunk and parent beam.

Axes: B batch, L tokens, N heads, D head dim; the leading axis of stored keys and values counts transformer layers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch

from . import rotary

# Elements; the float32 products of all layers at once would be as large as the memory itself.
ROTATED_AT_ONCE = 2**24


@dataclass(frozen=True, eq=False)
class CachedChunk:
    """Keys and values of one chunk of clean latents, or of a sink into which evicted chunks were averaged."""

    key: torch.Tensor  # (layers, L, N, D), before rotary embedding; float32 once averaged
    value: torch.Tensor  # (layers, L, N, D)
    index: int  # of the chunk in the video
    start_frame: int  # latent frames before it
    num_frames: int
    dtype: torch.dtype  # of the forwards that read it

    def average(self, evicted: "CachedChunk", decay: float) -> "CachedChunk":
        """`decay * self + (1 - decay) * evicted` at this chunk's own position, in float32.

        In bfloat16 a decay of 0.999 would be lost: 0.999 * x rounds to x.

        Raises:
            ValueError: the two are of different lengths.
        """
        if evicted.num_frames != self.num_frames:
            raise ValueError(
                f"A chunk of {evicted.num_frames} latent frames cannot be averaged into a sink of {self.num_frames}. "
                "Choose `sink_frames` so that the last sink is a later chunk than the first."
            )
        key = torch.lerp(evicted.key.float(), self.key.float(), decay)
        value = torch.lerp(evicted.value.float(), self.value.float(), decay)
        return replace(self, key=key, value=value)


@dataclass(frozen=True, eq=False)
class ChunkMemory:
    """The chunks that the next one attends to."""

    sinks: tuple[CachedChunk, ...] = ()  # never leave; a policy may average into them or add to them
    window: tuple[CachedChunk, ...] = ()  # the most recent chunks, oldest first
    num_frames: int = 0  # latent frames committed so far, evicted ones included

    @property
    def window_frames(self) -> int:
        return sum(chunk.num_frames for chunk in self.window)

    def append(self, chunk: CachedChunk, first_sink_frames: int) -> "ChunkMemory":
        """Returns the memory with one more chunk: a sink while it holds fewer than `first_sink_frames`."""
        num_frames = self.num_frames + chunk.num_frames
        if self.num_frames < first_sink_frames:
            return replace(self, sinks=(*self.sinks, chunk), num_frames=num_frames)
        return replace(self, window=(*self.window, chunk), num_frames=num_frames)

    def evict_oldest(
        self, new_sinks: Callable[[tuple[CachedChunk, ...], CachedChunk], tuple[CachedChunk, ...]]
    ) -> "ChunkMemory":
        """Returns the memory without its window's oldest chunk; `new_sinks(sinks, chunk)` gives the new sinks."""
        oldest, *rest = self.window
        return replace(self, sinks=tuple(new_sinks(self.sinks, oldest)), window=tuple(rest))

    def context(
        self,
        latent_shape: tuple[int, int, int],
        *,
        patch_size: tuple[int, int, int],
        head_dim: int,
        positions: Literal["absolute", "relative"],
        prompt: "PromptMemory",
        device: torch.device,
        first_position: int | None = None,
    ) -> "ChunkContext":
        """Returns the context of the next chunk's forwards, for all steps and all candidates of this memory's beam.

        Args:
            latent_shape: frames, height and width of the next chunk's latents.
            patch_size: frames, rows and columns of a token.
            head_dim: D.
            positions: "absolute": every frame keeps its index in the video; "relative": frames are numbered from 0,
                sinks first, then the window, then the chunk itself.
            prompt: cross-attention keys and values, filled by the first forward.
            device: where the forwards run.
            first_position: of the chunk's first frame, instead of the one that `positions` gives it.
        """
        num_frames, height, width = (size // patch for size, patch in zip(latent_shape, patch_size, strict=True))
        chunks = (*self.sinks, *self.window)
        past = [frame for chunk in chunks for frame in range(chunk.start_frame, chunk.start_frame + chunk.num_frames)]
        first = self.num_frames
        if positions == "relative":
            past, first = range(len(past)), len(past)
        first = first if first_position is None else first_position
        frames = (*past, *range(first, first + num_frames))
        table = rotary.rotary_table(frames, height, width, head_dim, device)
        past_table, table = table.split((len(past) * height * width, num_frames * height * width))
        key = value = None
        if chunks:
            key = torch.cat([chunk.key.to(chunk.dtype) for chunk in chunks], dim=1)  # (layers, L, N, D)
            for layers in key.split(max(1, ROTATED_AT_ONCE // key[0].numel())):
                layers.copy_(rotary.rotate(layers, past_table))
            value = torch.cat([chunk.value.to(chunk.dtype) for chunk in chunks], dim=1)
        return ChunkContext(table.clone(), key, value, prompt)  # not a view: torch.compile would guard on its base


@dataclass(frozen=True, eq=False)
class LayerContext:
    """Input of one layer's self-attention, instead of the stock model's rotary tables.

    This and `LayerPrompt` are not tuples: hooks that move a block's inputs to its device would rebuild a tuple, and
    what the block records in it would be lost.
    """

    table: torch.Tensor  # (L of the chunk, D / 2, 2): the rotary embedding of its own tokens
    key: torch.Tensor | None  # (1, L of the context, N, D), rotated; None for the first chunk
    value: torch.Tensor | None
    recorded_key: torch.Tensor | None  # (L, N, D), filled in a clean pass; else None
    recorded_value: torch.Tensor | None


@dataclass(frozen=True, eq=False)
class LayerPrompt:
    """Input of one layer's cross-attention, instead of the stock model's text."""

    hidden_states: torch.Tensor | None  # (1, L, dim) embedded text, when key and value are still to be filled from it
    key: torch.Tensor  # (1, L, N, D)
    value: torch.Tensor


class PromptMemory:
    """Cross-attention keys and values of one prompt: filled by its first forward, read-only after that."""

    def __init__(self) -> None:
        self.key: torch.Tensor | None = None  # (layers, 1, L, N, D)
        self.value: torch.Tensor | None = None
        self.is_filled = False

    def allocate(self, num_layers: int, num_tokens: int, heads: tuple[int, int], like: torch.Tensor) -> None:
        """Allocates the keys and values of `num_tokens` tokens; `heads` is (N, D)."""
        self.key = like.new_empty((num_layers, 1, num_tokens, *heads))
        self.value = torch.empty_like(self.key)

    def layer(self, index: int, hidden_states: torch.Tensor) -> LayerPrompt:
        return LayerPrompt(None if self.is_filled else hidden_states, self.key[index], self.value[index])


class ChunkContext:
    """Input of all forwards of one chunk. A plain class, which offload hooks do not rebuild."""

    def __init__(
        self,
        table: torch.Tensor,
        key: torch.Tensor | None,
        value: torch.Tensor | None,
        prompt: PromptMemory,
        record: "ChunkRecord | None" = None,
    ) -> None:
        self.table = table  # (L of the chunk, D / 2, 2)
        self.key, self.value = key, value  # (layers, L of the context, N, D)
        self.prompt = prompt
        self.record = record

    def recording(self, record: "ChunkRecord") -> "ChunkContext":
        """The same context for a clean pass, whose keys and values go into `record`."""
        return ChunkContext(self.table, self.key, self.value, self.prompt, record)

    def with_prompt(self, prompt: PromptMemory) -> "ChunkContext":
        """The same context under another prompt."""
        return ChunkContext(self.table, self.key, self.value, prompt, self.record)

    def layer(self, index: int) -> LayerContext:
        past = (None, None) if self.key is None else (self.key[index : index + 1], self.value[index : index + 1])
        recorded = (None, None) if self.record is None else self.record.layer(index)
        return LayerContext(self.table, *past, *recorded)


class ChunkRecord:
    """Keys and values that the clean pass of a chunk records."""

    def __init__(self) -> None:
        self.key: torch.Tensor | None = None  # (layers, L, N, D)
        self.value: torch.Tensor | None = None

    def allocate(self, num_layers: int, heads: tuple[int, int], like: torch.Tensor) -> None:
        """Allocates keys and values for the tokens of `like` (1, L, dim); `heads` is (N, D)."""
        if like.shape[0] != 1:
            raise ValueError(f"A clean pass records one chunk; {like.shape[0]} were given.")
        self.key = like.new_empty((num_layers, like.shape[1], *heads))
        self.value = torch.empty_like(self.key)

    def layer(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.key[index], self.value[index]

    def chunk(self, index: int, start_frame: int, num_frames: int) -> CachedChunk:
        """Returns the recorded keys and values as a chunk of the video."""
        return CachedChunk(self.key, self.value, index, start_frame, num_frames, self.key.dtype)

    def split(self, first_index: int, start_frame: int, lengths: Sequence[int]) -> list[CachedChunk]:
        """Returns the recorded keys and values as neighbouring chunks of so many latent frames each."""
        tokens_per_frame, chunks = self.key.shape[1] // sum(lengths), []
        sizes = [frames * tokens_per_frame for frames in lengths]
        parts = (each.split(sizes, dim=1) for each in (self.key, self.value))
        for index, (key, value, frames) in enumerate(zip(*parts, lengths, strict=True), start=first_index):
            # Copies: a view would keep the whole record alive for as long as one chunk of it is.
            key, value = (each.clone(memory_format=torch.contiguous_format) for each in (key, value))
            chunks.append(CachedChunk(key, value, index, start_frame, frames, self.key.dtype))
            start_frame += frames
        return chunks
