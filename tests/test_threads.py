"""Calls of one pipeline that run at once do not see each other."""

import threading

import pytest
import torch
from conftest import brightness, contrast

REWARDS = {"image_reward": brightness, "video_reward": contrast}


def request(num_steps, num_frames=21):
    return {
        "num_frames": num_frames,
        "num_inference_steps": num_steps,
        "output_type": "pt",
        "num_beams": 1,
        "attention_kwargs": {"scale": 1.0 + num_steps},
        "generator": torch.Generator().manual_seed(num_steps),
        **REWARDS,
    }


def test_sixteen_threads_with_1_to_4_steps_make_each_their_own_video(toy_pipeline, embeds):
    torch.set_num_threads(1)
    lengths = [21, *[9] * 3] * 3  # of twelve rounds
    alone = {
        (n, length): toy_pipeline(prompt_embeds=embeds, **request(n, length))
        for n in (1, 2, 3, 4)
        for length in (9, 21)
    }
    given = ["prompt_embeds", "callback_on_step_end"]  # the embeddings of all calls, the callback of these
    problems, finished, start = [], [], threading.Barrier(16)

    def work(index):
        num_steps, seen = index % 4 + 1, set()

        def look(pipe, step, timestep, tensors):
            seen.add(
                (pipe.num_timesteps, float(pipe.current_timestep) == float(timestep), pipe.attention_kwargs["scale"])
            )

        start.wait()
        for length in lengths:
            expected = alone[num_steps, length]
            try:
                output = toy_pipeline(prompt_embeds=embeds, callback_on_step_end=look, **request(num_steps, length))
            except Exception as error:  # threads swallow what they raise
                problems.append(f"a call of {num_steps} steps raised {error!r}")
                return
            if not torch.equal(output.frames, expected.frames):
                problems.append(f"a video of {num_steps} steps is another")
            if output.trace.config != {**expected.trace.config, "given_inputs": given}:
                problems.append(f"a trace of {num_steps} steps is another")
            finished.append(num_steps)
        if seen != {(num_steps, True, 1.0 + num_steps)}:
            problems.append(f"a callback of {num_steps} steps was told {seen}")

    threads = [threading.Thread(target=work, args=(index,)) for index in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert problems == [] and len(finished) == 16 * 12


def test_streams_side_by_side_and_an_estimate_between_do_not_see_each_other(toy_pipeline, embeds):
    told = []

    def look(pipe, step, timestep, tensors):
        told.append((pipe.num_timesteps, float(pipe.current_timestep) == float(timestep)))

    alone = [list(toy_pipeline.stream(prompt_embeds=embeds, **request(n))) for n in (3, 2)]
    streams = [toy_pipeline.stream(prompt_embeds=embeds, callback_on_step_end=look, **request(n)) for n in (3, 2)]
    for expected in zip(*alone, strict=True):
        for stream, num_steps, chunk in zip(streams, (3, 2), expected, strict=True):
            told.clear()
            assert torch.equal(next(stream).frames, chunk.frames)
            assert told == [(num_steps, True)] * num_steps  # one chunk of one beam
            toy_pipeline.estimate(num_inference_steps=1, **REWARDS)


def test_an_estimate_changes_nothing_of_the_pipeline_or_its_scheduler(toy_pipeline):
    before = {**vars(toy_pipeline)}, {**vars(toy_pipeline.scheduler)}, dict(toy_pipeline.config)
    toy_pipeline.estimate(num_inference_steps=2, image_reward="org/of-a-reward-that-is-nowhere")
    after = {**vars(toy_pipeline)}, {**vars(toy_pipeline.scheduler)}, dict(toy_pipeline.config)
    for one, other in zip(before, after, strict=True):
        assert one.keys() == other.keys() and all(one[name] is other[name] for name in one)


def test_between_calls_there_is_no_timestep(toy_pipeline, embeds):
    toy_pipeline(prompt_embeds=embeds, **request(2))
    assert toy_pipeline.current_timestep is None and toy_pipeline.num_timesteps == 2
    assert toy_pipeline.attention_kwargs == {"scale": 3.0}


def test_a_call_leaves_the_scheduler_as_it_is(toy_pipeline, embeds):
    scheduler = toy_pipeline.scheduler
    before = scheduler.levels, scheduler.timesteps
    toy_pipeline(prompt_embeds=embeds, **request(1))
    assert (scheduler.levels, scheduler.timesteps) == before and len(scheduler.levels) == 4


def test_another_pipelines_call_does_not_show(toy_pipeline, toy_models, embeds):
    from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline

    toy_pipeline(prompt_embeds=embeds, **request(2))
    other = StreamT1Pipeline(None, None, *toy_models, FewStepFlowMatchScheduler())
    assert other.num_timesteps is None and other.attention_kwargs is None


@pytest.fixture(autouse=True)
def _threads_as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
