"""What a search costs, counted."""

import time

import pytest
import torch
from conftest import brightness, contrast

from stream_t1.search import StaticSink

REWARDS = {"image_reward": brightness, "video_reward": contrast}


class Counted:
    """Counts the rows that go through a module, and the seconds it takes."""

    def __init__(self, module):
        self.rows, self.seconds = [], 0.0
        self.handles = [
            module.register_forward_pre_hook(self.begin, with_kwargs=True),
            module.register_forward_hook(self.end),
        ]

    def begin(self, module, args, kwargs):
        self.rows.append(len(kwargs["hidden_states"] if kwargs.get("hidden_states") is not None else args[0]))
        self.began = time.perf_counter()

    def end(self, *_):
        self.seconds += time.perf_counter() - self.began

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("num_beams, num_candidates", [(1, 1), (1, 4), (2, 2), (3, 2)])
def test_forwards_are_exactly_4_k_m_and_clean_passes_at_most_k(toy_pipeline, embeds, num_beams, num_candidates):
    with Counted(toy_pipeline.transformer) as transformer, Counted(toy_pipeline.vae.decoder) as decoder:
        trace = toy_pipeline(
            prompt_embeds=embeds, num_frames=57, num_beams=num_beams, num_candidates=num_candidates, **REWARDS
        ).trace
    tried = num_beams * num_candidates
    assert [chunk.work.forwards for chunk in trace.chunks] == [4 * tried] * 5
    assert [chunk.work.clean_passes for chunk in trace.chunks] == [num_beams] * 4 + [0]
    assert [chunk.work.latents_decoded for chunk in trace.chunks] == [3 * tried] * 5
    assert [chunk.work.frames_scored for chunk in trace.chunks] == [
        tried * (new + window) for new, window in ((9, 9), (12, 21), (12, 33), (12, 45), (12, 57))
    ]
    assert sum(transformer.rows) == 5 * 4 * tried + 4 * num_beams
    assert sum(decoder.rows) == 5 * 3 * tried  # nothing is decoded twice


def test_candidates_of_one_beam_are_one_batch(toy_pipeline, embeds):
    with Counted(toy_pipeline.transformer) as transformer:
        toy_pipeline(prompt_embeds=embeds, num_frames=21, **REWARDS)
    assert transformer.rows[:4] == [4] * 4  # chunk 0: all candidates have the one empty parent
    assert transformer.rows[-8:] == [2] * 8  # chunk 1: two of each beam


def test_plain_streaming_for_latents_decodes_nothing(toy_pipeline, embeds, caplog):
    with Counted(toy_pipeline.vae.decoder) as decoder:
        trace = toy_pipeline(
            prompt_embeds=embeds, num_frames=33, num_beams=1, num_candidates=1, output_type="latent"
        ).trace
    assert decoder.rows == [] and caplog.text == ""
    assert [chunk.work.latents_decoded + chunk.work.frames_scored for chunk in trace.chunks] == [0, 0, 0]


def test_without_rewards_only_kept_candidates_are_decoded(toy_pipeline, embeds, caplog):
    with Counted(toy_pipeline.vae.decoder) as decoder:
        toy_pipeline(prompt_embeds=embeds, num_frames=33)
    assert sum(decoder.rows) == 3 * 3 * 2
    assert caplog.text.count("it scores 0") == 2


def test_a_fork_copies_no_memory(toy_pipeline, embeds):
    """Both beams of a chunk that share a parent share its remembered tensors."""
    shared = []

    def look(pipe, chunk_index, state):
        parents = {state["candidates"][index].parent for index in state["kept"]}
        shared.append(len(parents) == 1)
        return {"kept": [0, 1]}  # both of the best beam

    beams = []
    advance = toy_pipeline._advance
    toy_pipeline._advance = lambda search, index: advance(search, index) and beams.append(search.beams) is None
    toy_pipeline(prompt_embeds=embeds, num_frames=57, callback_on_chunk_end=look, memory=StaticSink(), **REWARDS)
    one, other = beams[3]
    assert one.memory.sinks[0].key is other.memory.sinks[0].key
    assert one.memory.window[0].key is other.memory.window[0].key
    assert one.memory.window[-1].key is not other.memory.window[-1].key
    assert one.latents[:3] == other.latents[:3] and one.frames[0] is other.frames[0]


def test_decoder_states_live_no_longer_than_needed(toy_pipeline, embeds):
    beams = []
    advance = toy_pipeline._advance
    toy_pipeline._advance = lambda search, index: advance(search, index) and beams.append(search.beams) is None
    toy_pipeline(prompt_embeds=embeds, num_frames=33, **REWARDS)
    assert [beam.decoder_state is None for beam in beams[-1]] == [True, True]
    assert [beam.decoder_state is None for beam in beams[0]] == [True, True]  # let go when chunk 1 was decoded


def test_context_stops_growing_when_the_window_is_full(toy_pipeline, embeds):
    lengths = []
    context = toy_pipeline._context

    def measured(search, parent):
        made = context(search, parent)
        lengths.append(0 if made.key is None else made.key.shape[1] // 3)  # chunks of 3 tokens
        return made

    toy_pipeline._context = measured
    toy_pipeline(
        prompt_embeds=embeds, num_frames=153, num_beams=1, num_candidates=1, output_type="latent", memory=StaticSink()
    )
    assert max(lengths) == 3 and lengths[-2:] == [3, 3]


def test_stages_are_timed(toy_pipeline, embeds):
    begin = time.perf_counter()
    trace = toy_pipeline(prompt_embeds=embeds, num_frames=33, **REWARDS).trace
    elapsed = time.perf_counter() - begin
    seconds = [sum(chunk.work.seconds.values()) for chunk in trace.chunks]
    assert set(trace.chunks[0].work.seconds) == {"denoise", "clean_pass", "decode", "reward"}
    assert 0.3 * elapsed < sum(seconds) < elapsed


def test_the_prompt_is_read_once(toy_pipeline, embeds):
    calls = []
    handle = toy_pipeline.transformer.blocks[0].attn2.to_v.register_forward_hook(lambda *_: calls.append(1))
    toy_pipeline(prompt_embeds=torch.cat((embeds, embeds)), num_frames=33, **REWARDS)
    handle.remove()
    assert len(calls) == 2  # prompts


def test_losers_leave_nothing_behind(toy_pipeline, embeds):
    """After a call only its frames are alive: no latents, memories or decoder states."""
    import gc

    def live_bytes():
        gc.collect()
        tensors = [thing for thing in gc.get_objects() if isinstance(thing, torch.Tensor)]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(storages.values())

    request = {"prompt_embeds": embeds, "num_frames": 33, **REWARDS}
    toy_pipeline(**request)  # whatever is cached for ever is cached now
    before = live_bytes()
    output = toy_pipeline(**request, output_type="pt")
    assert live_bytes() - before <= output.frames.numel() * 4 + 4096


def test_a_kept_candidate_does_not_keep_its_batch_alive(toy_pipeline, embeds):
    kept = []
    toy_pipeline(
        prompt_embeds=embeds,
        num_frames=21,
        callback_on_chunk_end=lambda pipe, index, state: kept.extend(state["candidates"]),
        **REWARDS,
    )
    for tensor in (tensor for candidate in kept for tensor in (candidate.latents, candidate.noise, candidate.frames)):
        assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
