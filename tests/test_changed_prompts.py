"""A prompt that `callback_on_step_end` changes is read by all candidates of a chunk alike."""

from contextlib import contextmanager

import pytest
import torch
from conftest import brightness, contrast

from stream_t1.search import BeamSearch, BestOfN, EarlyStop

SEARCHES = {
    "two beams": BeamSearch(2, 2),
    "three beams": BeamSearch(3, 1),
    "three beams of three": BeamSearch(3, 3),
    "best of three": BestOfN(3),
    "two rounds": EarlyStop(BeamSearch(2, 2), patience=2, max_rounds=2),
}


@contextmanager
def words_read(pipe):
    """For every forward: its chunk (by clean passes so far), its timestep and one number of its prompt."""
    read, num_clean = [], [0]

    def watch(module, args, kwargs):
        timestep = float(kwargs["timestep"][0])
        read.append((num_clean[0], timestep, float(kwargs["encoder_hidden_states"][0, 0, 0])))
        num_clean[0] += timestep == 0.0

    handle = pipe.transformer.register_forward_pre_hook(watch, with_kwargs=True)
    yield read
    handle.remove()


def run(pipe, embeds, callback, search, **arguments):
    given = {"image_reward": brightness, "video_reward": contrast, "num_frames": 33, "output_type": "latent"}
    given |= {"callback_on_step_end_tensor_inputs": ["prompt_embeds"], "callback_on_step_end": callback}
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt_embeds=embeds, generator=generator, search=search, **given | arguments)


def by_chunk_and_step(read, num_kept):
    """The prompts that each step of each chunk was read with, clean passes as steps at 0."""
    seen = {}
    for num_clean, timestep, word in read:
        seen.setdefault((num_clean // num_kept, timestep), set()).add(round(word, 4))
    return seen


def at_call(number, new):
    """Changes the prompt once, at its n-th call."""
    calls = []

    def callback(pipe, step, timestep, tensors):
        calls.append(step)
        return {"prompt_embeds": new} if len(calls) == number else {}

    return callback


def at_step(step, new):
    """Gives the same prompt at a step of every batch."""
    return lambda pipe, now, timestep, tensors: {"prompt_embeds": new} if now == step else {}


def further(pipe, step, timestep, tensors):
    """Changes what it is given, at every step."""
    return {"prompt_embeds": tensors["prompt_embeds"] + 1.0}


CALLBACKS = {
    **{f"once, at call {n}": lambda new, n=n: at_call(n, new) for n in (1, 3, 4, 6, 9, 12)},
    **{f"at every step {n}": lambda new, n=n: at_step(n, new) for n in range(4)},
    "further and further": lambda new: further,
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_no_step_of_a_chunk_is_read_with_two_prompts(toy_pipeline, embeds, search, make):
    with words_read(toy_pipeline) as read:
        run(toy_pipeline, embeds, make(embeds + 1), search)
    seen = by_chunk_and_step(read, search.num_beams)
    assert {key: words for key, words in seen.items() if len(words) > 1} == {}
    assert len({word for words in seen.values() for word in words}) > 1  # the change was read at all


@pytest.mark.parametrize("num_beams", [2, 3])
def test_a_change_during_a_later_batch_holds_from_the_clean_pass_on(toy_pipeline, embeds, num_beams):
    first_chunk = 4  # calls; then one batch per beam
    with words_read(toy_pipeline) as read:
        run(toy_pipeline, embeds, at_call(first_chunk + 4 + 2, embeds + 1), BeamSearch(num_beams, 2))
    seen, (old, new) = by_chunk_and_step(read, num_beams), (round(float(x[0, 0, 0]), 4) for x in (embeds, embeds + 1))
    assert {words.copy().pop() for (chunk, timestep), words in seen.items() if chunk == 1 and timestep} == {old}
    assert seen[1, 0.0] == {new} and {w for (chunk, _), ws in seen.items() if chunk == 2 for w in ws} == {new}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
def test_a_callback_that_gives_back_what_it_got_changes_nothing(toy_pipeline, embeds, search):
    plain = run(toy_pipeline, embeds, None, search)
    given_back = run(toy_pipeline, embeds, lambda pipe, step, timestep, tensors: tensors, search)
    assert torch.equal(plain.frames, given_back.frames)


def test_the_same_change_at_every_batch_is_the_change_for_one_beam(toy_pipeline, embeds):
    """One video has one batch a chunk; each of several must be read with the same prompts."""
    alone = run(toy_pipeline, embeds, at_step(1, embeds + 1), BestOfN(1), num_frames=21)
    several = run(toy_pipeline, embeds, at_step(1, embeds + 1), BestOfN(3), num_frames=21, num_videos_per_prompt=3)
    place = several.trace.final.order.index(0)
    assert torch.equal(several.frames[place], alone.frames[0])
