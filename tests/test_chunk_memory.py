"""A memory is a value: nothing that is made from it changes it."""

import pytest
import torch

from stream_t1.models import CachedChunk, ChunkMemory


def chunk(index, dtype=torch.float32, fill=None):
    key = torch.full((2, 4, 1, 6), float(index if fill is None else fill), dtype=dtype)
    return CachedChunk(key, key + 1, index, 3 * index, 3, dtype)


def remembered(count, sink_frames=3):
    memory = ChunkMemory()
    for index in range(count):
        memory = memory.append(chunk(index), sink_frames)
    return memory


def indices(chunks):
    return [chunk.index for chunk in chunks]


@pytest.mark.parametrize("sink_frames, sinks, window", [(0, [], [0, 1, 2]), (3, [0], [1, 2]), (6, [0, 1], [2])])
def test_first_chunks_fill_the_sinks_then_the_window(sink_frames, sinks, window):
    memory = remembered(3, sink_frames)
    assert (indices(memory.sinks), indices(memory.window)) == (sinks, window)
    assert memory.num_frames == 9


def test_appending_and_evicting_leave_the_parent_as_it_was():
    parent = remembered(3)
    sinks, window = parent.sinks, parent.window
    parent.append(chunk(3), 3).evict_oldest(lambda sinks, chunk: (*sinks, chunk))
    assert parent.sinks is sinks and parent.window is window and parent.num_frames == 9


def test_forks_share_their_parents_tensors():
    parent = remembered(3)
    forks = [parent.append(chunk(3, fill=fill), 3) for fill in (7, 8)]
    assert forks[0].sinks[0].key is forks[1].sinks[0].key is parent.sinks[0].key
    assert forks[0].window[:2] == forks[1].window[:2] == parent.window


def test_eviction_takes_the_oldest_of_the_window_and_never_a_sink():
    memory = remembered(4).evict_oldest(lambda sinks, chunk: sinks)
    assert (indices(memory.sinks), indices(memory.window)) == ([0], [2, 3])


def test_averaging_keeps_the_sinks_place_and_weighs_by_decay():
    sink = chunk(0).average(chunk(5), decay=0.8)
    torch.testing.assert_close(sink.key, torch.full_like(sink.key, 1.0))  # 0.8 * 0 + 0.2 * 5
    torch.testing.assert_close(sink.value, torch.full_like(sink.key, 2.0))
    assert (sink.index, sink.start_frame) == (0, 0)


def test_a_decay_of_0_999_is_not_lost_to_bfloat16():
    sink = chunk(0, torch.bfloat16, fill=1.0)
    for _ in range(100):
        sink = sink.average(chunk(1, torch.bfloat16, fill=2.0), decay=0.999)
    assert float(sink.key.mean()) == pytest.approx(2.0 - 0.999**100, abs=1e-4)
    assert sink.dtype == torch.bfloat16  # what forwards read
