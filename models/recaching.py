"""What a memory becomes when the prompt changes: a clean pass over the newest chunks under the new prompt.

LongLive (Yang et al. 2025) makes the window's keys and values again in one bidirectional pass; Infinity-RoPE
(Yesiltepe et al. 2025) keeps only the sink and the newest frames.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from . import memory


@dataclass(frozen=True, eq=False)
class RecachePass:
    """One clean pass over neighbouring chunks, which see each other in both directions."""

    past: memory.ChunkMemory  # sinks that the pass reads; it ends where the chunks begin
    latents: tuple[torch.Tensor, ...]  # (C, F, h, w) each, up to the newest chunk
    first_index: int  # of the first chunk, in the video
    sink_frames: int | None  # how many of the first frames become the sinks; None: the sinks stay as they are

    def remembered(self, given: memory.ChunkMemory, record: memory.ChunkRecord) -> memory.ChunkMemory:
        """The memory with what the pass recorded. Chunks that had left it took part in the pass alone."""
        lengths = [chunk.shape[1] for chunk in self.latents]
        chunks, sinks = record.split(self.first_index, self.past.num_frames, lengths), given.sinks
        if self.sink_frames is not None:
            made = memory.ChunkMemory()
            for chunk in chunks:
                made = made.append(chunk, self.sink_frames)
            sinks = made.sinks
        by_index = {chunk.index: chunk for chunk in chunks}
        window = tuple(by_index.get(chunk.index, chunk) for chunk in given.window)
        return replace(given, sinks=sinks, window=window)


def recache_pass(
    given: memory.ChunkMemory,
    latents: Sequence[torch.Tensor | None],
    *,
    makes_sinks: bool,
    window_frames: int,
    sink_frames: int,
) -> RecachePass | None:
    """The pass that makes a memory again; None where nothing of it would be kept.

    Args:
        latents: of the video so far, one (C, F, h, w) per chunk; None where they are forgotten.
        makes_sinks: the sinks are made again too, from the oldest frames of the pass. So they are in any case while
            the next chunk begins at or before `window_frames`, where nothing had to be forgotten (LongLive's code).
        window_frames: latent frames of context, the first sinks and the coming chunk included.
        sink_frames: how many of them are the first sinks.
    """
    makes_sinks = makes_sinks or given.num_frames <= window_frames
    if not (given.window or (makes_sinks and sink_frames)):
        return None
    most, first, begin = window_frames - (0 if makes_sinks else sink_frames), len(latents), given.num_frames
    while first > 0 and latents[first - 1] is not None:
        frames = latents[first - 1].shape[1]
        if given.num_frames - begin + frames > most:
            break
        first, begin = first - 1, begin - frames
    past = memory.ChunkMemory(sinks=() if makes_sinks else given.sinks, num_frames=begin)
    return RecachePass(past, tuple(latents[first:]), first, sink_frames if makes_sinks else None)


def flushed(given: memory.ChunkMemory, window_frames: int, incoming_frames: int) -> memory.ChunkMemory:
    """The sinks and, of the window, the newest chunks that fit beside them and the incoming one."""
    room = window_frames - incoming_frames - sum(sink.num_frames for sink in given.sinks)
    window = list(given.window)
    while sum(chunk.num_frames for chunk in window) > max(room, 0):
        del window[0]
    return replace(given, window=tuple(window))
