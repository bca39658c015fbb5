"""Monitors are recorded and never searched by; thumbnails show every candidate."""

import base64
import io

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import brightness, contrast, nothing_done

from stream_t1.rewards import Reward, RewardOutput
from stream_t1.search import SearchTrace

REWARDS = {"image_reward": brightness, "video_reward": contrast}


def search(pipe, embeds, **arguments):
    generator = torch.Generator().manual_seed(3)
    return pipe(prompt_embeds=embeds, num_frames=57, output_type="pt", generator=generator, **REWARDS | arguments)


def with_parts(frames, prompt, fps):
    return RewardOutput(
        brightness(frames, prompt, fps), {"frames": torch.full((len(frames),), float(frames.shape[1]))}
    )


def test_monitors_change_nothing_of_the_search(toy_pipeline, embeds):
    plain = search(toy_pipeline, embeds)
    watched = search(toy_pipeline, embeds, monitors={"bright": brightness, "other": with_parts})
    assert torch.equal(plain.frames, watched.frames)
    assert [chunk.candidates for chunk in plain.trace.chunks] == [chunk.candidates for chunk in watched.trace.chunks]
    assert [c.work.frames_scored for c in plain.trace.chunks] == [c.work.frames_scored for c in watched.trace.chunks]


def test_monitors_see_the_window_of_the_kept_candidates_in_their_order(toy_pipeline, embeds, tmp_path):
    """The video reward saw the same clips when all candidates were scored."""
    trace = search(toy_pipeline, embeds, reward_window=2, monitors={"long": contrast, "parts": with_parts}).trace
    for chunk, watched in zip(trace.chunks, trace.monitors["long"], strict=True):
        kept = sorted((c for c in chunk.candidates if c.kept), key=lambda c: -c.score)
        assert watched == pytest.approx([candidate.long for candidate in kept], rel=1e-6)
    assert trace.monitors["parts.frames"] == [[9.0, 9.0], [21.0, 21.0], [24.0, 24.0], [24.0, 24.0], [24.0, 24.0]]
    trace.save(tmp_path / "trace.json")
    assert SearchTrace.load(tmp_path / "trace.json") == trace


def test_a_monitor_without_rewards_sees_the_plain_stream(toy_pipeline, embeds):
    plain = {"num_beams": 1, "num_candidates": 1, "image_reward": False, "video_reward": False}
    trace = search(toy_pipeline, embeds, monitors={"bright": brightness}, **plain).trace
    assert [len(values) for values in trace.monitors["bright"]] == [1] * 5
    assert all(chunk.work.seconds["monitor"] > 0 for chunk in trace.chunks)


def test_a_monitor_that_fails_loses_no_candidate(toy_pipeline, embeds, caplog):
    def fails_at_length(frames, prompt, fps):
        if frames.shape[1] == 21:
            raise RuntimeError("out of paper")
        return RewardOutput(brightness(frames, prompt, fps), {"part": brightness(frames, prompt, fps)})

    trace = search(toy_pipeline, embeds, monitors={"weak": fails_at_length}).trace
    assert trace.monitors["weak"][1] == [None, None] and None not in trace.monitors["weak"][2]
    assert [len(values) for values in trace.monitors["weak.part"]] == [2, 0, 2, 2, 2]
    assert "Chunk 1: beam 0 is not monitored, `monitors['weak']` raised RuntimeError: out of paper" in caplog.text
    assert all(candidate.lost is None for chunk in trace.chunks for candidate in chunk.candidates)


def test_a_monitor_of_the_wrong_form_ends_no_run(toy_pipeline, embeds, caplog):
    trace = search(toy_pipeline, embeds, monitors={"list": lambda frames, prompt, fps: [1.0] * len(frames)}).trace
    assert trace.monitors["list"] == [[None, None]] * 5 and "must give a float tensor" in caplog.text


@pytest.mark.parametrize(
    "monitors, error, message",
    [
        ([brightness], TypeError, "`monitors` is .*must be a dict of names to rewards"),
        ({"bright": 3}, TypeError, r"`monitors\['bright'\]` is a int.*callable"),
        ({"words": Reward()}, ValueError, r"`monitors\['words'\]` reads the prompt"),
    ],
)
def test_what_is_no_monitor_is_refused(toy_pipeline, embeds, monitors, error, message):
    with nothing_done(toy_pipeline), pytest.raises(error, match=message):
        search(toy_pipeline, embeds, monitors=monitors)


def pictures(trace: SearchTrace) -> list[list[PIL.Image.Image]]:
    read = lambda url: PIL.Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/jpeg;base64,"))))  # noqa: E731
    return [[read(candidate.thumbnail) for candidate in chunk.candidates] for chunk in trace.chunks]


def test_thumbnails_show_the_middle_frame_of_every_candidate(toy_pipeline, embeds):
    seen = []
    record = lambda pipe, index, state: seen.append([c.frames[len(c.frames) // 2] for c in state["candidates"]])  # noqa: E731
    trace = search(toy_pipeline, embeds, trace_thumbnails=True, callback_on_chunk_end=record).trace
    shown = pictures(trace)
    assert [len(chunk) for chunk in shown] == [4] * 5
    for index, picture in enumerate(shown[3]):
        array = torch.from_numpy(np.asarray(picture, dtype=np.float32)).permute(2, 0, 1)
        distances = [(array - frame).abs().mean().item() for frame in seen[3]]
        assert picture.size == (16, 16) and min(distances) == distances[index]


def test_a_candidate_that_a_reward_loses_is_shown_too(toy_pipeline, embeds):
    nan_first = lambda frames, prompt, fps: torch.tensor([float("nan")] + [1.0] * (len(frames) - 1))  # noqa: E731
    trace = search(toy_pipeline, embeds, image_reward=nan_first, trace_thumbnails=True).trace
    assert trace.chunks[0].candidates[0].lost and len(pictures(trace)[0]) == 4


def test_thumbnails_are_small_whatever_the_video_is(toy_pipeline, embeds):
    plain = {"num_beams": 1, "num_candidates": 1, "image_reward": False, "video_reward": False}
    trace = toy_pipeline(
        prompt_embeds=embeds, num_frames=9, height=64, width=208, trace_thumbnails=True, output_type="latent", **plain
    ).trace
    assert pictures(trace)[0][0].size == (96, 30)


def test_without_rewards_thumbnails_still_show_every_candidate(toy_pipeline, embeds):
    nobody = {"image_reward": False, "video_reward": False, "num_beams": 2, "num_candidates": 2}
    chosen = {"callback_on_chunk_end": lambda *_: {"kept": [1, 3]}}
    trace = search(toy_pipeline, embeds, trace_thumbnails=True, **nobody, **chosen).trace
    assert [len(chunk) for chunk in pictures(trace)] == [4] * 5
    assert search(toy_pipeline, embeds).trace.chunks[0].candidates[0].thumbnail is None
