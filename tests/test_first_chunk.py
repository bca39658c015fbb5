"""Chunks of one frame, and a first chunk of another length than the later ones."""

import pytest
import torch
from conftest import brightness, contrast, toy_transformer, toy_vae

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.models.memory import CachedChunk
from stream_t1.search import EMASink, RewardRoutedSink, SlidingWindow, StaticSink

PLAIN = {"num_beams": 1, "num_candidates": 1}
REWARDS = {"image_reward": brightness, "video_reward": contrast}
APPENDS = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=-1e9)


def toy(**config):
    sizes = {"default_height": 16, "default_width": 16, "denoising_steps": (1000, 500)}
    pipe = StreamT1Pipeline(
        None, None, toy_transformer(), toy_vae(z_dim=4), FewStepFlowMatchScheduler(), **{**sizes, **config}
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def read_frames(embeds):
    """Runs a pipeline and returns, per forward, how many latent frames it has and how many it reads."""

    def run(pipe, num_frames, **arguments):
        lengths = []

        def note(module, args, kwargs):
            own, context = kwargs["hidden_states"].shape[2], kwargs["context"].key
            lengths.append((own, 0 if context is None else context.shape[1]))  # one token a frame

        handle = pipe.transformer.register_forward_pre_hook(note, with_kwargs=True)
        output = pipe(prompt_embeds=embeds, num_frames=num_frames, output_type="latent", **PLAIN, **arguments)
        handle.remove()
        return output, list(dict.fromkeys(lengths))

    return run


def test_a_first_chunk_of_one_frame_decides_lengths_pixels_noise_and_context(read_frames):
    pipe = toy(first_chunk_frames=1, window_frames=9, sink_frames=0)
    output, lengths = read_frames(pipe, 49, memory=SlidingWindow())
    assert output.frames.shape == (1, 4, 13, 2, 2)
    assert lengths == [(1, 0), (3, 1), (3, 4), (3, 6)]  # the window counts frames: first the single one leaves
    assert [len(chunk.evicted) for chunk in output.trace.chunks] == [0, 0, 1, 1, 0]
    assert output.trace.config["first_chunk_frames"] == 1 and output.trace.config["num_chunks"] == 5


def test_a_stream_of_such_a_model_gives_one_picture_and_then_twelve_by_twelve(embeds):
    pipe = toy(first_chunk_frames=1)
    arguments = {"prompt_embeds": embeds, "num_frames": 25, **REWARDS, "num_beams": 2, "num_candidates": 2}
    chunks = [chunk.frames for chunk in pipe.stream(generator=torch.Generator().manual_seed(1), **arguments)]
    assert [len(frames) for frames in chunks] == [1, 12, 12]
    whole = pipe(generator=torch.Generator().manual_seed(1), **arguments).frames[0]
    assert (torch.from_numpy(whole) == torch.cat([torch.from_numpy(frames) for frames in chunks])).all()


def test_sinks_are_whole_chunks_and_the_window_counts_them(read_frames):
    pipe = toy(first_chunk_frames=1, sink_frames=3)
    output, lengths = read_frames(pipe, 73, memory=StaticSink())
    assert lengths == [(1, 0), (3, 1), (3, 4), (3, 7)]  # four frames are sinks, so twelve hold one more chunk
    assert output.trace.chunks[-1].sinks == [[0, 1]]


@pytest.mark.parametrize("memory", [EMASink(), APPENDS])
def test_a_policy_averages_into_a_sink_of_a_whole_chunk(read_frames, memory):
    output, _ = read_frames(toy(first_chunk_frames=1, window_frames=9), 97, memory=memory, **REWARDS)
    assert output.frames.shape == (1, 4, 25, 2, 2) and bool(torch.isfinite(output.frames).all())


def test_chunks_of_one_frame_go_from_end_to_end(read_frames):
    pipe = toy(chunk_frames=1, window_frames=5, sink_frames=2)
    output, lengths = read_frames(pipe, 37, memory=APPENDS, **REWARDS)
    assert output.frames.shape == (1, 4, 10, 2, 2) and len(output.trace.chunks) == 10
    assert lengths == [(1, context) for context in range(10)]  # all that leave become sinks
    assert [chunk.work.latents_decoded for chunk in output.trace.chunks] == [1] * 10


def test_noise_after_a_chunk_of_another_length_is_fresh(embeds):
    pipe, frames = toy(first_chunk_frames=1), []
    for beta in (0.0, 0.9):
        generator = torch.Generator().manual_seed(2)
        arguments = {"prompt_embeds": embeds, "num_frames": 25, "output_type": "latent", "generator": generator}
        frames.append(pipe(noise_correlation=beta, **arguments, **PLAIN).frames)
    assert torch.equal(frames[0][:, :, :4], frames[1][:, :, :4])
    assert not torch.equal(frames[0][:, :, 4:], frames[1][:, :, 4:])


def test_given_noise_is_that_of_the_whole_video(embeds):
    pipe, noise = toy(first_chunk_frames=1), torch.randn(1, 4, 7, 2, 2)
    seen = []

    def look(pipe, step, timestep, tensors):
        seen.append(tensors["latents"].shape[2])
        return {}

    arguments = {"prompt_embeds": embeds, "num_frames": 25, "output_type": "latent", **PLAIN}
    output = pipe(latents=noise, callback_on_step_end=look, **arguments)
    assert output.frames.shape == noise.shape and seen == [1, 1, 3, 3, 3, 3]
    with pytest.raises(ValueError, match=r"`latents` has shape \(1, 4, 6, 2, 2\); .*\(1, 4, 7, 2, 2\)"):
        pipe(latents=noise[:, :, :6], **arguments)


def test_a_first_chunk_as_long_as_the_others_changes_no_bit(embeds):
    arguments = {"prompt_embeds": embeds, "num_frames": 33, **REWARDS, "output_type": "pt"}
    videos = [
        toy(first_chunk_frames=first)(generator=torch.Generator().manual_seed(1), **arguments).frames
        for first in (None, 3)
    ]
    assert torch.equal(*videos)


def test_an_endless_stream_begins_with_the_first_frame(embeds):
    pipe = toy(first_chunk_frames=1)
    arguments = {"num_frames": None, "horizon": 3, "memory": EMASink(), **PLAIN}
    stream = pipe.stream(prompt_embeds=embeds, **arguments)
    assert [len(next(stream).frames) for _ in range(6)] == [1, 12, 12, 12, 12, 12]
    stream.close()


def test_it_is_saved_and_loaded(tmp_path):
    toy(first_chunk_frames=1).save_pretrained(tmp_path)
    assert StreamT1Pipeline.from_pretrained(tmp_path).config.first_chunk_frames == 1


@pytest.mark.parametrize(
    "config, arguments, match",
    [
        ({}, {"num_frames": 20}, r"`num_frames` is 20; .*first chunk of 1 latent frames.*12 k \+ 1, .*Use 13 or 25"),
        ({}, {"video": torch.zeros(9, 3, 16, 16)}, r"`video` has 9 frames; .*12 k \+ 1, .*Cut it to 1 or 13"),
        ({}, {"video_latents": torch.zeros(1, 4, 3, 2, 2)}, "has 3 latent frames.*1 and then chunks of 3. Use 1 or 4"),
        ({"sink_frames": 1}, {"memory": EMASink()}, "`memory` averages chunks of 3 into them.*`sink_frames=4`"),
        ({}, {"num_frames": 4105}, "absolute positions end at 1024. Use 4093 frames or fewer"),
    ],
)
def test_what_does_not_fit_is_refused(embeds, config, arguments, match):
    pipe = toy(first_chunk_frames=1, **config)
    with pytest.raises(ValueError, match=match):
        pipe(**{"prompt_embeds": embeds, "num_frames": 25, **PLAIN, **arguments})


@pytest.mark.parametrize("config", [{"window_frames": 5}, {"sink_frames": 5}, {"window_frames": 3}])
def test_a_window_that_holds_no_whole_chunks_is_refused(config):
    with pytest.raises(ValueError, match="must be"):
        toy(first_chunk_frames=1, **config)


def test_chunks_of_other_lengths_are_not_averaged():
    chunks = [CachedChunk(torch.zeros(1, n, 1, 2), torch.zeros(1, n, 1, 2), 0, 0, n, torch.float32) for n in (1, 3)]
    with pytest.raises(ValueError, match="A chunk of 3 latent frames cannot be averaged into a sink of 1"):
        chunks[0].average(chunks[1], 0.9)
