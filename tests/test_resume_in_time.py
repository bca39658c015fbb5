"""Runs of changing prompts and given pasts, gone on with and made again."""

import pytest
import torch
from conftest import contrast
from test_resume import REWARDS, Stopped, asked, assert_same, file_content, resumed_after, stopping

from stream_t1 import PromptTimeline
from stream_t1.search import ParticleSearch, StaticSink

WORDS = PromptTimeline({0: "a red circle", 9: "a blue circle", 21: "a dog"})
EMBEDS = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))
PIXELS = torch.rand(9, 3, 16, 16, generator=torch.Generator().manual_seed(0))
RUNS = {
    "hard changes": {"prompt": WORDS, "num_beams": 3},
    "transitions": {"prompt": WORDS, "transition": 2, "recache": "all", "num_beams": 3},
    "flush": {"prompt": WORDS, "recache": "flush"},
    "a cut": {
        "prompt": PromptTimeline({0: "a dog", 21: "a cat"}, cuts=(21,)),
        "memory": StaticSink(positions="relative"),
    },
    "embeddings": {"prompt": PromptTimeline({0: EMBEDS, 9: EMBEDS + 1}), "num_beams": 3},
    "words for rewards": {"prompt": "a dog", "reward_prompt": WORDS},
    "particles": {"prompt": WORDS, "search": ParticleSearch(3, strength=200.0, threshold=1.0)},
    "a video": {"prompt": "a dog", "video": PIXELS, "num_beams": 3},
    "a picture": {"prompt": WORDS, "image": PIXELS[0]},
}
GIVEN = ("video", "image")  # to a replay again, and of prompts those with embeddings


@pytest.fixture
def pipe(reading_pipeline):
    reading_pipeline.register_to_config(window_frames=9)
    return reading_pipeline


@pytest.mark.parametrize("name", RUNS)
def test_a_run_that_was_stopped_goes_on_and_is_made_again(pipe, tmp_path, name):
    arguments = {"num_frames": 33, **RUNS[name]}
    whole = pipe(save_to=tmp_path / "whole", **asked(**arguments))
    assert_same(resumed_after(pipe, tmp_path / "run", 7 if name == "particles" else 2, **arguments), whole)
    assert file_content(tmp_path / "run") == file_content(tmp_path / "whole")
    inputs = {key: value for key, value in arguments.items() if key in GIVEN}
    if name == "embeddings":
        inputs["prompt"] = arguments["prompt"]
    again = pipe.replay(whole.trace, output_type="pt", **inputs)
    # One step of 8 bits, where several candidates were one batch.
    assert (again.frames - whole.frames).abs().max() < (1e-6 if name == "particles" else 1.01 / 255)


def test_a_prompt_that_changed_while_a_stream_ran_is_kept(pipe, tmp_path):
    def streamed(path, video_reward=contrast):
        arguments = asked(num_frames=33, num_beams=1, video_reward=video_reward)
        stream, frames = pipe.stream("a red circle", save_to=path, **arguments), []
        for chunk in stream:
            frames.append(chunk.frames)
            if len(frames) == 1:
                stream.change_prompt("a dog", transition=2)
        return torch.cat(frames), chunk.trace

    frames, trace = streamed(tmp_path / "whole")
    with pytest.raises(Stopped):
        streamed(tmp_path / "run", stopping(contrast, 2))
    resumed = pipe.resume(tmp_path / "run", **REWARDS)
    assert torch.equal(resumed.frames[0], frames)
    assert [chunk.prompt for chunk in resumed.trace.chunks] == ["a red circle", "a dog", "a dog"]
    again = pipe.replay(trace, output_type="pt")
    assert (again.frames[0] - frames).abs().max() < 1.01 / 255


def test_a_video_that_begins_with_what_was_given_can_be_searched_again_from_its_beginning(pipe, tmp_path):
    output = pipe("a dog", video=PIXELS, save_to=tmp_path / "run", **asked(num_frames=21))
    assert torch.equal(pipe.resume(tmp_path / "run", from_chunk=0, **REWARDS).frames, output.frames)


def test_what_a_video_began_with_must_be_given_to_a_replay(pipe):
    trace = pipe("a dog", image=PIXELS[0], **asked(num_frames=9)).trace
    with pytest.raises(ValueError, match="made with `image`, which a trace does not hold"):
        pipe.replay(trace)
