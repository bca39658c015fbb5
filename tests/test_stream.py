"""`pipe.stream`: chunks as soon as they can change no more, and exactly the video of a call."""

import gc
import weakref

import numpy as np
import pytest
import torch
from conftest import brightness, contrast

from stream_t1 import NoCandidateLeftError, StreamT1Pipeline
from stream_t1.models.memory import CachedChunk
from stream_t1.models.streaming_decoder import DecoderState
from stream_t1.search import EMASink, RewardRoutedSink, StaticSink

REWARDS = {"image_reward": brightness, "video_reward": contrast}
PLAIN = {"num_beams": 1, "num_candidates": 1}
RELATIVE = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=-1e9, positions="relative")


def seeded(**arguments):
    return {"num_frames": 93, "output_type": "pt", "generator": torch.Generator().manual_seed(3), **arguments}


def alternating(frames, prompt, fps):
    """Prefers candidates by their place: every beam has equally good ones, so that beams live long."""
    return -torch.arange(len(frames), dtype=torch.float32).remainder(2)


SEARCHES = {
    "plain": PLAIN,
    "one beam": {"num_beams": 1, "num_candidates": 3, **REWARDS},
    "several beams": {"num_beams": 3, "num_candidates": 2, **REWARDS},
    "beams that live": {"num_beams": 2, "num_candidates": 2, "image_reward": False, "video_reward": alternating},
    "max_lag 0": {"num_beams": 3, "num_candidates": 2, "max_lag": 0, **REWARDS},
    "max_lag 2": {"num_beams": 2, "num_candidates": 2, "max_lag": 2, "video_reward": alternating},
    "latent": {"output_type": "latent", **PLAIN},
    "np": {"output_type": "np", **REWARDS},
}


@pytest.mark.parametrize("arguments", SEARCHES.values(), ids=SEARCHES)
def test_what_is_given_is_exactly_what_a_call_returns(toy_pipeline, embeds, arguments):
    called = toy_pipeline(prompt_embeds=embeds, **seeded(**arguments))
    chunks = list(toy_pipeline.stream(prompt_embeds=embeds, **seeded(**arguments)))
    assert [chunk.index for chunk in chunks] == list(range(8))
    frames = [torch.as_tensor(chunk.frames) for chunk in chunks]
    axis = 1 if arguments.get("output_type") == "latent" else 0
    assert torch.equal(torch.cat(frames, dim=axis), torch.as_tensor(called.frames[0]))
    assert chunks[-1].trace.final == called.trace.final
    assert [c.candidates for c in chunks[-1].trace.chunks] == [c.candidates for c in called.trace.chunks]


def made_when_given(pipe: StreamT1Pipeline, **arguments) -> list[int]:
    """Numbers of chunks that were finished when each was given."""
    return [len(chunk.trace.chunks) for chunk in pipe.stream(**seeded(**arguments))]


def test_one_beam_gives_every_chunk_at_once(toy_pipeline, embeds):
    assert made_when_given(toy_pipeline, prompt_embeds=embeds, **PLAIN) == list(range(1, 9))


def test_beams_that_disagree_hold_a_chunk_back_until_they_agree(toy_pipeline, embeds):
    """The search's own trace says which chunk of each kept beam came from where."""
    *_, last = toy_pipeline.stream(prompt_embeds=embeds, **seeded(**REWARDS))
    paths, settled_at = [()], {}
    for made, chunk in enumerate(last.trace.chunks, start=1):
        kept = [index for index, candidate in enumerate(chunk.candidates) if candidate.kept]
        paths = [(*paths[chunk.candidates[index].parent], index) for index in kept]
        for position in range(made):
            if len({path[: position + 1] for path in paths}) == 1:
                settled_at.setdefault(position, made)
    expected = [settled_at.get(position, 8) for position in range(8)]
    assert made_when_given(toy_pipeline, prompt_embeds=embeds, **REWARDS) == expected


def test_max_lag_forces_a_decision(toy_pipeline, embeds):
    arguments = {"prompt_embeds": embeds, "num_beams": 2, "num_candidates": 2}
    free = made_when_given(toy_pipeline, image_reward=False, video_reward=alternating, **arguments)
    for lag in (0, 1, 3):
        forced = made_when_given(toy_pipeline, image_reward=False, video_reward=alternating, max_lag=lag, **arguments)
        assert all(made - index - 1 <= lag for index, made in enumerate(forced))
    assert max(made - index - 1 for index, made in enumerate(free)) > 3  # so the bound was needed


def test_max_lag_keeps_as_many_beams_as_agree(toy_pipeline, embeds):
    trace = toy_pipeline(prompt_embeds=embeds, **seeded(max_lag=1, num_candidates=3, **REWARDS)).trace
    for before, chunk in zip(trace.chunks, trace.chunks[1:], strict=False):
        kept = [candidate for candidate in chunk.candidates if candidate.kept]
        assert len({candidate.parent for candidate in kept}) == 1 and len(kept) == 2
        assert len([candidate for candidate in before.candidates if candidate.kept]) == 2


def test_closing_the_generator_frees_everything(toy_pipeline, embeds):
    stream = toy_pipeline.stream(prompt_embeds=embeds, **seeded(**REWARDS))
    next(stream)
    gc.collect()
    held = [weakref.ref(x) for x in gc.get_objects() if isinstance(x, CachedChunk | DecoderState)]
    assert held
    stream.close()
    gc.collect()
    assert not any(reference() for reference in held)


def test_a_stream_that_is_left_leaves_the_pipeline_usable_and_gradients_as_they_were(toy_pipeline, embeds):
    for _ in toy_pipeline.stream(prompt_embeds=embeds, **seeded(**PLAIN)):
        assert torch.is_grad_enabled()
        break
    output = toy_pipeline(prompt_embeds=embeds, **seeded(**PLAIN))
    assert output.frames.shape[1] == 93


def test_two_streams_of_one_pipeline_do_not_disturb_each_other(toy_pipeline, embeds):
    alone = list(toy_pipeline.stream(prompt_embeds=embeds, **seeded(**REWARDS)))
    first = toy_pipeline.stream(prompt_embeds=embeds, **seeded(**REWARDS))
    second = toy_pipeline.stream(prompt_embeds=-embeds, **seeded(num_inference_steps=2, **PLAIN))
    for chunk, _, expected in zip(first, second, alone, strict=True):
        assert torch.equal(chunk.frames, expected.frames)


def test_an_endless_stream_begins_like_a_long_video_of_its_horizon(toy_pipeline, embeds):
    arguments = {"prompt_embeds": embeds, "memory": RELATIVE, "max_lag": 1, **REWARDS}
    endless = toy_pipeline.stream(**seeded(num_frames=None, horizon=8, **arguments))
    chunks = [next(endless) for _ in range(20)]
    finite = list(toy_pipeline.stream(**seeded(**arguments)))
    assert all(torch.equal(a.frames, b.frames) for a, b in zip(chunks[:7], finite, strict=False))
    assert [chunk.index for chunk in chunks] == list(range(20))
    assert len(chunks[-1].trace.chunks) == 8 and chunks[-1].trace.config["num_frames"] is None


def test_an_endless_stream_holds_no_more_after_many_chunks(toy_pipeline, embeds):
    stream = toy_pipeline.stream(
        prompt_embeds=embeds,
        memory=EMASink(),
        **seeded(num_frames=None, horizon=4, reward_window=2, max_lag=1, **REWARDS),
    )
    counts = []
    for _ in range(3):
        for _ in range(12):
            next(stream)
        gc.collect()
        counts.append(sum(isinstance(x, torch.Tensor) for x in gc.get_objects()))
    assert counts[0] == counts[1] == counts[2]


def test_an_interrupt_ends_an_endless_stream_with_what_is_finished(toy_pipeline, embeds):
    def stop(pipe, chunk_index, state):
        pipe._interrupt = chunk_index == 4

    arguments = {"video_reward": alternating, "image_reward": False, "callback_on_chunk_end": stop}
    stream = toy_pipeline.stream(
        prompt_embeds=embeds, memory=EMASink(), **seeded(num_frames=None, horizon=9, **arguments)
    )
    assert [chunk.index for chunk in stream] == list(range(5))


def test_a_lost_search_brings_what_was_not_given_yet(toy_pipeline, embeds):
    def fails_late(frames, prompt, fps):
        return torch.full((len(frames),), float("nan") if len(frames[0]) > 40 else 1.0)

    stream = toy_pipeline.stream(prompt_embeds=embeds, **seeded(image_reward=False, video_reward=fails_late))
    given = []
    with pytest.raises(NoCandidateLeftError) as caught:
        given.extend(chunk.frames for chunk in stream)
    assert sum(map(len, given)) + caught.value.frames.shape[1] == 33
    assert len(caught.value.trace.final.order) == 2


@pytest.mark.parametrize(
    "arguments, message",
    [
        (
            {"num_frames": None, "horizon": 5, "memory": StaticSink()},
            "`num_frames` is None, an endless stream.*relative",
        ),
        ({"num_frames": None, "memory": EMASink()}, "or none and a `horizon`.*neither is given"),
        ({"horizon": 5}, "or none and a `horizon`.*both are given"),
        ({"num_frames": None, "horizon": 0, "memory": EMASink()}, "`horizon` is 0; it must be 1 or more"),
        ({"num_videos_per_prompt": 2}, "one video of one prompt"),
        ({"num_beams": 2, "num_videos_per_prompt": 2, "max_lag": 0}, "`max_lag`, 0, keeps one beam. Use 1 video"),
        ({"generator": [torch.Generator()] * 2}, "`generator` is a list of 2"),
        ({"max_lag": -1}, "`max_lag` is -1; it must be 0 or more"),
        ({"num_frames": 50}, "12 k - 3"),
    ],
)
def test_mistakes_are_raised_at_once_and_not_with_the_first_chunk(toy_pipeline, embeds, arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_pipeline.stream(prompt_embeds=embeds, **seeded(**arguments))


def test_an_argument_that_a_call_does_not_have_is_refused(toy_pipeline, embeds):
    with pytest.raises(TypeError, match="unexpected keyword argument 'num_beam'"):
        toy_pipeline.stream(prompt_embeds=embeds, num_beam=2)


def test_a_call_has_an_end(toy_pipeline, embeds):
    with pytest.raises(TypeError, match="`num_frames` is None"):
        toy_pipeline(prompt_embeds=embeds, num_frames=None)


def test_pictures_are_given_as_pictures(toy_pipeline, embeds):
    chunk = next(toy_pipeline.stream(prompt_embeds=embeds, **seeded(output_type="pil", **PLAIN)))
    assert len(chunk.frames) == 9 and np.asarray(chunk.frames[0]).shape == (16, 16, 3)
