"""`pipe.stream(...).change_prompt(...)`: another prompt while the video runs."""

import gc
import weakref

import pytest
import torch
from conftest import brightness, contrast, nothing_done

from stream_t1 import PromptTimeline
from stream_t1.rewards import Reward
from stream_t1.search import StaticSink

PLAIN = {"num_beams": 1, "num_candidates": 1, "output_type": "latent"}
RELATIVE = StaticSink(positions="relative")


def stream_of(pipe, prompt, **arguments):
    """Seven chunks, unless it is told otherwise."""
    return pipe.stream(prompt, **{"num_frames": 81, "generator": torch.Generator().manual_seed(0), **arguments})


def joined(chunks):
    return torch.cat([chunk.frames for chunk in chunks], dim=1)


@pytest.mark.parametrize("transition", [0, 1, 3])
def test_a_live_change_is_the_same_as_one_that_was_planned(reading_pipeline, transition):
    planned = reading_pipeline(
        PromptTimeline({0: "a", 33: "b"}),
        num_frames=81,
        transition=transition,
        generator=torch.Generator().manual_seed(0),
        **PLAIN,
    )
    stream = stream_of(reading_pipeline, "a", **PLAIN)
    chunks = [next(stream) for _ in range(3)]
    stream.change_prompt("b", transition)
    chunks += list(stream)
    assert torch.equal(joined(chunks), planned.frames[0])
    assert [chunk.prompt for chunk in chunks] == ["a"] * 3 + ["b"] * 4
    assert [chunk.prompt for chunk in chunks[-1].trace.chunks] == ["a"] * 3 + ["b"] * 4


def test_embeddings_may_be_changed_too(toy_pipeline, embeds):
    planned = toy_pipeline(
        PromptTimeline({0: embeds, 21: -embeds}), num_frames=45, generator=torch.Generator().manual_seed(0), **PLAIN
    )
    stream = stream_of(toy_pipeline, None, prompt_embeds=embeds, **PLAIN | {"num_frames": 45})
    chunks = [next(stream), next(stream)]
    stream.change_prompt(-embeds)
    assert torch.equal(joined([*chunks, *stream]), planned.frames[0])


def test_a_change_before_the_first_chunk_is_the_prompt_and_the_last_of_several_counts(reading_pipeline):
    stream = stream_of(reading_pipeline, "a", **PLAIN | {"num_frames": 21})
    stream.change_prompt("c")
    stream.change_prompt("b")
    plain = reading_pipeline("b", num_frames=21, generator=torch.Generator().manual_seed(0), **PLAIN)
    chunks = list(stream)
    assert torch.equal(joined(chunks), plain.frames[0]) and {chunk.prompt for chunk in chunks} == {"b"}
    assert all(chunk.work.recached_chunks == 0 for chunk in chunks[-1].trace.chunks)


def test_a_planned_prompt_comes_after_a_live_one(reading_pipeline):
    stream = stream_of(reading_pipeline, PromptTimeline({0: "a", 57: "c"}), **PLAIN)
    chunks = [next(stream), next(stream)]
    stream.change_prompt("b")
    assert [chunk.prompt for chunk in [*chunks, *stream]] == ["a", "a", "b", "b", "b", "c", "c"]


def test_what_is_not_settled_keeps_its_own_words(reading_pipeline):
    """Two beams that never agree: the first chunks are given last, and were made under the first prompt."""

    def alternating(frames, prompt, fps):
        return -torch.arange(len(frames), dtype=torch.float32).remainder(2)

    read = []

    def reading(frames, prompt, fps):
        read.append(prompt[0])
        return brightness(frames, prompt, fps)

    stream = None

    def change(pipe, chunk_index, state):
        if chunk_index == 2:
            stream.change_prompt("b")

    arguments = {"video_reward": alternating, "monitors": {"read": reading}, "output_type": "latent"}
    stream = stream_of(reading_pipeline, "a", num_candidates=2, callback_on_chunk_end=change, **arguments)
    chunks = list(stream)
    made = [len(chunk.trace.chunks) for chunk in chunks]
    assert [chunk.prompt for chunk in chunks] == ["a"] * 3 + ["b"] * 4 == read and made[0] == 7


def test_an_endless_stream_may_be_changed_for_ever_and_keeps_no_prompt_that_is_over(toy_pipeline, embeds):
    kept, frames = [], {"num_frames": None, "horizon": 4, "memory": RELATIVE, "reward_window": 1}
    stream = stream_of(toy_pipeline, None, prompt_embeds=embeds, **PLAIN | frames)
    for number in range(12):
        chunk = next(stream)
        given = embeds + number + 1
        kept.append(weakref.ref(given))
        stream.change_prompt(given, transition=2)
        del given
    gc.collect()
    assert chunk.trace.chunks[-1].work.recached_chunks == 3  # the window of nine frames, as ever
    assert sum(reference() is not None for reference in kept) < 8
    stream.close()


def test_a_reward_prompt_of_its_own_stays_unless_it_is_changed(toy_pipeline, embeds):
    read = []

    def reading(frames, prompt, fps):
        read.append(prompt[0])
        return contrast(frames, prompt, fps)

    arguments = {"video_reward": reading, "reward_prompt": "one", "output_type": "pt", "num_beams": 1}
    stream = stream_of(toy_pipeline, None, prompt_embeds=embeds, **arguments | {"num_frames": 45})
    next(stream)
    stream.change_prompt(-embeds)
    next(stream)
    stream.change_prompt(embeds, reward_prompt="two")
    next(stream)
    stream.close()
    assert read == ["one", "one", "two"]


class ReadsPrompt(Reward):
    def forward(self, frames, prompt, fps):
        return contrast(frames, prompt, fps)


MISTAKES = {
    "a number": ((5,), TypeError, "`prompt` is a int"),
    "half a character": (("\ud800",), ValueError, "surrogate"),
    "other embeddings": ((torch.zeros(1, 6, 9),), ValueError, r"shape \(1, 6, 9\)"),
    "two prompts": ((torch.zeros(2, 6, 8),), ValueError, r"shape \(2, 6, 8\)"),
    "a negative transition": (("b", -1), ValueError, "`transition` is -1"),
    "another length": ((torch.zeros(1, 6, 8), 2), ValueError, "have 512 and 6 tokens"),
    "no words for a reward": ((torch.zeros(1, 512, 8),), ValueError, "`video_reward` reads the prompt"),
}


@pytest.mark.parametrize("arguments, error, message", MISTAKES.values(), ids=MISTAKES)
def test_a_change_that_cannot_be_made_is_refused_at_once_and_changes_nothing(
    reading_pipeline, arguments, error, message
):
    rewards = {"video_reward": ReadsPrompt(), "num_beams": 1, "num_candidates": 1, "output_type": "latent"}
    stream = stream_of(reading_pipeline, "a", num_frames=33, **rewards)
    next(stream)
    with nothing_done(reading_pipeline), pytest.raises(error, match=message):
        stream.change_prompt(*arguments)
    assert [chunk.prompt for chunk in stream] == ["a", "a"]


def test_without_a_text_encoder_a_text_is_refused(toy_pipeline, embeds):
    stream = stream_of(toy_pipeline, None, prompt_embeds=embeds, **PLAIN)
    with pytest.raises(ValueError, match="text encoder"):
        stream.change_prompt("a")


@pytest.mark.parametrize("end", [list, lambda stream: stream.close()])
def test_a_stream_that_has_ended_can_be_changed_no_more(toy_pipeline, embeds, end):
    stream = stream_of(toy_pipeline, None, prompt_embeds=embeds, **PLAIN | {"num_frames": 21})
    end(stream)
    with pytest.raises(ValueError, match="has ended"):
        stream.change_prompt(embeds)
