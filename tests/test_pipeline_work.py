"""The counted cost of a search, and what is alive while it runs."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch
from conftest import brightness, contrast, toy_transformer, toy_vae

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.models.memory import CachedChunk, ChunkContext, ChunkMemory
from stream_t1.models.streaming_decoder import DecoderState
from stream_t1.search import BeamSearch, StaticSink
from stream_t1.search.beam import RELEASED

REWARDS = {"image_reward": brightness, "video_reward": contrast}
PLAIN = {"num_beams": 1, "num_candidates": 1, "image_reward": False, "video_reward": False}


class Counted:
    """Counts the rows that go through a module."""

    def __init__(self, module):
        self.rows = []
        self.handle = module.register_forward_pre_hook(self.begin, with_kwargs=True)

    def begin(self, module, args, kwargs):
        self.rows.append(len(kwargs["hidden_states"] if kwargs.get("hidden_states") is not None else args[0]))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.handle.remove()


class Watched:
    """The default search, which shows its steps and the beams that it is given."""

    num_beams = 2

    def __init__(self, look, num_candidates=2):
        self.inner, self.look = BeamSearch(2, num_candidates), look

    def __call__(self, steps, beams):
        self.look(steps, beams)
        return self.inner(steps, beams)


def alive(kind):
    gc.collect()
    return [thing for thing in gc.get_objects() if type(thing) is kind]


@pytest.mark.parametrize("num_beams, num_candidates", [(1, 1), (1, 4), (2, 2), (3, 2)])
def test_forwards_are_exactly_4_k_m_and_clean_passes_at_most_k(toy_pipeline, embeds, num_beams, num_candidates):
    with Counted(toy_pipeline.transformer) as transformer, Counted(toy_pipeline.vae.decoder) as decoder:
        trace = toy_pipeline(
            prompt_embeds=embeds, num_frames=57, num_beams=num_beams, num_candidates=num_candidates, **REWARDS
        ).trace
    tried = num_beams * num_candidates
    assert [chunk.work.forwards for chunk in trace.chunks] == [4 * tried] * 5
    assert [chunk.work.clean_passes for chunk in trace.chunks] == [num_beams] * 4 + [0]
    assert [chunk.work.chunk_forwards for chunk in trace.chunks] == [4 * tried + num_beams] * 4 + [4 * tried]
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
        trace = toy_pipeline(prompt_embeds=embeds, num_frames=33, output_type="latent", **PLAIN).trace
    assert decoder.rows == [] and caplog.text == ""
    assert [chunk.work.latents_decoded + chunk.work.frames_scored for chunk in trace.chunks] == [0, 0, 0]


def test_without_rewards_only_kept_candidates_are_decoded(toy_pipeline, embeds):
    with Counted(toy_pipeline.vae.decoder) as decoder:
        toy_pipeline(
            prompt_embeds=embeds,
            num_frames=33,
            num_beams=2,
            num_candidates=2,
            callback_on_chunk_end=lambda *_: {"kept": [1, 2]},
        )
    assert sum(decoder.rows) == 3 * 3 * 2


def test_a_fork_copies_no_memory(toy_pipeline, embeds):
    """Both beams of a chunk that share a parent share its remembered tensors."""
    seen = []
    toy_pipeline(
        prompt_embeds=embeds,
        num_frames=57,
        search=Watched(lambda steps, beams: seen.append(beams)),
        callback_on_chunk_end=lambda *_: {"kept": [0, 1]},  # both of the best beam
        memory=StaticSink(),
        **REWARDS,
    )
    one, other = seen[4]
    assert one.memory.sinks[0].key is other.memory.sinks[0].key
    assert one.memory.window[0].key is other.memory.window[0].key
    assert one.memory.window[-1].key is not other.memory.window[-1].key
    assert one.latents[:3] == other.latents[:3] and one.frames[0] is other.frames[0]


def test_parents_decoder_states_are_there_for_the_search_and_gone_before_the_clean_pass(toy_pipeline, embeds):
    parents, alive_then = [], []

    def look(steps, beams):
        parents.extend(weakref.ref(beam.decoder_state) for beam in beams if beam.decoder_state is not None)
        assert RELEASED not in [beam.decoder_state for beam in beams]

    def count(module, args, kwargs):
        if float(kwargs["timestep"][0]) == 0.0:  # a clean pass
            alive_then.append(sum(state() is not None for state in parents))

    handle = toy_pipeline.transformer.register_forward_pre_hook(count, with_kwargs=True)
    toy_pipeline(prompt_embeds=embeds, num_frames=33, search=Watched(look), **REWARDS)
    handle.remove()
    assert len(parents) == 4 and alive_then == [0] * 4


def test_losers_decoder_states_are_gone_before_the_clean_pass(toy_pipeline, embeds):
    alive_then = []

    def count(module, args, kwargs):
        if float(kwargs["timestep"][0]) == 0.0:
            alive_then.append(len(alive(DecoderState)))

    before = len(alive(DecoderState))
    handle = toy_pipeline.transformer.register_forward_pre_hook(count, with_kwargs=True)
    toy_pipeline(prompt_embeds=embeds, num_frames=33, num_candidates=3, **REWARDS)
    handle.remove()
    assert alive_then == [before + 2] * 4


def test_a_context_is_made_once_for_a_parent_and_is_gone_when_its_last_clean_pass_is_done(
    toy_pipeline, embeds, monkeypatch
):
    made, at_once, num_parents, context = [], [], [], ChunkMemory.context
    monkeypatch.setattr(ChunkMemory, "context", lambda *args, **kwargs: made.append(1) or context(*args, **kwargs))

    def look(steps, beams):
        at_once.append(len(alive(ChunkContext)))
        num_parents.append(len(beams))

    toy_pipeline(prompt_embeds=embeds, num_frames=57, search=Watched(look, num_candidates=3), **REWARDS)
    assert at_once == [at_once[0]] * 5  # none outlives its chunk
    assert len(made) == sum(num_parents)


def test_context_stops_growing_when_the_window_is_full(toy_pipeline, embeds):
    lengths = []

    def measure(module, args, kwargs):
        key = kwargs["context"].key
        lengths.append(0 if key is None else key.shape[1] // 3)  # chunks of 3 tokens

    handle = toy_pipeline.transformer.register_forward_pre_hook(measure, with_kwargs=True)
    toy_pipeline(prompt_embeds=embeds, num_frames=153, output_type="latent", memory=StaticSink(), **PLAIN)
    handle.remove()
    assert max(lengths) == 3 and lengths[-2:] == [3, 3]


def test_seconds_are_counted_for_every_stage_that_worked(toy_pipeline, embeds):
    trace = toy_pipeline(prompt_embeds=embeds, num_frames=21, monitors={"bright": brightness}, **REWARDS).trace
    first, last = (chunk.work.seconds for chunk in trace.chunks)
    worked = {"denoise", "clean_pass", "decode", "reward", "monitor"}
    assert {stage for stage, seconds in first.items() if seconds > 0} == worked
    assert {stage for stage, seconds in last.items() if seconds > 0} == worked - {"clean_pass"}


def test_the_prompt_is_read_once(toy_pipeline, embeds):
    calls = []
    handle = toy_pipeline.transformer.blocks[0].attn2.to_v.register_forward_hook(lambda *_: calls.append(1))
    toy_pipeline(prompt_embeds=torch.cat((embeds, embeds)), num_frames=33, **REWARDS)
    handle.remove()
    assert len(calls) == 2  # prompts


def test_losers_leave_nothing_behind(toy_pipeline, embeds):
    """After a call only its frames are alive: no latents, memories or decoder states."""

    def live_bytes():
        gc.collect()
        kinds = (torch.Tensor, torch.nn.Parameter)  # and no tensors without content, which a compiler may have left
        tensors = [thing for thing in gc.get_objects() if type(thing) in kinds and thing.layout == torch.strided]
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
    for candidate in kept:
        for tensor in (candidate.latents, candidate.noise, candidate.frames, *candidate.renoise):
            assert tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_memories_are_gone_before_the_whole_videos_are_scored(toy_pipeline, embeds):
    counts = []

    def reward(frames, prompt, fps):
        counts.append(len(alive(CachedChunk)))
        return contrast(frames, prompt, fps)

    before = len(alive(CachedChunk))
    toy_pipeline(prompt_embeds=embeds, num_frames=33, image_reward=brightness, video_reward=reward)
    assert counts[2] > before and counts[3] == before


def test_a_chunk_costs_the_same_however_long_the_video_is(toy_pipeline, embeds):
    """With a static sink: work and remembered bytes of chunk 11 and chunk 29."""
    remembered = []

    def measure(steps, beams):
        chunks = [chunk for beam in beams for chunk in (*beam.memory.sinks, *beam.memory.window)]
        storages = {tensor.data_ptr(): tensor.nbytes for chunk in chunks for tensor in (chunk.key, chunk.value)}
        states = [beam.decoder_state.num_bytes for beam in beams if beam.decoder_state is not None]
        remembered.append(
            (len(chunks), sum(states), chunks and sum(storages.values()) <= 6 * chunks[0].key.nbytes * 2)
        )

    arguments = {"image_reward": brightness, "video_reward": False, "memory": StaticSink()}
    trace = toy_pipeline(prompt_embeds=embeds, num_frames=357, search=Watched(measure), **arguments).trace
    assert remembered[11] == remembered[29] and remembered[29][2]
    work = [replace(trace.chunks[index].work, seconds={}) for index in (10, 28)]
    assert work[0] == work[1]


def test_compiled_models_are_taken_as_they_are(embeds):
    frames = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        models = (wrap(toy_transformer()), wrap(toy_vae(z_dim=4)))
        pipe = StreamT1Pipeline(None, None, *models, FewStepFlowMatchScheduler(), default_height=16, default_width=16)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        frames.append(pipe(prompt_embeds=embeds, num_frames=21, generator=generator, **REWARDS).frames)
    assert abs(frames[0] - frames[1]).max() < 1.01 / 255  # compiled, the rotary product rounds differently


def test_plain_streaming_calls_the_transformer_and_nothing_else_per_step(toy_pipeline, embeds, monkeypatch):
    """Per chunk four steps and a clean pass, one context, and no wait for the device but for its finiteness."""
    waits, contexts, context = [], [], ChunkMemory.context
    original = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda tensor: waits.append(1) or original(tensor))
    monkeypatch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail("a step waited for a number"))
    monkeypatch.setattr(ChunkMemory, "context", lambda *args, **kwargs: contexts.append(1) or context(*args, **kwargs))
    generator = torch.Generator().manual_seed(0)
    with Counted(toy_pipeline.transformer) as transformer:
        steps, beams = toy_pipeline.steps(prompt_embeds=embeds, output_type="latent", generator=generator, **PLAIN)
        for _ in range(3):
            beams = steps.commit(beams, steps.denoise(beams, steps.propose(beams, 1)))
            steps = steps.ahead()
    assert transformer.rows == [1] * 5 * 3 and len(contexts) == 3 and len(waits) == 3
