"""Laws of the search, on the real classes at toy size."""

import numpy as np
import pytest
import torch
from conftest import brightness, contrast

from stream_t1.search import RewardRoutedSink, SlidingWindow, StaticSink

REWARDS = {"image_reward": brightness, "video_reward": contrast}
PLAIN = {"num_beams": 1, "num_candidates": 1, "image_reward": False, "video_reward": False}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def search(pipe, embeds, **arguments):
    return pipe(prompt_embeds=embeds, **{"num_frames": 57, "generator": generator(), **REWARDS, **arguments})


def test_one_beam_and_one_candidate_is_plain_streaming(toy_pipeline, embeds):
    """Written out by hand: four steps and a clean pass per chunk, nothing else."""
    from stream_t1.models import ChunkMemory
    from stream_t1.models.memory import ChunkRecord, PromptMemory
    from stream_t1.search.noise_propagation import candidate_generator, independent_seed

    output = search(toy_pipeline, embeds, **PLAIN, output_type="latent", num_frames=33, noise_correlation=0.0)
    model, memory, prompt, chunks = toy_pipeline.transformer, ChunkMemory(), PromptMemory(), []
    for index in range(3):
        stream = candidate_generator(independent_seed(output.trace.seed, index, 0, 0, 0))
        context = memory.context(
            (3, 2, 2),
            patch_size=(1, 2, 2),
            head_dim=12,
            positions="absolute",
            prompt=prompt,
            device=torch.device("cpu"),
        )
        x = torch.randn(3, 4, 2, 2, generator=stream).transpose(0, 1)[None]
        with torch.no_grad():
            for sigma, next_sigma in ((1.0, 0.9375), (0.9375, 5 / 6), (5 / 6, 0.625), (0.625, 0.0)):
                velocity = model(x, torch.tensor([1000 * sigma]), embeds, context=context).sample
                x = x - sigma * velocity
                if next_sigma:
                    noise = torch.randn(3, 4, 2, 2, generator=stream).transpose(0, 1)[None]
                    x = (1 - next_sigma) * x + next_sigma * noise
            record = ChunkRecord()
            model(x, torch.zeros(1), embeds, context=context.recording(record))
        memory = memory.append(record.chunk(index, 3 * index, 3), 3)
        chunks.append(x)
    torch.testing.assert_close(output.frames, torch.cat(chunks, dim=2), rtol=1e-5, atol=1e-5)


def test_same_seed_same_video_bit_for_bit(toy_pipeline, embeds):
    first, again = (search(toy_pipeline, embeds).frames for _ in range(2))
    assert np.array_equal(first, again)


def test_another_seed_gives_another_video(toy_pipeline, embeds):
    first, other = (search(toy_pipeline, embeds, generator=generator(seed)).frames for seed in (0, 1))
    assert not np.array_equal(first, other)


def test_the_plain_sample_is_candidate_0_of_a_search(toy_pipeline, embeds):
    plain = search(toy_pipeline, embeds, **PLAIN, num_frames=9, output_type="latent")
    tried = []
    search(
        toy_pipeline,
        embeds,
        num_frames=9,
        callback_on_chunk_end=lambda pipe, index, state: tried.extend(state["candidates"]),
    )
    torch.testing.assert_close(tried[0].latents, plain.frames[0], rtol=1e-5, atol=1e-5)


def test_the_best_score_wins_and_ties_go_to_the_first(toy_pipeline, embeds):
    trace = search(toy_pipeline, embeds).trace
    for chunk in trace.chunks:
        scores = [candidate.score for candidate in chunk.candidates]
        kept = [candidate.score for candidate in chunk.candidates if candidate.kept]
        assert sorted(kept) == sorted(scores)[-2:]
    equal = lambda frames, prompt, fps: torch.zeros(len(frames))  # noqa: E731
    tied = search(toy_pipeline, embeds, image_reward=equal, video_reward=equal).trace
    assert [[c.kept for c in chunk.candidates] for chunk in tied.chunks] == [[True, True, False, False]] * 5


def test_more_candidates_never_lower_the_first_chunks_score(toy_pipeline, embeds):
    best = [
        max(c.score for c in search(toy_pipeline, embeds, num_beams=1, num_candidates=m).trace.chunks[0].candidates)
        for m in (1, 2, 4)
    ]
    assert best == sorted(best) and best[0] < best[-1]


def test_a_single_prompt_is_the_same_within_a_list(toy_pipeline, embeds):
    other = torch.randn(1, 6, 8, generator=generator(9))
    alone = search(toy_pipeline, other, generator=generator(7)).frames
    listed = search(toy_pipeline, torch.cat((embeds, other)), generator=[generator(6), generator(7)])
    assert listed.frames.shape == (2, 57, 16, 16, 3)
    assert np.array_equal(listed.frames[1], alone[0])
    assert len(listed.traces) == 2


def test_several_videos_per_prompt_come_prompt_major_and_best_first(toy_pipeline, embeds):
    two = torch.cat((embeds, embeds + 1))
    output = search(toy_pipeline, two, num_videos_per_prompt=2, output_type="pt")
    assert output.frames.shape == (4, 57, 3, 16, 16)
    for row, trace in enumerate(output.traces):
        scores = contrast(output.frames[2 * row : 2 * row + 2], ["", ""], 16.0)
        assert scores.tolist() == pytest.approx(trace.final.scores) and scores[0] >= scores[1]


def test_final_selection_by_score_orders_by_the_last_chunk(toy_pipeline, embeds):
    final = search(toy_pipeline, embeds, final_selection="score").trace.final
    assert final.selection == "score" and final.order == [0, 1]


def test_output_types_hold_the_same_pixels(toy_pipeline, embeds):
    arrays = search(toy_pipeline, embeds).frames
    tensors = search(toy_pipeline, embeds, output_type="pt").frames
    pictures = search(toy_pipeline, embeds, output_type="pil").frames
    assert np.array_equal(arrays, tensors.permute(0, 1, 3, 4, 2).numpy())
    assert np.array_equal(np.round(arrays[0, 5] * 255), np.asarray(pictures[0][5]))
    assert (len(pictures), len(pictures[0])) == (1, 57)


def test_decoded_latents_are_the_frames(toy_pipeline, embeds):
    latents = search(toy_pipeline, embeds, output_type="latent").frames
    frames = search(toy_pipeline, embeds, output_type="pt").frames
    vae = toy_pipeline.vae
    with torch.no_grad():
        video = vae.decode(latents / (1 / 1.5) + 0.1).sample
    expected = (video / 2 + 0.5).transpose(1, 2)
    torch.testing.assert_close(frames, expected, rtol=0, atol=0.5 / 255 + 1e-5)


def test_without_return_dict_a_tuple_comes_back(toy_pipeline, embeds):
    frames, traces = search(toy_pipeline, embeds, return_dict=False)
    assert frames.shape == (1, 57, 16, 16, 3) and len(traces) == 1


def test_a_one_chunk_video(toy_pipeline, embeds):
    output = search(toy_pipeline, embeds, num_frames=9)
    assert output.frames.shape == (1, 9, 16, 16, 3)
    assert output.trace.chunks[0].work.clean_passes == 0


def test_given_noise_is_used_as_the_noise_of_the_whole_video(toy_pipeline, embeds):
    plain = {**PLAIN, "noise_correlation": 0.0, "output_type": "latent"}
    noise = []
    drawn = search(
        toy_pipeline,
        embeds,
        **plain,
        callback_on_chunk_end=lambda pipe, index, state: noise.append(state["candidates"][0].noise),
    ).frames
    given = torch.cat(noise).transpose(0, 1)[None]
    assert torch.equal(search(toy_pipeline, embeds, **plain, latents=given).frames, drawn)
    assert not torch.equal(search(toy_pipeline, embeds, **plain, latents=given + 1).frames, drawn)


def test_a_stateful_reward_sees_candidates_and_whole_videos_and_nothing_else(toy_pipeline, embeds):
    seen = []

    def reward(frames, prompt, fps):
        seen.append(tuple(frames.shape[:2]))
        assert prompt == ["a word"] * len(frames) and fps == 16.0 and torch.is_inference_mode_enabled()
        assert frames.dtype == torch.float32 and 0 <= frames.min() and frames.max() <= 1
        return frames.mean(dim=(1, 2, 3, 4))

    arguments = {"video_reward": reward, "reward_prompt": "a word", "reward_window": 3}
    search(toy_pipeline, embeds, **arguments)
    assert seen == [(4, 9), (4, 21), (4, 33), (4, 36), (4, 36), (2, 57)]


def test_normalised_scores_rank_but_raw_ones_are_recorded(toy_pipeline, embeds):
    trace = search(toy_pipeline, embeds, score_normalization="rank", num_frames=21).trace
    assert {c.score for c in trace.chunks[0].candidates} == {0.0, 1 / 3, 2 / 3, 1.0}
    assert all(0 < c.long < 1 / 3 for c in trace.chunks[0].candidates)


@pytest.mark.parametrize("memory", [SlidingWindow(), StaticSink(), StaticSink(positions="relative")])
def test_other_memories_make_other_videos(toy_pipeline, embeds, memory):
    default = search(toy_pipeline, embeds, **PLAIN, output_type="latent", num_frames=81)
    other = search(toy_pipeline, embeds, **PLAIN, output_type="latent", num_frames=81, memory=memory)
    same = [torch.equal(a, b) for a, b in zip(default.frames.split(3, 2), other.frames.split(3, 2), strict=True)]
    # Without rewards everything is discarded, as by StaticSink; the others differ once the window has rolled.
    expected = [True] * 7 if memory == StaticSink() else [True] * 4 + [False] * 3
    assert same == expected


def test_appended_sinks_are_in_the_trace(toy_pipeline, embeds):
    memory = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=-1e9, max_sink_frames=9)
    trace = search(toy_pipeline, embeds, num_frames=117, memory=memory).trace
    assert trace.chunks[-1].sinks == [[0, 3, 6]] * 2
    done = [[(e.chunk, e.route, e.done) for e in chunk.evicted if e.beam == 0] for chunk in trace.chunks]
    appended, averaged = [(1, "append", "append")], [(3, "append", "ema")]
    assert done[2] == [] and done[3] == appended and done[5] == averaged
    assert done[-1] == []


@pytest.mark.parametrize("memory, accepted", [(StaticSink(positions="relative"), True), (StaticSink(), False)])
def test_400_chunks_run_with_relative_positions_and_are_refused_with_absolute_ones(
    toy_pipeline, embeds, memory, accepted
):
    arguments = {**PLAIN, "num_frames": 4 * 1199 + 1, "output_type": "latent", "memory": memory}
    if not accepted:
        with pytest.raises(ValueError, match='1200 latent frames.*1024.*4089 frames.*positions="relative"'):
            search(toy_pipeline, embeds, **arguments)
        return
    output = search(toy_pipeline, embeds, **arguments)
    assert output.frames.shape == (1, 4, 1200, 2, 2) and torch.isfinite(output.frames).all()


def test_fewer_steps_and_levels_of_ones_own(toy_pipeline, embeds):
    two = search(toy_pipeline, embeds, num_inference_steps=2).trace
    assert two.chunks[0].work.forwards == 8 and toy_pipeline.num_timesteps == 2
    levels = search(toy_pipeline, embeds, sigmas=[1.0, 0.25]).trace.config["levels"]
    assert levels == pytest.approx([1.0, 1.25 / 2.0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_models_make_videos(embeds, dtype):
    from conftest import toy_transformer, toy_vae

    from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline

    models = (toy_transformer().to(dtype), toy_vae(z_dim=4).to(dtype))
    pipe = StreamT1Pipeline(None, None, *models, FewStepFlowMatchScheduler(), default_height=16, default_width=16)
    pipe.set_progress_bar_config(disable=True)
    memory = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=1e9)  # averages every chunk
    output = search(pipe, embeds, memory=memory, num_frames=81)
    assert np.isfinite(output.frames).all() and output.trace.chunks[-2].evicted
