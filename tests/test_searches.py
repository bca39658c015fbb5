"""Searches as values: on steps without a model, and in the pipeline."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import brightness, contrast
from search_toys import FakeSteps, KeepTwice

from stream_t1.search import (
    Beam,
    BeamSearch,
    BestOfN,
    Choice,
    EarlyStop,
    EMASink,
    RewardRoutedSink,
    SearchTrace,
    SlidingWindow,
    rank,
)

REWARDS = {"image_reward": brightness, "video_reward": contrast}


def beams(count):
    return [Beam(memory=object(), seeds=(index,)) for index in range(count)]


def test_a_beam_search_keeps_the_best_of_all_and_ties_in_order_of_arrival():
    steps = FakeSteps([0.0, 3.0, 1.0, 3.0], chunk_index=1)
    choice = BeamSearch(2, 2)(steps, beams(2))
    assert list(choice.kept) == [1, 3] and [c.parent for c in choice.candidates] == [0, 0, 1, 1]
    assert steps.calls == [("propose", [2, 2], 0), ("denoise", 4), ("score", 4)]


def test_a_beam_search_keeps_nothing_that_is_lost():
    choice = BeamSearch(2, 2)(FakeSteps([None, 0.0, None, None]), beams(1))
    assert list(choice.kept) == [1]


def test_fewer_beams_have_more_candidates_each():
    steps = FakeSteps(range(6), chunk_index=1)
    BeamSearch(3, 2)(steps, beams(2))
    assert steps.calls[0] == ("propose", [3, 3], 0)


@pytest.mark.parametrize(
    "budget", [[(2, 3), (1, 4), (3, 1)], lambda index, beams: [(2, 3), (1, 4), (3, 1)][min(index, 2)]]
)
def test_a_budget_gives_each_chunk_its_numbers_and_its_last_entry_goes_on(budget):
    search = BeamSearch(3, budget=budget)
    for index, (num_beams, total) in enumerate([(2, 6), (1, 4), (3, 3), (3, 3)]):
        choice = search(FakeSteps(range(9), chunk_index=index), beams(1))
        assert (len(choice.kept), len(choice.candidates)) == (num_beams, total)


def test_a_budget_sees_the_beams():
    seen = []
    search = BeamSearch(2, budget=lambda index, beams: seen.append(beams) or (1, 2))
    given = beams(2)
    search(FakeSteps(range(2), chunk_index=3), given)
    assert seen == [given]


def test_a_beam_search_drops_only_where_there_is_a_choice():
    assert not BeamSearch(3, 1).drops and BeamSearch(1, 2).drops
    assert not BeamSearch(budget=[(1, 1), (3, 1)]).drops
    assert BeamSearch(budget=[(3, 1), (1, 1)]).drops  # two beams go
    assert BeamSearch(2, budget=lambda index, beams: (2, 1)).drops  # nobody knows


def test_best_of_n_makes_each_video_by_itself_and_drops_none():
    steps = FakeSteps([0.0, 5.0, 2.0])
    choice = BestOfN(3)(steps, beams(1))
    assert list(choice.kept) == [0, 1, 2] and [c.score for c in choice.candidates] == [0.0, 5.0, 2.0]
    assert steps.calls == [("propose", [3], 0)] + [("denoise", 1), ("score", 1)] * 3
    later = FakeSteps([0.0, None, 2.0], chunk_index=1)
    assert list(BestOfN(3)(later, beams(3)).kept) == [0, 2]
    assert later.calls[0] == ("propose", [1, 1, 1], 0)


def test_early_stop_ends_when_the_best_is_clearly_ahead():
    steps = FakeSteps([0.0, 0.1, 0.2, 0.9, 0.0, 0.0])
    choice = EarlyStop(BeamSearch(1, 2), margin=0.5, patience=4)(steps, beams(1))
    assert [c.score for c in choice.candidates] == [0.0, 0.1, 0.2, 0.9]
    assert list(choice.kept) == [3]


def test_early_stop_is_patient_for_so_many_rounds_of_one_best():
    scores = [0.0, 5.0, 6.0, 1.0, 2.0, 3.0, 4.0, 4.0, 9.0, 9.0]
    choice = EarlyStop(BeamSearch(2, 1), patience=3)(FakeSteps(scores), beams(1))
    assert len(choice.candidates) == 8  # the best came in round two; rounds three and four brought no better
    assert [choice.candidates[i].score for i in choice.kept] == [6.0, 5.0]


def test_early_stop_has_a_last_round():
    choice = EarlyStop(BeamSearch(1, 1), patience=2, max_rounds=5)(FakeSteps(range(9)), beams(1))
    assert len(choice.candidates) == 5 and list(choice.kept) == [4]


def test_rounds_draw_other_seeds():
    steps = FakeSteps(range(20), chunk_index=1)
    EarlyStop(BeamSearch(2, 3), patience=9, max_rounds=3)(steps, beams(2))
    assert [call for call in steps.calls if call[0] == "propose"] == [
        ("propose", [3, 3], first) for first in (0, 3, 6)
    ]
    assert len({(c.parent, c.seed) for c in steps.proposed}) == 18


def test_early_stop_in_early_stop_still_draws_other_seeds():
    inner = EarlyStop(BeamSearch(1, 2), patience=9, max_rounds=2)
    steps = FakeSteps(range(20))
    EarlyStop(inner, patience=9, max_rounds=3)(steps, beams(1))
    assert sorted(c.seed for c in steps.proposed) == list(range(12))


def test_early_stop_refuses_weighted_beams():
    def weighted(steps, beams):
        return replace(BeamSearch(1, 1)(steps, beams), log_weights=[0.0])

    with pytest.raises(ValueError, match="EarlyStop compares rounds by score"):
        EarlyStop(weighted, patience=2)(FakeSteps(range(9)), beams(1))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def video(pipe, embeds, **arguments):
    return pipe(prompt_embeds=embeds, **{"num_frames": 57, "generator": seeded(), **REWARDS, **arguments})


def plain(trace: SearchTrace):
    return [(chunk.candidates, chunk.evicted, chunk.sinks) for chunk in trace.chunks], trace.final


@pytest.mark.parametrize(
    "search",
    [
        BeamSearch(2, 3),
        BeamSearch(budget=[(2, 3)]),
        BeamSearch(2, budget=lambda index, beams: (2, 3)),
        EarlyStop(BeamSearch(2, 3)),
        EarlyStop(BeamSearch(2, 3), margin=0.0, patience=1),
    ],
    ids=["beam", "constant list", "constant function", "early stop", "one round whatever the margin"],
)
def test_searches_that_are_the_plain_beam_give_its_bits(toy_pipeline, embeds, search):
    expected, given = video(toy_pipeline, embeds, num_candidates=3), video(toy_pipeline, embeds, search=search)
    assert np.array_equal(expected.frames, given.frames)
    assert plain(expected.trace) == plain(given.trace)


@pytest.mark.parametrize("memory", [RewardRoutedSink(quality_threshold=-1e9), EMASink(), SlidingWindow()])
def test_best_of_n_is_so_many_single_samples(toy_pipeline, embeds, memory):
    single = {"num_beams": 1, "num_candidates": 1, "memory": memory, "output_type": "pt"}
    generator = seeded(4)
    singles = [video(toy_pipeline, embeds, **single, generator=generator) for _ in range(4)]
    made = video(
        toy_pipeline,
        embeds,
        search=BestOfN(4),
        memory=memory,
        num_videos_per_prompt=4,
        output_type="pt",
        generator=seeded(4),
    )
    for place, index in enumerate(made.trace.final.order):
        assert torch.equal(made.frames[place], singles[index].frames[0])
        own = [chunk.candidates[index] for chunk in made.trace.chunks]
        alone = [chunk.candidates[0] for chunk in singles[index].trace.chunks]
        assert [(c.seed, c.short, c.long, c.route) for c in own] == [(c.seed, c.short, c.long, c.route) for c in alone]
    assert made.trace.final.scores == sorted(made.trace.final.scores, reverse=True)


def test_best_of_n_needs_no_rewards(toy_pipeline, embeds):
    nobody = {"image_reward": False, "video_reward": False}
    made = video(toy_pipeline, embeds, search=BestOfN(2), num_videos_per_prompt=2, **nobody)
    assert made.frames.shape[0] == 2 and made.trace.final.order == [0, 1]


def test_a_candidate_kept_twice_is_two_beams_with_one_memory_that_part_with_their_noise(toy_pipeline, embeds):
    seen = []

    def look(steps, beams):
        seen.append(beams)
        return KeepTwice()(steps, beams)

    look.num_beams = 2
    trace = video(toy_pipeline, embeds, search=look).trace
    one, other = seen[2]
    assert one.memory is other.memory and one.decoder_state is other.decoder_state
    assert (one.log_weight, other.log_weight) == (0.5, -0.5)
    assert [chunk.work.clean_passes for chunk in trace.chunks] == [1, 1, 1, 1, 0]
    seeds = [candidate.seed for candidate in trace.chunks[2].candidates]
    assert len(set(seeds)) == 4
    kept = [candidate.kept_as for candidate in trace.chunks[1].candidates if candidate.kept]
    assert kept == [[0, 1]]


class TwiceOfMany(BestOfN):
    """Keeps the first of several lineages twice and drops the last."""

    def __call__(self, steps, beams):
        choice = super().__call__(steps, beams)
        return replace(choice, kept=[0, 0, *choice.kept[1:-1]])


def test_lineages_that_are_kept_twice_part(toy_pipeline, embeds):
    trace = video(toy_pipeline, embeds, search=TwiceOfMany(3)).trace
    for chunk in trace.chunks:
        assert len({candidate.seed for candidate in chunk.candidates}) == 3


def test_a_function_is_a_search(toy_pipeline, embeds):
    def dullest(steps, beams):
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, 3)))
        return Choice(candidates, [rank(candidates)[-1]])

    trace = video(toy_pipeline, embeds, search=dullest).trace
    for chunk in trace.chunks:
        assert min(chunk.candidates, key=lambda c: c.score).kept
    assert trace.config["search"] == {"name": "dullest"} and trace.config["num_beams"] == 1


def test_a_trace_says_which_search_with_which_numbers(toy_pipeline, embeds, tmp_path):
    trace = video(toy_pipeline, embeds, num_frames=9, search=EarlyStop(BeamSearch(2, 1), patience=2)).trace
    assert trace.config["search"] == {
        "name": "EarlyStop",
        "inner": {"name": "BeamSearch", "num_beams": 2, "num_candidates": 1, "budget": None, "prune_every": 1},
        "margin": "inf",
        "patience": 2,
        "max_rounds": 8,
    }
    trace.save(tmp_path / "trace.json")
    assert SearchTrace.load(tmp_path / "trace.json") == trace


@pytest.mark.parametrize("max_lag", [0, 1])
def test_any_search_streams_what_a_call_gives(toy_pipeline, embeds, max_lag):
    for search in (KeepTwice(), EarlyStop(BeamSearch(2, 2), patience=2)):
        arguments = {"num_frames": 57, "search": search, "max_lag": max_lag, "output_type": "pt", **REWARDS}
        called = toy_pipeline(prompt_embeds=embeds, generator=seeded(), **arguments).frames[0]
        chunks = list(toy_pipeline.stream(prompt_embeds=embeds, generator=seeded(), **arguments))
        assert torch.equal(torch.cat([chunk.frames for chunk in chunks]), called)


@pytest.mark.parametrize("search", [BestOfN(3), EarlyStop(BestOfN(2)), EarlyStop(BeamSearch(2, 1), patience=2)])
def test_a_stream_waits_for_the_end_where_nothing_is_dropped(toy_pipeline, embeds, search):
    arguments = {"num_frames": 57, "search": search, "output_type": "pt", **REWARDS}
    called = toy_pipeline(prompt_embeds=embeds, generator=seeded(), **arguments).frames[0]
    chunks = list(toy_pipeline.stream(prompt_embeds=embeds, generator=seeded(), **arguments))
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks]), called)


def test_rounds_of_a_search_that_shows_little_of_what_it_tried_draw_other_seeds():
    def shy(steps, beams):
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, 3)))
        return Choice([candidates[rank(candidates)[0]]], [0])

    steps = FakeSteps(range(9))
    steps.propose = lambda beams, counts, first=0, propose=steps.propose: propose(beams, [counts], first)
    EarlyStop(shy, patience=9, max_rounds=3)(steps, beams(1))
    assert sorted(c.seed for c in steps.proposed) == list(range(9))


def test_a_callback_that_answers_what_it_was_given_changes_nothing(toy_pipeline, embeds):
    seen = []

    def look(steps, beams):
        seen.append([beam.log_weight for beam in beams])
        return KeepTwice()(steps, beams)

    look.num_beams = 2
    echo = {"callback_on_chunk_end": lambda pipe, index, state: {"kept": state["kept"]}}
    video(toy_pipeline, embeds, num_frames=33, search=look, **echo)
    assert seen == [[0.0], [0.5, -0.5], [0.5, -0.5]]


def test_weights_go_with_the_candidates_that_a_callback_keeps(toy_pipeline, embeds):
    seen = []

    def weighing(steps, beams):
        seen.append([beam.log_weight for beam in beams])
        choice = BeamSearch(2, 2)(steps, beams)
        return replace(choice, log_weights=[1.0, 2.0])

    weighing.num_beams = 2
    turn = {"callback_on_chunk_end": lambda pipe, index, state: {"kept": state["kept"][::-1]}}
    video(toy_pipeline, embeds, num_frames=21, search=weighing, **turn)
    assert seen == [[0.0], [2.0, 1.0]]


def test_a_search_cannot_write_into_the_pipelines_beams(toy_pipeline, embeds):
    class Rude(BeamSearch):
        def __call__(self, steps, beams):
            choice = super().__call__(steps, beams)
            beams.clear()
            return choice

    expected, given = video(toy_pipeline, embeds), video(toy_pipeline, embeds, search=Rude())
    assert np.array_equal(expected.frames, given.frames)


def test_an_estimate_knows_what_a_search_does(toy_pipeline, embeds):
    searches = (BestOfN(3), BeamSearch(budget=[(1, 4), (3, 2), (2, 2)]), EarlyStop(BeamSearch(2, 2)))
    for search in searches:
        estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
        trace = video(toy_pipeline, embeds, search=search).trace
        for name in ("forwards", "clean_passes", "latents_decoded", "frames_scored"):
            assert getattr(estimate, name) == sum(getattr(chunk.work, name) for chunk in trace.chunks)
    bounded = toy_pipeline.estimate(num_frames=57, search=EarlyStop(BeamSearch(2, 2), patience=2), **REWARDS)
    assert (bounded.least_forwards, bounded.forwards) == (5 * 16, 5 * 16 * 8)
    assert str(bounded).startswith("5 chunks: 80 to 640 forwards")
    with pytest.raises(ValueError, match="KeepTwice does not say what it does.*work"):
        toy_pipeline.estimate(search=KeepTwice(), **REWARDS)


def test_a_trace_says_what_a_search_put_instead_of_the_drawn(toy_pipeline, embeds):
    def mixing(steps, beams):
        one, other, third = steps.propose(beams, 3)
        mixed = replace(other, renoise=one.renoise)
        remembering = replace(third, memory=beams[0].memory)
        candidates = steps.score(beams, steps.denoise(beams, [one, mixed, remembering]))
        return Choice(candidates, rank(candidates)[:1])

    trace = video(toy_pipeline, embeds, num_frames=21, search=mixing).trace
    assert [[candidate.own for candidate in chunk.candidates] for chunk in trace.chunks] == [
        [[], ["noise"], ["memory"]]
    ] * 2
    assert {candidate.step for chunk in trace.chunks for candidate in chunk.candidates} == {4}


class NotInTwoSteps(BeamSearch):
    def check(self, num_steps, num_chunks):
        if num_steps == 2 or num_chunks is None:
            raise ValueError(f"not in {num_steps} steps, {num_chunks} chunks")


def test_a_search_may_refuse_a_run_before_any_work(toy_pipeline, embeds):
    search = EarlyStop(NotInTwoSteps())
    with pytest.raises(ValueError, match="not in 2 steps, 5 chunks"):
        video(toy_pipeline, embeds, search=search, num_inference_steps=2)
    with pytest.raises(ValueError, match="not in 4 steps, None chunks"):
        endless = {"num_frames": None, "horizon": 3, "memory": EMASink()}
        toy_pipeline.stream(prompt_embeds=embeds, search=search, **endless, **REWARDS)
