"""What a search costs, counted."""

import time
import weakref
from dataclasses import replace

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
    toy_pipeline._advance = lambda search: advance(search) and beams.append(search.beams) is None
    toy_pipeline(prompt_embeds=embeds, num_frames=57, callback_on_chunk_end=look, memory=StaticSink(), **REWARDS)
    one, other = beams[3]
    assert one.memory.sinks[0].key is other.memory.sinks[0].key
    assert one.memory.window[0].key is other.memory.window[0].key
    assert one.memory.window[-1].key is not other.memory.window[-1].key
    assert one.latents[:3] == other.latents[:3] and one.frames[0] is other.frames[0]


def test_decoder_states_live_no_longer_than_needed(toy_pipeline, embeds):
    beams = []
    advance = toy_pipeline._advance
    toy_pipeline._advance = lambda search: advance(search) and beams.append(search.beams) is None
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
    assert set(trace.chunks[0].work.seconds) == {"denoise", "clean_pass", "decode", "reward", "monitor"}
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
        kinds = (torch.Tensor, torch.nn.Parameter)  # and no tensors without content, which a compiler may have left
        tensors = [thing for thing in gc.get_objects() if type(thing) in kinds]
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


def test_losers_decoder_states_are_gone_before_the_clean_pass(toy_pipeline, embeds):
    states, alive = [], []
    clean_pass = toy_pipeline._clean_passes

    def look(pipe, index, state):
        states[:] = [weakref.ref(candidate.decoder_state) for candidate in state["candidates"]]

    def counted(*arguments):
        alive.append(sum(state() is not None for state in states))
        return clean_pass(*arguments)

    toy_pipeline._clean_passes = counted
    toy_pipeline(prompt_embeds=embeds, num_frames=33, callback_on_chunk_end=look, **REWARDS)
    assert set(alive) == {2}


def test_contexts_of_two_beams_are_never_alive_together(toy_pipeline, embeds):
    made, alive = [], []
    context = toy_pipeline._context

    def counted(search, parent):
        alive.append(sum(ref() is not None for ref in made))
        new = context(search, parent)
        made.append(weakref.ref(new))
        return new

    toy_pipeline._context = counted
    memory = {"callback_on_chunk_end": lambda *_: {"kept": [0, 3]} if len(made) > 1 else None}
    toy_pipeline(prompt_embeds=embeds, num_frames=57, **memory, **REWARDS)
    assert len(alive) > 8 and set(alive) == {0}


def test_memories_are_gone_before_the_whole_videos_are_scored(toy_pipeline, embeds):
    keys, alive = [], []
    clean_pass = toy_pipeline._clean_passes

    def noted(*arguments):
        chunks = clean_pass(*arguments)
        keys.extend(weakref.ref(chunk.key) for chunk in chunks)
        return chunks

    def reward(frames, prompt, fps):
        alive.append(sum(key() is not None for key in keys))
        return contrast(frames, prompt, fps)

    toy_pipeline._clean_passes = noted
    toy_pipeline(prompt_embeds=embeds, num_frames=33, image_reward=brightness, video_reward=reward)
    assert alive[2] > 0 and alive[3] == 0


def test_a_chunk_costs_the_same_however_long_the_video_is(toy_pipeline, embeds):
    """With a static sink: work and remembered bytes of chunk 10 and chunk 29."""
    remembered = []
    advance = toy_pipeline._advance

    def measured(search):
        advanced = advance(search)
        chunks = [chunk for beam in search.beams for chunk in (*beam.memory.sinks, *beam.memory.window)]
        storages = {tensor.data_ptr(): tensor.nbytes for chunk in chunks for tensor in (chunk.key, chunk.value)}
        states = [beam.decoder_state.num_bytes for beam in search.beams if beam.decoder_state is not None]
        remembered.append((len(chunks), sum(states), sum(storages.values()) <= 6 * chunks[0].key.nbytes * 2))
        return advanced

    toy_pipeline._advance = measured
    arguments = {"image_reward": brightness, "video_reward": False, "memory": StaticSink()}
    trace = toy_pipeline(prompt_embeds=embeds, num_frames=357, **arguments).trace
    assert remembered[10] == remembered[28]
    work = [replace(trace.chunks[index].work, seconds={}) for index in (10, 28)]
    assert work[0] == work[1]


def test_compiled_models_are_taken_as_they_are(embeds):
    from conftest import toy_transformer, toy_vae

    from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline

    frames = []
    for wrap in (lambda model: model, lambda model: torch.compile(model, backend="eager")):
        models = (wrap(toy_transformer()), wrap(toy_vae(z_dim=4)))
        pipe = StreamT1Pipeline(None, None, *models, FewStepFlowMatchScheduler(), default_height=16, default_width=16)
        pipe.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(0)
        frames.append(pipe(prompt_embeds=embeds, num_frames=21, generator=generator, **REWARDS).frames)
    assert abs(frames[0] - frames[1]).max() < 1.01 / 255  # compiled, the rotary product rounds differently


def test_plain_streaming_spends_its_time_in_the_models(toy_pipeline, embeds):
    """The law is 5% for the demo: benchmarks/chunk_cost.py --overhead. Here with room for a busy machine."""
    from conftest import toy_transformer

    from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline

    shape = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 8, "ffn_dim": 384, "text_dim": 48}
    model = toy_transformer(**shape, in_channels=8, out_channels=8)
    pipe = StreamT1Pipeline(None, None, model, None, FewStepFlowMatchScheduler())
    pipe.set_progress_bar_config(disable=True)
    shares = []
    for _ in range(5):
        with Counted(model) as counted:
            begin = time.perf_counter()
            pipe(
                prompt_embeds=torch.zeros(1, 512, 48),
                height=64,
                width=64,
                num_beams=1,
                num_candidates=1,
                output_type="latent",
            )
            shares.append(1 - counted.seconds / (time.perf_counter() - begin))
    assert min(shares) < 0.1
