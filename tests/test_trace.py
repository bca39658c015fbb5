"""The record of a search survives a file."""

import json

import numpy as np
import pytest
import torch
from conftest import brightness, contrast

from stream_t1.rewards import RewardOutput
from stream_t1.search import RewardRoutedSink, SearchTrace
from stream_t1.search.trace import CandidateTrace, ChunkTrace, ChunkWork, FinalTrace


@pytest.fixture
def trace(toy_pipeline, embeds):
    memory = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=-1e9)
    return toy_pipeline(
        prompt_embeds=embeds,
        num_frames=57,
        generator=torch.Generator().manual_seed(11),
        image_reward=lambda f, p, s: RewardOutput(brightness(f, p, s), {"red": f[:, :, 0].mean(dim=(1, 2, 3))}),
        video_reward=contrast,
        memory=memory,
        candidate_seeds="reference",
        reward_prompt="a red circle",
    ).trace


def test_a_trace_is_the_same_after_saving_and_loading(trace, tmp_path):
    trace.save(tmp_path / "trace.json")
    assert SearchTrace.load(tmp_path / "trace.json") == trace


def test_a_trace_says_what_was_asked(trace):
    assert trace.seed == 11 and trace.fps == 16.0 and trace.version.count(".") == 2
    wanted = {
        "prompt": None,
        "reward_prompt": "a red circle",
        "num_beams": 2,
        "height": 16,
        "num_frames": 57,
        "noise_correlation": -0.1,
    }
    assert wanted.items() <= trace.config.items()
    assert trace.config["memory"]["policy"] == "RewardRoutedSink" and trace.config["memory"]["ema_decay"] == 0.999


def test_a_trace_holds_every_candidate_with_its_parts(trace):
    assert [len(chunk.candidates) for chunk in trace.chunks] == [4] * 5
    candidate = trace.chunks[2].candidates[3]
    assert candidate.parent == 1 and 0 < candidate.parts["image.red"] < 1
    assert candidate.score == pytest.approx(0.4 * candidate.short + 0.6 * candidate.long)
    assert [chunk.candidates[0].route for chunk in trace.chunks] == [None, *["append"] * 4]


def test_a_trace_is_plain_json(trace, tmp_path):
    trace.save(tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text())
    assert content["chunks"][3]["evicted"][0] == {"beam": 0, "chunk": 1, "route": "append", "done": "append"}


def test_numbers_of_numpy_are_saved_as_plain_ones(toy_pipeline, embeds, tmp_path):
    numbers = {"num_beams": np.int64(2), "noise_correlation": np.float32(-0.5), "num_frames": np.int64(9)}
    trace = toy_pipeline(prompt_embeds=embeds, reward_prompt="a dog", output_type="latent", **numbers).trace
    trace.save(tmp_path / "trace.json")
    config = SearchTrace.load(tmp_path / "trace.json").config
    assert (config["num_beams"], config["noise_correlation"], config["num_frames"]) == (2, -0.5, 9)
    assert config["prompt"] is None and config["reward_prompt"] == "a dog"


def test_the_best_path_of_an_old_trace_follows_parents_by_the_rank_of_their_scores():
    def chunk(*candidates):
        traces = [CandidateTrace(parent, seed, score, score, score, True, None) for parent, seed, score in candidates]
        return ChunkTrace(0.0, traces, [], [[]], ChunkWork())

    first, second = chunk((0, 10, 0.1), (0, 11, 0.9)), chunk((0, 20, 0.5), (1, 21, 0.7))  # ranks: 11, 10; 21, 20
    trace = SearchTrace({}, 0, 16.0, "", [first, second], FinalTrace("video_reward", [1, 0], [1.0, 0.0]))
    assert [candidate.seed for candidate in trace.best_path()] == [11, 20]


def test_the_best_path_is_of_the_video_that_is_returned_also_when_a_callback_reorders(toy_pipeline, embeds):
    made = []

    def turn_around(pipe, chunk_index, state):
        made.append({candidate.seed: candidate.latents for candidate in state["candidates"]})
        return {"kept": state["kept"][::-1]}

    output = toy_pipeline(
        prompt_embeds=embeds,
        num_frames=45,
        output_type="latent",
        image_reward=brightness,
        video_reward=contrast,
        callback_on_chunk_end=turn_around,
    )
    path = output.trace.best_path()
    assert torch.equal(
        torch.cat([chunk[c.seed] for chunk, c in zip(made, path, strict=True)], dim=1), output.frames[0]
    )


def test_an_unfinished_search_has_no_best_path():
    with pytest.raises(ValueError, match="not finished"):
        SearchTrace({}, 0, 16.0, "", []).best_path()
