"""`pipe.replay`: the best video of a trace again, without its search."""

from dataclasses import replace

import pytest
import torch
from conftest import brightness, contrast, nothing_done, toy_transformer

from stream_t1.search import (
    BestOfN,
    EMASink,
    EvolutionSearch,
    MemoryPolicy,
    ParticleSearch,
    RewardRoutedSink,
    SearchTrace,
)

REWARDS = {"image_reward": brightness, "video_reward": contrast}
APPENDING = RewardRoutedSink(quality_threshold=float("-inf"), transition_threshold=float("-inf"))
ALONE = {  # every candidate is denoised and decoded alone, or nothing is to choose
    "plain": {"num_beams": 1, "num_candidates": 1},
    "two steps": {"num_beams": 1, "num_candidates": 1, "num_inference_steps": 2, "noise_correlation": 0.5},
    "best of three": {"search": BestOfN(3)},
    "particles": {"search": ParticleSearch(3, strength=200.0, threshold=1.0)},
    "appends": {"search": BestOfN(2), "memory": APPENDING},
}


def found(pipe, embeds, **arguments):
    given = {"num_frames": 45, "output_type": "pt", "generator": torch.Generator().manual_seed(3), **REWARDS}
    return pipe(prompt_embeds=embeds, **given | arguments)


@pytest.fixture
def pipe(toy_pipeline):
    toy_pipeline.register_to_config(window_frames=9)
    return toy_pipeline


@pytest.mark.parametrize("arguments", ALONE.values(), ids=ALONE)
def test_what_was_made_alone_is_made_again_bit_for_bit(pipe, embeds, tmp_path, arguments):
    output = found(pipe, embeds, **arguments)
    output.trace.save(tmp_path / "trace.json")
    trace = SearchTrace.load(tmp_path / "trace.json")
    again = pipe.replay(trace, prompt_embeds=embeds, output_type="pt")
    assert torch.equal(again.frames, output.frames) and again.trace is trace


def test_what_was_made_in_batches_agrees_up_to_rounding(pipe, embeds):
    output = found(pipe, embeds, output_type="latent", num_beams=3)
    again = pipe.replay(output.trace, prompt_embeds=embeds, output_type="latent")
    assert (again.frames - output.frames).norm() / output.frames.norm() < 1e-5


def test_a_replay_costs_what_a_plain_sample_costs(pipe, embeds):
    trace, calls = found(pipe, embeds, num_beams=3).trace, []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    pipe.replay(trace, prompt_embeds=embeds)
    handle.remove()
    assert len(calls) == 4 * 4 + 3  # four steps of four chunks, and the clean passes between them


def test_words_are_read_from_the_trace(reading_pipeline):
    plain = {"num_beams": 1, "num_candidates": 1, "output_type": "pt", "max_sequence_length": 20}
    output = reading_pipeline("a red circle", num_frames=21, **plain)
    state = torch.get_rng_state()
    assert torch.equal(reading_pipeline.replay(output.trace, output_type="pt").frames, output.frames)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_interrupted_search_is_made_again_as_far_as_it_came(pipe, embeds):
    def stop(pipe, chunk_index, state):
        pipe._interrupt = chunk_index == 1

    output = found(pipe, embeds, num_beams=1, num_candidates=1, callback_on_chunk_end=stop)
    assert len(output.trace.chunks) == 2
    assert torch.equal(pipe.replay(output.trace, prompt_embeds=embeds, output_type="pt").frames, output.frames)


def test_noise_and_callbacks_that_are_given_again_are_used(pipe, embeds):
    noise = torch.randn(1, 4, 6, 2, 2, generator=torch.Generator().manual_seed(5))
    given = {"latents": noise, "callback_on_step_end": lambda pipe, step, t, x: {"latents": 0.9 * x["latents"]}}
    output = found(pipe, embeds, num_beams=1, num_candidates=1, num_frames=21, **given)
    assert torch.equal(
        pipe.replay(output.trace, prompt_embeds=embeds, output_type="pt", **given).frames, output.frames
    )


class OwnPolicy(MemoryPolicy):
    pass


def trace_of(**arguments):
    return lambda pipe, embeds: found(pipe, embeds, num_frames=9, **arguments).trace


def unfinished(pipe, embeds):
    return replace(trace_of()(pipe, embeds), final=None)


def endless(pipe, embeds):
    arguments = {"num_beams": 1, "num_candidates": 1, "memory": EMASink(), "num_frames": None, "horizon": 2}
    stream = pipe.stream(prompt_embeds=embeds, **arguments)
    trace = next(stream).trace
    stream.close()
    return trace


def of_another_model(pipe, embeds):
    trace = trace_of()(pipe, embeds)
    pipe.transformer = toy_transformer(num_layers=1)
    return trace


NOISE = torch.zeros(1, 4, 3, 2, 2)
NOT_REPEATABLE = {
    "unfinished": (unfinished, {"prompt_embeds"}, "not finished"),
    "endless": (endless, {"prompt_embeds"}, "of an endless stream"),
    "embeddings": (trace_of(), set(), "made with `prompt_embeds`, which a trace does not hold"),
    "noise": (
        trace_of(num_beams=1, num_candidates=1, latents=NOISE),
        {"prompt_embeds"},
        "made with `latents`, which a trace does not hold",
    ),
    "a callback": (
        trace_of(callback_on_step_end=lambda pipe, step, timestep, tensors: {}),
        {"prompt_embeds"},
        "made with `callback_on_step_end`, which",
    ),
    "a search's own noise": (
        trace_of(search=EvolutionSearch(3, 4, 1, 0.9)),
        {"prompt_embeds"},
        "noise of the search's",
    ),
    "a policy": (trace_of(memory=OwnPolicy()), {"prompt_embeds"}, "policy OwnPolicy, which does not ship"),
    "a model": (of_another_model, {"prompt_embeds"}, "with other weights of the transformer"),
    "what it has": (trace_of(), {"prompt_embeds", "num_frames"}, "given `num_frames`, which the trace has"),
}


@pytest.mark.parametrize("make, given, told", NOT_REPEATABLE.values(), ids=NOT_REPEATABLE)
def test_what_a_trace_does_not_hold_is_told_by_name_before_any_work(pipe, embeds, make, given, told):
    trace = make(pipe, embeds)
    inputs = {name: value for name, value in {"prompt_embeds": embeds, "num_frames": 9}.items() if name in given}
    with nothing_done(pipe), pytest.raises((ValueError, TypeError), match=told):
        pipe.replay(trace, **inputs)


def test_an_older_trace_is_made_again_with_a_warning(pipe, embeds, caplog):
    output = found(pipe, embeds, num_beams=1, num_candidates=1, num_frames=9)
    config = {k: v for k, v in output.trace.config.items() if k not in ("given_inputs", "max_sequence_length")}
    older = replace(output.trace, config=config, made_with={}, seeds=[], call_seed=None)
    again = pipe.replay(older, prompt_embeds=embeds, output_type="pt")
    assert torch.equal(again.frames, output.frames) and "may be another one" in caplog.text
