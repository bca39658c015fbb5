"""`PromptTimeline`: prompts by frame, as a value, in a text and as JSON."""

import copy
import json
import pickle

import numpy as np
import pytest
import torch

from stream_t1 import PromptTimeline

EMBEDS = torch.ones(1, 6, 8)


def test_prompts_keep_their_order_and_texts():
    timeline = PromptTimeline({0: "a cat walks", 45: EMBEDS, np.int64(93): "a dog"}, cuts=[45])
    assert list(timeline.prompts) == [0, 45, 93] and timeline.texts == ["a cat walks", "a dog"]
    assert timeline.cuts == (45,)


def test_a_timeline_is_not_changed_by_its_callers_dict():
    prompts = {0: "a"}
    timeline = PromptTimeline(prompts)
    prompts[45] = "b"
    assert timeline == PromptTimeline({0: "a"})


def test_timelines_are_equal_when_their_prompts_and_cuts_are():
    given = {0: "a", 45: EMBEDS}
    assert PromptTimeline(given) == PromptTimeline({0: "a", 45: EMBEDS.clone()})
    others = [PromptTimeline({0: "a", 45: EMBEDS + 1}), PromptTimeline({0: "a"}), PromptTimeline(given, cuts=(45,))]
    assert all(PromptTimeline(given) != other for other in [*others, PromptTimeline({0: "a", 45: "b"}), "a"])


def test_a_timeline_is_told_shortly():
    timeline = PromptTimeline({0: "a cat " + "very " * 20, 45: EMBEDS}, cuts=(45,))
    assert repr(timeline) == (
        "PromptTimeline({0: 'a cat very very very very very very v...', 45: embeddings (1, 6, 8)}, cuts=(45,))"
    )


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda given: pickle.loads(pickle.dumps(given))])
def test_a_timeline_can_be_copied(copied):
    timeline = PromptTimeline({0: "a", 45: EMBEDS}, cuts=(9,))
    assert copied(timeline) == timeline


@pytest.mark.parametrize(
    "text, frames, cuts, num_frames",
    [
        ("a [3s] | b [5s]", [0, 45], (), 129),
        ("a[3.0s] | b[2.25s#] | c[5.25s]", [0, 45, 81], (81,), 165),  # Infinity-RoPE's own example
        ("a [ 0.75 s # ]|b", [0, 9], (9,), None),
        ("a [1s] | b [1s] | c", [0, 9, 33], (), None),  # 1.33 and 2.67 chunks: each prompt begins near its time
        ("a", [0], (), None),
        ("a [0.1s] the end", [0], (), None),  # no length stands at the end
    ],
)
def test_a_text_says_for_how_many_seconds_each_prompt_holds(text, frames, cuts, num_frames):
    timeline = PromptTimeline.parse(text, fps=16)
    assert list(timeline.prompts) == frames and timeline.cuts == cuts and timeline.num_frames == num_frames
    assert [prompt[0] for prompt in timeline.texts] == ["a", "b", "c"][: len(frames)]


def test_seconds_are_those_of_the_video():
    assert list(PromptTimeline.parse("a [3s] | b", fps=8).prompts) == [0, 21]
    assert list(PromptTimeline.parse("a [1s] | b", fps=16, chunk_frames=1).prompts) == [0, 13]


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "prompt 1 of 1 is empty"),
        ("a [3s] | | b", "prompt 2 of 3 is empty"),
        ("a | b [3s]", "'a', does not say for how long. Write \"a \\[3s\\]\""),
        ("a [0.2s] | b", "'a', holds for 0.2 s, and a chunk for 0.75 s"),
        ("a [3s] | b [5s #]", "nothing follows"),
    ],
)
def test_a_text_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        PromptTimeline.parse(text)


@pytest.mark.parametrize("arguments", [{"text": 5}, {"text": "a", "fps": "16"}, {"text": "a", "chunk_frames": 3.0}])
def test_what_is_no_text_or_number_is_refused(arguments):
    with pytest.raises(TypeError, match="`(text|fps|chunk_frames)` is"):
        PromptTimeline.parse(**arguments)


@pytest.mark.parametrize(
    "prompts, cuts, error, message",
    [
        ({}, (), ValueError, "`prompts` is empty"),
        ({45: "a"}, (), ValueError, "begins at frame 45; the first must hold from frame 0"),
        ({0: "a", 45: "b", 21: "c"}, (), ValueError, "frame 21 after 45"),
        ({-3: "a"}, (), ValueError, "begins at frame -3"),
        ({0: "a", "45": "b"}, (), TypeError, "'45'"),
        ({0: "a", True: "b"}, (), TypeError, "whole number"),
        ({0: 5}, (), TypeError, r"`prompts\[0\]` is a int"),
        ({0: torch.ones(2, 6, 8)}, (), ValueError, r"shape \(2, 6, 8\)"),
        ({0: torch.ones(1, 6, 8, dtype=torch.long)}, (), TypeError, "floats"),
        ({0: "\ud800"}, (), ValueError, "surrogate"),
        (["a", "b"], (), TypeError, "must be a dict"),
        ({0: "a"}, 45, TypeError, "`cuts` is 45"),
        ({0: "a"}, (45, 21), ValueError, "must rise"),
        ({0: "a"}, (0,), ValueError, "must be 1 or more"),
    ],
)
def test_a_timeline_that_is_none_is_refused(prompts, cuts, error, message):
    with pytest.raises(error, match=message):
        PromptTimeline(prompts, cuts)


@pytest.mark.parametrize("text", ["a [3s] | b [5s]", "a [3s #] | b"])
def test_json_brings_a_timeline_back(text):
    timeline = PromptTimeline.parse(text)
    assert PromptTimeline.from_json(timeline.to_json()) == timeline
    assert PromptTimeline.from_config(json.loads(json.dumps(timeline.as_config()))) == timeline


def test_json_holds_no_embeddings():
    with pytest.raises(ValueError, match="embeddings, which JSON can't hold"):
        PromptTimeline({0: EMBEDS}).to_json()


@pytest.mark.parametrize("config", [[], {"0": "a"}, {"prompts": {"0": "a"}, "cut": []}, {"prompts": {"x": "a"}}])
def test_json_of_something_else_is_refused(config):
    with pytest.raises((TypeError, ValueError), match="timeline|whole number"):
        PromptTimeline.from_json(json.dumps(config))
