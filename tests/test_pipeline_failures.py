"""Failures during a run cost a candidate, not the run; what is finished is kept."""

import numpy as np
import pytest
import torch
from conftest import brightness, contrast

from stream_t1 import NoCandidateLeftError

REWARDS = {"image_reward": brightness, "video_reward": contrast}


def search(pipe, embeds, **arguments):
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt_embeds=embeds, **{"num_frames": 33, "generator": generator, **REWARDS, **arguments})


@pytest.mark.parametrize(
    "output, message",
    [
        (lambda b: torch.zeros(b, 1), r"shape \(4, 1\).*shape \(4,\)"),
        (lambda b: torch.zeros(b + 1), r"shape \(5,\)"),
        (lambda b: torch.zeros(b, dtype=torch.int64), "int64.*float tensor"),
        (lambda b: [0.0] * b, "a list.*float tensor"),
        (lambda b: None, "NoneType"),
    ],
)
def test_a_reward_of_the_wrong_shape_or_type_raises_at_the_first_scoring(toy_pipeline, embeds, output, message):
    with pytest.raises(TypeError, match=f"`image_reward` gave .*{message}"):
        search(toy_pipeline, embeds, image_reward=lambda frames, prompt, fps: output(len(frames)))


def failing_for_the_darkest(frames, prompt, fps):
    """Raises for any batch that holds the darkest clip of the first call."""
    means = frames.mean(dim=(1, 2, 3, 4))
    failing_for_the_darkest.limit = min(failing_for_the_darkest.limit, float(means.min()) + 1e-6)
    if (means <= failing_for_the_darkest.limit).any():
        raise RuntimeError("too dark")
    return means


def test_a_reward_that_raises_loses_that_candidate_with_a_warning(toy_pipeline, embeds, caplog):
    failing_for_the_darkest.limit = 1.0
    trace = search(toy_pipeline, embeds, image_reward=failing_for_the_darkest, num_frames=9).trace
    lost = [index for index, candidate in enumerate(trace.chunks[0].candidates) if candidate.lost]
    assert len(lost) == 1
    assert f"Chunk 0: candidate {lost[0]} is lost, `image_reward` raised RuntimeError: too dark" in caplog.text
    candidate = trace.chunks[0].candidates[lost[0]]
    assert (candidate.score, candidate.kept, candidate.short) == (None, False, None)


def test_a_non_finite_score_loses_that_candidate(toy_pipeline, embeds, caplog):
    def reward(frames, prompt, fps):
        return torch.tensor([float("nan"), 0.0, float("inf"), 1.0])[: len(frames)]

    trace = search(toy_pipeline, embeds, video_reward=reward, num_frames=9).trace
    assert [candidate.lost is None for candidate in trace.chunks[0].candidates] == [False, True, False, True]
    assert "candidate 0 is lost, `video_reward` scored nan" in caplog.text


def test_non_finite_latents_lose_that_candidate(toy_pipeline, embeds, caplog):
    def spoil(pipe, step, timestep, tensors):
        latents = tensors["latents"].clone()
        latents[1] = float("nan")
        return {"latents": latents}

    seen = []

    def reward(frames, prompt, fps):
        seen.append(len(frames))
        return brightness(frames, prompt, fps)

    arguments = {"callback_on_step_end": spoil, "image_reward": reward, "num_frames": 9}
    trace = search(toy_pipeline, embeds, **arguments).trace
    assert trace.chunks[0].candidates[1].lost == "its latents are not finite"
    assert seen == [3]  # nobody scores what is lost
    assert trace.chunks[0].work.latents_decoded == 9


def test_beams_refill_at_the_next_chunk(toy_pipeline, embeds):
    calls = []

    def reward(frames, prompt, fps):
        calls.append(len(frames))
        scores = brightness(frames, prompt, fps)
        if len(calls) == 1:
            scores[1:] = float("nan")
        return scores

    trace = search(toy_pipeline, embeds, image_reward=reward).trace
    assert [sum(candidate.kept for candidate in chunk.candidates) for chunk in trace.chunks] == [1, 2, 2]
    assert [len(chunk.candidates) for chunk in trace.chunks] == [4, 4, 4]
    assert [candidate.parent for candidate in trace.chunks[1].candidates] == [0, 0, 0, 0]


def test_when_all_are_lost_the_error_carries_what_was_finished(toy_pipeline, embeds):
    calls = []

    def reward(frames, prompt, fps):
        calls.append(1)
        if len(calls) > 2:
            raise RuntimeError("out of order")
        return brightness(frames, prompt, fps)

    with pytest.raises(
        NoCandidateLeftError, match="No candidate of chunk 2 is left; the first of 4.*out of order"
    ) as caught:
        search(toy_pipeline, embeds, image_reward=reward)
    assert caught.value.frames.shape == (1, 21, 16, 16, 3)
    assert len(caught.value.trace.chunks) == 2


def test_a_failing_final_selection_keeps_all_beams(toy_pipeline, embeds, caplog):
    def reward(frames, prompt, fps):
        scores = contrast(frames, prompt, fps)
        if frames.shape[1] == 33 and len(frames) == 2:
            scores[0] = float("nan")
        return scores

    trace = search(toy_pipeline, embeds, video_reward=reward).trace
    assert trace.final.order == [1, 0] and trace.final.scores[1] is None
    assert "beam 0 comes last" in caplog.text


def interrupt_at(chunk_index, how):
    def callback(pipe, index, state):
        if index == chunk_index:
            how(pipe)

    return callback


def set_interrupt(pipe):
    pipe._interrupt = True


def press_ctrl_c(pipe):
    raise KeyboardInterrupt


def test_interrupt_returns_the_finished_chunks_and_leaves_the_pipeline_usable(toy_pipeline, embeds):
    whole = search(toy_pipeline, embeds)
    part = search(toy_pipeline, embeds, callback_on_chunk_end=interrupt_at(1, set_interrupt), num_videos_per_prompt=1)
    assert part.frames.shape == (1, 21, 16, 16, 3) and len(part.trace.chunks) == 2
    assert np.array_equal(search(toy_pipeline, embeds).frames, whole.frames)


def test_ctrl_c_returns_the_finished_chunks(toy_pipeline, embeds, caplog):
    part = search(toy_pipeline, embeds, callback_on_chunk_end=interrupt_at(2, press_ctrl_c))
    assert part.frames.shape == (1, 21, 16, 16, 3)
    assert "Interrupted: the 2 finished chunks are returned" in caplog.text
    assert part.trace.final.selection == "score"  # no more work was done


def test_ctrl_c_before_the_first_chunk_is_raised(toy_pipeline, embeds):
    with pytest.raises(KeyboardInterrupt):
        search(toy_pipeline, embeds, callback_on_chunk_end=interrupt_at(0, press_ctrl_c))
    assert search(toy_pipeline, embeds).frames.shape == (1, 33, 16, 16, 3)


def test_interrupt_within_a_chunk_drops_that_chunk(toy_pipeline, embeds):
    steps = []

    def callback(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = len(steps) == 7  # chunk 0 has 4 steps; this is in chunk 1
        return tensors

    part = search(toy_pipeline, embeds, callback_on_step_end=callback)
    assert len(part.trace.chunks) == 1 and len(steps) == 7


def test_interrupted_prompts_keep_their_own_lengths(toy_pipeline, embeds):
    finished = []

    def callback(pipe, index, state):
        finished.append(index)
        pipe._interrupt = len(finished) == 5  # the second prompt's second chunk

    output = search(toy_pipeline, torch.cat((embeds, embeds, embeds)), callback_on_chunk_end=callback)
    assert [video.shape[0] for video in output.frames] == [33, 21] and len(output.traces) == 2


def test_step_callbacks_see_and_replace_the_latents_of_a_batch(toy_pipeline, embeds):
    shapes = []

    def callback(pipe, step, timestep, tensors):
        shapes.append((step, float(timestep), tuple(tensors["latents"].shape)))
        if step == pipe.num_timesteps - 1:
            tensors["latents"] = torch.zeros_like(tensors["latents"])
        return tensors

    output = search(toy_pipeline, embeds, callback_on_step_end=callback, output_type="latent", num_frames=21)
    assert output.frames.abs().sum() == 0
    assert [step for step, _, _ in shapes] == [0, 1, 2, 3] * 3  # chunk 0 is one batch, chunk 1 one of each beam
    assert shapes[0] == (0, 1000.0, (4, 4, 3, 2, 2)) and shapes[-1] == (3, 625.0, (2, 4, 3, 2, 2))


def test_a_callback_may_change_the_prompt(toy_pipeline, embeds):
    plain = {"image_reward": False, "video_reward": False, "num_beams": 1, "num_candidates": 1}
    plain |= {"output_type": "latent", "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    calls = []

    def callback(pipe, step, timestep, tensors):
        calls.append(step)
        return {"prompt_embeds": embeds + 1} if len(calls) == 4 else {}

    changed = search(toy_pipeline, embeds, callback_on_step_end=callback, **plain).frames
    before, after = (search(toy_pipeline, e, **plain).frames for e in (embeds, embeds + 1))
    assert torch.equal(changed[:, :, :3], before[:, :, :3])
    assert not torch.allclose(changed[:, :, 3:6], before[:, :, 3:6], atol=1e-3)
    assert not torch.allclose(changed[:, :, 3:6], after[:, :, 3:6], atol=1e-3)


@pytest.mark.parametrize("kept", [[], [0, 0], [4], [0, 1, 2]])
def test_an_impossible_choice_of_a_callback_is_refused(toy_pipeline, embeds, kept):
    with pytest.raises(ValueError, match="`callback_on_chunk_end` returned `kept`.*1 to 2 different"):
        search(toy_pipeline, embeds, callback_on_chunk_end=lambda *_: {"kept": kept})


def test_a_callbacks_choice_is_kept_in_its_order(toy_pipeline, embeds):
    trace = search(toy_pipeline, embeds, callback_on_chunk_end=lambda *_: {"kept": [3]}, num_frames=21).trace
    assert [[c.kept for c in chunk.candidates] for chunk in trace.chunks] == [[False] * 3 + [True]] * 2


def test_progress_bars_can_be_configured(toy_pipeline, embeds, capsys):
    search(toy_pipeline, embeds)
    assert capsys.readouterr().err == ""
    toy_pipeline.set_progress_bar_config(desc="frames of a dream")
    search(toy_pipeline, embeds)
    assert "frames of a dream" in capsys.readouterr().err


def test_non_finite_pixels_lose_that_candidate(toy_pipeline, embeds, caplog):
    def spoil(module, args, output):
        return output.index_fill(0, torch.tensor([2]), float("nan")) if len(output) == 4 else output

    handle = toy_pipeline.vae.decoder.register_forward_hook(spoil)
    trace = search(toy_pipeline, embeds, num_frames=21).trace
    handle.remove()
    assert trace.chunks[0].candidates[2].lost == "its frames are not finite"


def test_non_finite_pixels_without_rewards_lose_the_beam(toy_pipeline, embeds):
    handle = toy_pipeline.vae.decoder.register_forward_hook(lambda module, args, output: output * float("nan"))
    with pytest.raises(NoCandidateLeftError, match="frames are not finite"):
        search(toy_pipeline, embeds, image_reward=False, video_reward=False)
    handle.remove()


def test_fewer_videos_than_asked_are_reported(toy_pipeline, embeds, caplog):
    def reward(frames, prompt, fps):
        return torch.tensor([1.0] + [float("nan")] * (len(frames) - 1))

    output = search(toy_pipeline, embeds, video_reward=reward, num_videos_per_prompt=2, num_frames=9)
    assert output.frames.shape[0] == 1 and "1 of 2 videos are left" in caplog.text


def test_ctrl_c_in_a_later_prompt_keeps_the_earlier_videos(toy_pipeline, embeds):
    calls = []

    def callback(pipe, index, state):
        calls.append(index)
        if len(calls) == 4:
            raise KeyboardInterrupt

    output = search(toy_pipeline, torch.cat((embeds, embeds)), callback_on_chunk_end=callback)
    assert output.frames.shape == (1, 33, 16, 16, 3) and output.trace.final.selection == "video_reward"


def test_ctrl_c_in_the_final_selection_keeps_the_video(toy_pipeline, embeds):
    def reward(frames, prompt, fps):
        if len(frames) == 2:
            raise KeyboardInterrupt
        return contrast(frames, prompt, fps)

    output = search(toy_pipeline, embeds, video_reward=reward)
    assert output.frames.shape == (1, 33, 16, 16, 3) and output.trace.final.selection == "score"


def test_a_loss_in_a_later_prompt_carries_the_earlier_videos(toy_pipeline, embeds):
    calls = []

    def reward(frames, prompt, fps):
        calls.append(1)
        return brightness(frames, prompt, fps) + (float("nan") if len(calls) == 4 else 0.0)

    with pytest.raises(NoCandidateLeftError) as caught:
        search(toy_pipeline, torch.cat((embeds, embeds)), image_reward=reward)
    assert caught.value.frames.shape == (1, 33, 16, 16, 3) and caught.value.trace.chunks == []


PLAIN = {"image_reward": False, "video_reward": False, "num_beams": 1, "num_candidates": 1, "output_type": "latent"}


def test_a_prompt_changed_within_a_chunk_acts_on_its_next_step(toy_pipeline, embeds):
    def callback(pipe, step, timestep, tensors):
        return {"prompt_embeds": (embeds + 1).double()} if step == 0 else {}

    request = {**PLAIN, "num_frames": 9, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    changed = search(toy_pipeline, embeds, callback_on_step_end=callback, **request).frames
    assert not torch.allclose(changed, search(toy_pipeline, embeds, **request).frames, atol=1e-3)


def test_a_prompt_changed_in_place_is_noticed_and_leaves_the_callers_alone(toy_pipeline, embeds):
    before = embeds.clone()

    def callback(pipe, step, timestep, tensors):
        tensors["prompt_embeds"] += 1.0
        return tensors

    request = {**PLAIN, "num_frames": 9, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
    changed = search(toy_pipeline, embeds, callback_on_step_end=callback, **request).frames
    assert torch.equal(embeds, before)
    assert not torch.allclose(changed, search(toy_pipeline, embeds, **request).frames, atol=1e-3)


def test_official_callbacks_bring_their_own_tensor_inputs(toy_pipeline, embeds):
    from diffusers.callbacks import PipelineCallback

    class Watch(PipelineCallback):
        tensor_inputs = ["prompt_embeds"]
        seen = []

        def callback_fn(self, pipeline, step_index, timestep, callback_kwargs):
            self.seen.append(sorted(callback_kwargs))
            return callback_kwargs

    search(toy_pipeline, embeds, callback_on_step_end=Watch(), num_frames=9)
    assert Watch.seen == [["prompt_embeds"]] * 4


def test_a_callback_may_answer_nothing(toy_pipeline, embeds):
    expected = search(toy_pipeline, embeds).frames
    quiet = {"callback_on_chunk_end": lambda *_: {"kept": None}, "callback_on_step_end": lambda *_: None}
    assert np.array_equal(search(toy_pipeline, embeds, **quiet).frames, expected)


def test_a_callback_must_keep_the_shape_of_the_latents(toy_pipeline, embeds):
    def cut(pipe, step, timestep, tensors):
        return {"latents": tensors["latents"][:1]}

    with pytest.raises(ValueError, match=r"`callback_on_step_end` gave, .*\(1, 4, 3, 2, 2\); they must keep \(4, "):
        search(toy_pipeline, embeds, num_frames=9, callback_on_step_end=cut)
