"""The record of a search survives a file."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import brightness, contrast

import stream_t1
from stream_t1.identity import model_identity
from stream_t1.models.fingerprint import fingerprint
from stream_t1.rewards import ChunkSeamReward, RewardOutput, WeightedReward
from stream_t1.search import BeamSearch, BestOfN, EarlyStop, RewardRoutedSink, SearchTrace
from stream_t1.search.trace import CandidateTrace, ChunkTrace, ChunkWork, EvictionTrace, FinalTrace, GivenUpTrace


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


PAGE = (Path(stream_t1.__file__).parent / "docs/trace.md").read_text(encoding="utf-8")


def described(heading):
    """The first column of the table under a heading of the page."""
    section = PAGE.split(f"\n## `{heading}`\n")[1].split("\n## ")[0]
    return re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)


RECORDS = (SearchTrace, ChunkTrace, CandidateTrace, EvictionTrace, ChunkWork, GivenUpTrace, FinalTrace)


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
def test_the_page_describes_every_field_in_order(record):
    assert described(record.__name__) == [field.name for field in dataclasses.fields(record)]


@pytest.mark.parametrize("name", ["config", "made_with"])
def test_the_page_describes_every_key(trace, name):
    assert described(name) == list(getattr(trace, name))


def test_a_trace_says_what_made_it(trace, toy_pipeline):
    made = trace.made_with
    assert trace.call_seed == 11 and trace.seeds == [trace.seed]
    assert made["dtype"] == "float32" and made["device"] == "cpu" and made["versions"]["torch"] == torch.__version__
    assert made["model"]["weights"]["transformer"] == fingerprint(toy_pipeline.transformer)
    assert made["rewards"]["video_reward"]["name"] == "contrast"


def test_a_trace_names_every_base_and_the_settings_of_rewards(toy_pipeline, embeds):
    reward = WeightedReward([ChunkSeamReward(frames_per_chunk=4), brightness], [0.25, 0.75])
    arguments = {"image_reward": reward, "search": BestOfN(3), "num_frames": 9, "reward_prompt": ""}
    trace = toy_pipeline(prompt_embeds=embeds, generator=torch.Generator().manual_seed(5), **arguments).trace
    bases = torch.randint(2**32, (3,), generator=torch.Generator().manual_seed(5)).tolist()
    assert trace.call_seed == 5 and trace.seeds == bases and trace.seed == bases[0]
    told = trace.made_with["rewards"]["image_reward"]
    assert told["name"] == "WeightedReward" and told["settings"]["weights"] == [0.25, 0.75]
    assert [each["name"] for each in told["rewards"]] == ["ChunkSeamReward", "brightness"]
    assert told["rewards"][0]["settings"]["frames_per_chunk"] == 4


def test_a_model_is_named_without_a_path_of_this_machine(toy_pipeline, tmp_path):
    folder = tmp_path / "snapshots" / ("a" * 40)
    folder.mkdir(parents=True)
    toy_pipeline.register_to_config(_name_or_path=str(folder))
    told = model_identity(toy_pipeline)
    assert (told["name"], told["revision"]) == ("a" * 40, "a" * 40) and str(tmp_path) not in json.dumps(told)


def test_an_older_trace_loads(trace, tmp_path):
    content = json.loads(json.dumps(trace.as_json()))

    def old(record, made):
        defaults = {f.name for f in dataclasses.fields(record) if f.name in made and _has_default(f)}
        return {name: value for name, value in made.items() if name not in defaults}

    content["chunks"] = [
        old(ChunkTrace, chunk | {"candidates": [old(CandidateTrace, each) for each in chunk["candidates"]]})
        for chunk in content["chunks"]
    ]
    final = content["final"]
    (tmp_path / "old.json").write_text(json.dumps(old(SearchTrace, content) | {"final": final}))
    loaded = SearchTrace.load(tmp_path / "old.json")
    assert loaded.final == trace.final and loaded.made_with == {} and loaded.call_seed is None
    assert [chunk.work for chunk in loaded.chunks] == [chunk.work for chunk in trace.chunks]


def _has_default(field):
    return field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING


def test_infinite_settings_are_texts_that_every_reader_of_json_takes(toy_pipeline, embeds, tmp_path):
    memory = RewardRoutedSink(quality_threshold=float("-inf"), transition_threshold=float("inf"))
    search = EarlyStop(BeamSearch(1, 2), margin=float("inf"))
    arguments = {"memory": memory, "search": search, "video_reward": contrast, "num_frames": 9}
    toy_pipeline(prompt_embeds=embeds, **arguments).trace.save(tmp_path / "trace.json")
    content = json.loads((tmp_path / "trace.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (content["config"]["memory"]["quality_threshold"], content["config"]["search"]["margin"]) == ("-inf", "inf")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"config": {}, "chunks": 3}', '{"chunks": [], "no such field": 1}'])
def test_what_is_no_trace_is_told_by_its_name(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    with pytest.raises(ValueError, match="a.json is no trace, or a damaged one"):
        SearchTrace.load(tmp_path / "a.json")
