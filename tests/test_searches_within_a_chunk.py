"""Searches that look into a chunk's steps: early pruning and evolution."""

import math

import numpy as np
import pytest
import torch
from conftest import brightness, contrast, nothing_done

from stream_t1.search import BeamSearch, EarlyPruning, EvolutionSearch
from stream_t1.search.evolution_search import mutated

REWARDS = {"image_reward": brightness, "video_reward": contrast}


def video(pipe, embeds, **arguments):
    generator = torch.Generator().manual_seed(6)
    return pipe(prompt_embeds=embeds, **{"num_frames": 57, "generator": generator, **REWARDS, **arguments})


@pytest.mark.parametrize(
    "search, plain",
    [
        (EarlyPruning(4, 2, after_step=4), BeamSearch(1, 4)),
        (EarlyPruning(3, 3, after_step=4, num_beams=2), BeamSearch(2, 3)),
        (EvolutionSearch(1, 4, elites=1, mutation=0.5), BeamSearch(1, 4)),
        (EvolutionSearch(1, 6, elites=1, mutation=0.5, num_beams=2), BeamSearch(2, 3)),
    ],
    ids=["pruned after the last step", "with two beams", "one generation", "of two beams"],
)
def test_where_nothing_is_left_to_do_it_is_the_plain_search(toy_pipeline, embeds, search, plain):
    one, other = video(toy_pipeline, embeds, search=search), video(toy_pipeline, embeds, search=plain)
    assert np.array_equal(one.frames, other.frames)
    assert [chunk.candidates for chunk in one.trace.chunks] == [chunk.candidates for chunk in other.trace.chunks]


@pytest.mark.parametrize("after_step", [1, 2, 3])
@pytest.mark.parametrize("num_beams", [1, 2])
def test_early_pruning_costs_what_its_formula_says(toy_pipeline, embeds, after_step, num_beams):
    search = EarlyPruning(4, 2, after_step=after_step, num_beams=num_beams)
    trace, estimate = video(toy_pipeline, embeds, search=search).trace, None
    forwards = num_beams * (4 * after_step + 2 * (4 - after_step))
    decoded = 3 * num_beams * (4 + 2)
    assert [chunk.work.forwards for chunk in trace.chunks] == [forwards] * 5
    assert [chunk.work.latents_decoded for chunk in trace.chunks] == [decoded] * 5
    estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
    for name in ("forwards", "clean_passes", "latents_decoded", "frames_scored"):
        assert getattr(estimate, name) == sum(getattr(chunk.work, name) for chunk in trace.chunks)


def test_early_pruning_ends_the_most_promising_and_records_both_scores(toy_pipeline, embeds):
    trace = video(toy_pipeline, embeds, search=EarlyPruning(5, 2, after_step=2)).trace
    for chunk in trace.chunks:
        pruned = [candidate for candidate in chunk.candidates if candidate.step == 2]
        finished = [candidate for candidate in chunk.candidates if candidate.step == 4]
        assert (len(pruned), len(finished)) == (3, 2) and all(c.score is not None for c in pruned)
        (kept,) = (candidate for candidate in chunk.candidates if candidate.kept)
        assert kept.score == max(candidate.score for candidate in finished)


def test_a_finished_candidate_is_what_it_is_without_pruning(toy_pipeline, embeds):
    made = []
    note = lambda pipe, index, state: made.append(state["candidates"])  # noqa: E731
    video(toy_pipeline, embeds, search=EarlyPruning(4, 2, after_step=1), num_frames=9, callback_on_chunk_end=note)
    video(toy_pipeline, embeds, search=BeamSearch(1, 4), num_frames=9, callback_on_chunk_end=note)
    pruned, plain = made
    rows = [row for row, candidate in enumerate(pruned) if candidate.is_finished]
    assert len(rows) == 2
    for row in rows:
        torch.testing.assert_close(pruned[row].latents, plain[row].latents, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("at_step", [0, 1, 3])
def test_evolution_costs_what_its_formula_says(toy_pipeline, embeds, at_step):
    search = EvolutionSearch(3, 4, elites=2, mutation=0.3, at_step=at_step, num_beams=2)
    trace = video(toy_pipeline, embeds, search=search).trace
    assert [chunk.work.forwards for chunk in trace.chunks] == [4 * 4 + 2 * 2 * (4 - at_step)] * 5
    assert [chunk.work.latents_decoded for chunk in trace.chunks] == [3 * (4 + 2 * 2)] * 5
    estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
    for name in ("forwards", "clean_passes", "latents_decoded", "frames_scored"):
        assert getattr(estimate, name) == sum(getattr(chunk.work, name) for chunk in trace.chunks)


def test_children_are_of_the_best_and_differ_in_one_draw(toy_pipeline, embeds):
    for at_step in (0, 2):
        made = []
        search = EvolutionSearch(2, 5, elites=2, mutation=0.4, at_step=at_step)
        video(
            toy_pipeline,
            embeds,
            search=search,
            num_frames=9,
            callback_on_chunk_end=lambda pipe, index, state, made=made: made.extend(state["candidates"]),
        )
        first, children = made[:5], made[5:]
        best = sorted(first, key=lambda candidate: -candidate.score)[:2]
        assert len(children) == 3
        for child, parent in zip(children, (best[0], best[1], best[0]), strict=True):
            draws = zip((child.noise, *child.renoise), (parent.noise, *parent.renoise), strict=True)
            assert [one is other for one, other in draws] == [index != at_step for index in range(4)]
            assert child.own == ["noise"] and child.latents is not parent.latents


def test_a_later_generation_is_never_worse(toy_pipeline, embeds):
    for chunk in video(toy_pipeline, embeds, search=EvolutionSearch(3, 4, elites=1, mutation=0.5)).trace.chunks:
        best = max(candidate.score for candidate in chunk.candidates)
        assert [candidate.score for candidate in chunk.candidates if candidate.kept] == [best]


def test_without_mutation_children_are_their_parents(toy_pipeline, embeds):
    made = []
    search = EvolutionSearch(2, 3, elites=1, mutation=0.0)
    note = lambda pipe, index, state: made.extend(state["candidates"])  # noqa: E731
    video(toy_pipeline, embeds, search=search, num_frames=9, callback_on_chunk_end=note)
    best = max(made[:3], key=lambda candidate: candidate.score)
    for child in made[3:]:
        torch.testing.assert_close(child.latents, best.latents, rtol=1e-4, atol=1e-4)


def test_a_mutated_draw_is_standard_normal_and_correlated_with_its_parent():
    generator = torch.Generator().manual_seed(0)
    parent = torch.randn(200_000, generator=generator)
    child = mutated(parent, 0.6, generator)
    assert float(child.mean()) == pytest.approx(0.0, abs=0.01) and float(child.var()) == pytest.approx(1.0, abs=0.01)
    assert float((parent * child).mean()) == pytest.approx(math.sqrt(1 - 0.36), abs=0.01)


def test_a_seed_repeats_an_evolution(toy_pipeline, embeds):
    search = EvolutionSearch(3, 4, elites=2, mutation=0.3, at_step=1)
    one, other = (video(toy_pipeline, embeds, search=search).frames for _ in range(2))
    assert np.array_equal(one, other)


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: EarlyPruning(2, 3, 1), ValueError, "`keep` of EarlyPruning is 3.*Use 2 or fewer"),
        (lambda: EarlyPruning(2, 0, 1), ValueError, "`keep` of EarlyPruning is 0"),
        (lambda: EarlyPruning(2, 1, 0), ValueError, "`after_step` of EarlyPruning is 0"),
        (lambda: EvolutionSearch(2, 3, 3, 0.2), ValueError, "`elites` of EvolutionSearch is 3.*Use elites=2"),
        (lambda: EvolutionSearch(2, 3, 1, 0.2, num_beams=4), ValueError, "`num_beams` of EvolutionSearch is 4.*=3"),
        (lambda: EvolutionSearch(2, 3, 1, 1.2), ValueError, "`mutation` of EvolutionSearch is 1.2"),
        (lambda: EvolutionSearch(2, 3, 1, "a"), TypeError, "`mutation` of EvolutionSearch is 'a'"),
        (lambda: EvolutionSearch(0, 3, 1, 0.1), ValueError, "`generations` of EvolutionSearch is 0"),
    ],
)
def test_numbers_that_fit_no_search_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize(
    "search, message",
    [
        (EarlyPruning(2, 1, 4), "`after_step` of EarlyPruning is 4, and a chunk has 3 steps. Use 3"),
        (EvolutionSearch(2, 3, 1, 0.1, at_step=3), "`at_step` of EvolutionSearch is 3.*Use 2 or less"),
    ],
)
def test_a_step_that_does_not_exist_is_told_before_any_work(toy_pipeline, embeds, search, message):
    with nothing_done(toy_pipeline), pytest.raises(ValueError, match=message):
        video(toy_pipeline, embeds, search=search, num_inference_steps=3)


def test_generations_are_compared_by_raw_scores(toy_pipeline, embeds):
    with pytest.raises(ValueError, match="`score_normalization` is 'rank'.*EvolutionSearch"):
        video(toy_pipeline, embeds, search=EvolutionSearch(2, 3, 1, 0.1), score_normalization="rank")
