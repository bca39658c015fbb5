"""`save_to` and `pipe.resume`: a run that was stopped goes on, bit for bit."""

import itertools
import json

import pytest
import torch
from conftest import brightness, contrast
from safetensors import safe_open
from safetensors.torch import load_file

from stream_t1.search import (
    Backtracking,
    BeamSearch,
    BestOfN,
    EarlyPruning,
    EarlyStop,
    EMASink,
    EvolutionSearch,
    ParticleSearch,
    RewardRoutedSink,
    SearchTrace,
    SlidingWindow,
    StaticSink,
)
from stream_t1.search.saved_run import TAG

REWARDS = {"image_reward": brightness, "video_reward": contrast}
APPENDING = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=float("-inf"))


class Stopped(BaseException):
    """Ends a call from inside, as Ctrl-C does not."""


def stopping(reward, after):
    """A reward that stops the run at its call number `after`."""
    calls = itertools.count(1)

    def stop(frames, prompt, fps):
        if next(calls) > after:
            raise Stopped
        return reward(frames, prompt, fps)

    stop.__name__ = reward.__name__
    return stop


def asked(**arguments):
    given = {"num_frames": 45, "output_type": "pt", "generator": torch.Generator().manual_seed(3), **REWARDS}
    return given | arguments


@pytest.fixture
def pipe(toy_pipeline):
    """A window of one chunk between the sink and the current one, so that chunks leave early."""
    toy_pipeline.register_to_config(window_frames=9)
    return toy_pipeline


def without_seconds(trace):
    """A copy that equals those of other runs."""
    content = json.loads(json.dumps(trace.as_json()))
    for record in (*content["chunks"], *(attempt["record"] for attempt in content["given_up"])):
        record["work"]["seconds"] = {}
    return content


def file_content(path):
    """Tensors, and the header without seconds."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[TAG])
    for prompt in header["prompts"]:
        prompt["trace"] = without_seconds(SearchTrace.from_json(prompt["trace"]))
    return header, {name: tensor.numpy().tobytes() for name, tensor in load_file(path).items()}


def assert_same(one, other):
    assert torch.equal(torch.as_tensor(one.frames), torch.as_tensor(other.frames))
    assert [without_seconds(trace) for trace in one.traces] == [without_seconds(trace) for trace in other.traces]


def resumed_after(pipe, path, num_calls, given=REWARDS, **arguments):
    """The run, stopped at a call of the video reward, and gone on with."""
    stop = stopping(arguments.get("video_reward", contrast), num_calls)
    with pytest.raises(Stopped):
        pipe(save_to=path, **asked(**arguments | {"video_reward": stop}))
    return pipe.resume(path, **given)


SEARCHES = {
    "three beams": {"num_beams": 3, "num_candidates": 2},
    "three beams of one video each": {"num_beams": 3, "num_candidates": 3, "num_videos_per_prompt": 3},
    "particles": {"search": ParticleSearch(3, strength=200.0, threshold=1.0)},
    "particles that end": {"search": ParticleSearch(3, strength=50.0, potential="max", tempering=0.1)},
    "best of three": {"search": BestOfN(3)},
    "rounds": {"search": EarlyStop(BeamSearch(2, 2), patience=2, max_rounds=2)},
    "pruning": {"search": EarlyPruning(4, 2, 1, num_beams=2)},
    "evolution": {"search": EvolutionSearch(2, 4, 1, 0.3)},
    "budget": {"search": BeamSearch(budget=[(1, 4), (3, 2)])},
    "reference seeds": {"num_beams": 2, "candidate_seeds": "reference"},
    "max_lag": {"num_beams": 3, "max_lag": 1},
    "monitors": {"monitors": {"m": contrast}, "trace_thumbnails": True},
    "latent": {"output_type": "latent"},
    "normalised": {"score_normalization": "zscore", "num_inference_steps": 2, "reward_window": 2},
    "back": {"search": Backtracking(BeamSearch(2, 2), 10.0, depth=2, retries=2)},
    "sliding": {"memory": SlidingWindow(), "num_beams": 3},
    "static": {"memory": StaticSink(positions="relative"), "num_beams": 3},
    "averages": {"memory": EMASink(), "num_beams": 3},
    "appends": {"memory": APPENDING, "num_beams": 3},
}


CALLS = {"particles": 10, "particles that end": 10, "best of three": 10, "back": 7}  # else the fourth chunk's


@pytest.mark.parametrize("name", SEARCHES)
def test_a_run_that_was_stopped_goes_on_bit_for_bit(pipe, embeds, tmp_path, name):
    arguments = {"prompt_embeds": embeds, **SEARCHES[name]}
    given = REWARDS | ({"monitors": {"m": contrast}} if "monitors" in arguments else {})
    whole = pipe(save_to=tmp_path / "whole", **asked(**arguments))
    path = tmp_path / "stopped"
    assert_same(resumed_after(pipe, path, CALLS.get(name, 3), given, **arguments), whole)
    assert file_content(path) == file_content(tmp_path / "whole")
