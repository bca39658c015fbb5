"""Searches over several chunks: pruning every few, going back, looking ahead, stages."""

import math
import operator
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import brightness, contrast, nothing_done
from search_toys import FakeSteps

from stream_t1.chunk_steps import ChunkSteps
from stream_t1.search import (
    Backtracking,
    Beam,
    BeamSearch,
    BestOfN,
    Choice,
    EarlyPruning,
    EarlyStop,
    EMASink,
    EvolutionSearch,
    Lookahead,
    ParticleSearch,
    PromptAdaptive,
    RewardRoutedSink,
    SearchTrace,
    SlidingWindow,
    StagedSearch,
    StaticSink,
)
from stream_t1.search.prompt_adaptive import spread_of_tokens

REWARDS = {"image_reward": brightness, "video_reward": contrast}
ROUTED = RewardRoutedSink(quality_threshold=-1e9, transition_threshold=-1e9)
WORK = ("forwards", "clean_passes", "latents_decoded", "frames_scored")


def video(pipe, embeds, **arguments):
    generator = torch.Generator().manual_seed(6)
    return pipe(prompt_embeds=embeds, **{"num_frames": 57, "generator": generator, **REWARDS, **arguments})


def worked(trace, name):
    return sum(getattr(work, name) for work in trace.works)


def plain(trace):
    return [(chunk.candidates, chunk.evicted, chunk.sinks) for chunk in trace.chunks], trace.final


@pytest.mark.parametrize(
    "search",
    [
        BeamSearch(2, 3, prune_every=1),
        Backtracking(BeamSearch(2, 3)),
        Backtracking(BeamSearch(2, 3), bound=-1e9, retries=3),
        Backtracking(BeamSearch(2, 3), bound=1e9, retries=0),
        StagedSearch(budget=[(2, 3)]),
        StagedSearch(budget=[(2, 3)], keep=["best", "bound"]),
        PromptAdaptive(2, 3, distance=0.0),
        PromptAdaptive(2, 3, strength=0.0),
    ],
    ids=lambda search: repr(search)[:60],
)
def test_searches_that_have_nothing_of_their_own_to_do_are_the_plain_beam(toy_pipeline, embeds, search):
    expected, given = video(toy_pipeline, embeds, num_candidates=3), video(toy_pipeline, embeds, search=search)
    assert np.array_equal(expected.frames, given.frames)
    assert plain(expected.trace) == plain(given.trace)


# --- pruning every few chunks


class Scripted:
    """Steps without a model; a candidate's score is that of its chunk and number in a script."""

    num_steps, num_turns, most_back = 1, 0, 0

    def __init__(self, script, chunk_index):
        self.script, self.chunk_index = script, chunk_index
        self.is_last, self.num_chunks = chunk_index == len(script) - 1, len(script)

    def propose(self, beams, counts, first=0):
        counts = [counts] * len(beams) if isinstance(counts, int) else counts
        return FakeSteps([], self.chunk_index).propose(beams, counts, first)

    def denoise(self, beams, candidates, until=None):
        return [replace(candidate, step=1) for candidate in candidates]

    def score(self, beams, candidates, **own):
        scores = self.script[self.chunk_index]
        return [replace(c, score=scores[row], chunk_index=self.chunk_index) for row, c in enumerate(candidates)]


def grown(choice, beams):
    made = []
    for index in choice.kept:
        candidate = choice.candidates[index]
        parent = beams[candidate.parent]
        made.append(replace(parent, scores=(*parent.scores, candidate.score), seeds=(*parent.seeds, index)))
    return made


def test_a_period_is_pruned_by_the_mean_of_its_scores():
    script = [[5.0, 0.0], [0.0, 9.0], [3.0, 1.0], [1.0, 2.0], [7.0, 0.0]]
    search, beams, sizes = BeamSearch(1, 2, prune_every=2), [Beam(memory=None)], []
    for chunk_index in range(5):
        beams = grown(search(Scripted(script, chunk_index), beams), beams)
        sizes.append(len(beams))
    assert sizes == [2, 1, 2, 1, 1]  # the last chunk chooses in any case
    # The first chunk's worse candidate has the better period: (0 + 9) / 2 against (5 + 0) / 2.
    assert beams[0].scores == (0.0, 9.0, 3.0, 1.0, 7.0)


@pytest.mark.parametrize("prune_every", [1, 2, 3, 7])
def test_pruning_every_few_chunks_costs_what_its_formula_says(toy_pipeline, embeds, prune_every):
    search = BeamSearch(2, 3, prune_every=prune_every)
    trace = video(toy_pipeline, embeds, search=search).trace
    kept = [2 if (n + 1) % prune_every == 0 or n == 4 else 6 for n in range(5)]
    assert [chunk.work.forwards for chunk in trace.chunks] == [2 * 3 * 4] * 5
    assert [sum(len(c.kept_as) for c in chunk.candidates) for chunk in trace.chunks] == kept
    assert [chunk.work.clean_passes for chunk in trace.chunks] == [*kept[:-1], 0]
    estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
    assert [getattr(estimate, name) for name in WORK] == [worked(trace, name) for name in WORK]


def test_within_a_period_no_candidate_is_dropped_and_a_list_of_budgets_counts_by_its_first_chunk(toy_pipeline, embeds):
    trace = video(toy_pipeline, embeds, search=BeamSearch(budget=[(1, 4), (3, 3), (2, 2)], prune_every=2)).trace
    assert [len(chunk.candidates) for chunk in trace.chunks] == [4, 4, 4, 4, 4]
    assert [c.parent for c in trace.chunks[1].candidates] == [0, 1, 2, 3]


# --- going back


def low_at(chunk, times, low=-5.0):
    """A reward that finds a chunk bad for the first times that it is asked about it."""
    asked = []

    def reward(frames, prompt, fps):
        # The first chunk has 9 frames, and later ones 12 more each in the window.
        if frames.shape[1] == 9 + 12 * chunk and len(asked) < times:
            asked.append(chunk)
            return torch.full((len(frames),), low)
        return frames.mean(dim=(1, 2, 3, 4))

    return reward


@pytest.mark.parametrize("depth, expected", [(0, [3]), (1, [2, 3]), (2, [1, 2, 3]), (9, [0, 1, 2, 3])])
def test_a_bad_chunk_is_made_again_from_older_beams(toy_pipeline, embeds, depth, expected):
    search = Backtracking(BeamSearch(1, 2), bound=-1.0, depth=depth)
    arguments = {"image_reward": None, "video_reward": low_at(3, times=1)}
    trace = video(toy_pipeline, embeds, search=search, **arguments).trace
    assert [attempt.chunk for attempt in trace.given_up] == expected
    assert [len(chunk.candidates) for chunk in trace.chunks] == [2] * 5
    assert "under the bound, -1: back" in trace.given_up[-1].record.notes[0]
    assert not any(candidate.kept for candidate in trace.given_up[-1].record.candidates)
    # What is made again has other noise, and the beams before it are the same.
    for attempt in trace.given_up:
        again = trace.chunks[attempt.chunk]
        old = {candidate.seed for candidate in attempt.record.candidates}
        assert len(old | {candidate.seed for candidate in again.candidates}) == 4
    first = video(toy_pipeline, embeds, search=BeamSearch(1, 2), **{**arguments, "video_reward": low_at(9, 0)}).trace
    for index in range(expected[0]):
        assert trace.chunks[index].candidates == first.chunks[index].candidates


def test_a_chunk_fails_as_often_as_it_may_and_then_stands(toy_pipeline, embeds):
    search = Backtracking(BeamSearch(1, 2), bound=-1.0, depth=1, retries=2)
    trace = video(toy_pipeline, embeds, search=search, image_reward=None, video_reward=low_at(2, times=99)).trace
    assert [attempt.chunk for attempt in trace.given_up] == [1, 2, 1, 2]
    assert [candidate.score for candidate in trace.chunks[2].candidates] == [-5.0, -5.0]
    seeds = [
        {candidate.seed for candidate in record.candidates}
        for record in (*(a.record for a in trace.given_up if a.chunk == 2), trace.chunks[2])
    ]
    assert len(set.union(*seeds)) == 6


def test_work_that_was_given_up_counts_and_stays_within_the_estimate(toy_pipeline, embeds):
    search = Backtracking(BeamSearch(2, 2), bound=-1.0, depth=1, retries=1)
    trace = video(toy_pipeline, embeds, search=search, image_reward=None, video_reward=low_at(2, times=1)).trace
    assert worked(trace, "forwards") == 16 * 5 + 16 * 2
    assert worked(trace, "clean_passes") == 2 * 4 + 2  # chunk 1 was committed twice
    estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
    assert (estimate.least_forwards, estimate.forwards) == (16 * 5, 16 * 5 * 3)
    assert worked(trace, "clean_passes") <= estimate.clean_passes


@pytest.mark.parametrize("max_lag", [None, 0, 1, 3])
def test_a_stream_gives_only_what_cannot_come_again(toy_pipeline, embeds, max_lag):
    search = Backtracking(BeamSearch(1, 2), bound=-1.0, depth=2)
    arguments = {"num_frames": 57, "search": search, "max_lag": max_lag, "image_reward": None, "output_type": "pt"}
    called = video(toy_pipeline, embeds, video_reward=low_at(3, times=1), **arguments)
    generator = torch.Generator().manual_seed(6)
    stream = toy_pipeline.stream(
        prompt_embeds=embeds, generator=generator, video_reward=low_at(3, times=1), **arguments
    )
    chunks = list(stream)
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks]), called.frames[0])
    turned = {attempt.chunk for attempt in called.trace.given_up}
    assert turned == {3 - index for index in range(min(2, 2 if max_lag is None else max_lag) + 1)}


def test_an_endless_stream_may_go_back(toy_pipeline, embeds):
    search = Backtracking(BeamSearch(1, 2), bound=-1.0, depth=1)
    arguments = {"num_frames": None, "horizon": 4, "memory": EMASink(), "image_reward": None}
    stream = toy_pipeline.stream(prompt_embeds=embeds, search=search, video_reward=low_at(3, 2), **arguments)
    chunks = [next(stream) for _ in range(7)]
    assert [chunk.index for chunk in chunks] == list(range(7))
    stream.close()


def test_monitors_and_the_trace_go_back_too(toy_pipeline, embeds, tmp_path):
    search = Backtracking(BeamSearch(2, 2), bound=-1.0, depth=2)
    arguments = {"image_reward": None, "video_reward": low_at(3, times=1), "monitors": {"bright": brightness}}
    trace = video(toy_pipeline, embeds, search=search, trace_thumbnails=True, **arguments).trace
    assert len(trace.monitors["bright"]) == len(trace.chunks) == 5 and len(trace.given_up) == 3
    assert len(trace.best_path()) == 5
    trace.save(tmp_path / "trace.json")
    assert SearchTrace.load(tmp_path / "trace.json") == trace


def test_a_search_of_ones_own_may_go_back_and_must_end_it(toy_pipeline, embeds):
    def forgetful(steps, beams):
        choice = BeamSearch(1, 2)(steps, beams)
        return Choice(choice.candidates, [], back=0) if steps.num_turns < turns else choice

    turns = 3
    trace = video(toy_pipeline, embeds, num_frames=21, search=forgetful).trace
    assert [attempt.chunk for attempt in trace.given_up] == [0, 0, 0, 1, 1, 1]
    turns = math.inf
    with pytest.raises(ValueError, match="forgetful has turned back from chunk 0 256 times"):
        video(toy_pipeline, embeds, num_frames=9, num_inference_steps=1, search=forgetful)


@pytest.mark.parametrize(
    "answer, error, message",
    [
        ({"back": 1}, ValueError, "`back` of the `Choice` of turning is 1; it must be 0 or less"),
        ({"back": -1}, ValueError, "`back` of the `Choice` of turning is -1; it must be 0 or more"),
        ({"back": "1"}, TypeError, "`back` of the `Choice` of turning is '1'"),
        ({"back": 0, "kept": [0]}, ValueError, "turning goes back 0 chunks and keeps candidates"),
    ],
)
def test_a_search_that_goes_back_where_it_cannot_is_told(toy_pipeline, embeds, answer, error, message):
    def turning(steps, beams):
        return replace(Choice(BeamSearch(1, 2)(steps, beams).candidates, []), **answer)

    with pytest.raises(error, match=message):
        video(toy_pipeline, embeds, num_frames=9, search=turning)


# --- looking ahead


@pytest.mark.parametrize("chunks, num_steps", [(1, None), (2, 1), (2, 2), (9, 1)])
@pytest.mark.parametrize(
    "inner", [BeamSearch(2, 2), EarlyPruning(3, 2, after_step=1), EvolutionSearch(2, 3, 1, 0.5)], ids=repr
)
def test_looking_ahead_costs_what_its_formula_says(toy_pipeline, embeds, chunks, num_steps, inner):
    search = Lookahead(inner, chunks=chunks, steps=num_steps)
    trace, alone = (video(toy_pipeline, embeds, search=each).trace for each in (search, inner))
    finished = {BeamSearch: 4, EarlyPruning: 2, EvolutionSearch: 5}[type(inner)]
    ahead = [min(chunks, 4 - n) for n in range(5)]
    for n, (chunk, plain_chunk) in enumerate(zip(trace.chunks, alone.chunks, strict=True)):
        assert chunk.work.forwards == plain_chunk.work.forwards + finished * ahead[n] * (num_steps or 4)
        assert chunk.work.clean_passes == plain_chunk.work.clean_passes + finished * ahead[n]
        assert chunk.work.latents_decoded == plain_chunk.work.latents_decoded + 3 * finished * ahead[n]
    estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
    assert [getattr(estimate, name) for name in WORK] == [worked(trace, name) for name in WORK]


def test_a_candidate_scores_what_it_and_its_rollout_do_on_average(toy_pipeline, embeds):
    trace = video(toy_pipeline, embeds, search=Lookahead(BeamSearch(1, 3), chunks=2, steps=2)).trace
    own = video(toy_pipeline, embeds, search=BeamSearch(1, 3)).trace
    for n, chunk in enumerate(trace.chunks):
        names = [f"ahead.{k}" for k in range(1, min(2, 4 - n) + 1)]
        for candidate in chunk.candidates:
            assert [name for name in candidate.parts if name.startswith("ahead.")] == names
    for seen, plain_one in zip(trace.chunks[0].candidates, own.chunks[0].candidates, strict=True):
        rolled = [seen.parts["ahead.1"], seen.parts["ahead.2"]]
        assert seen.score == pytest.approx((plain_one.score + sum(rolled)) / 3)
        assert (seen.short, seen.long, seen.route) == (plain_one.short, plain_one.long, plain_one.route)


def test_a_rollout_with_all_steps_is_what_would_be_made(toy_pipeline, embeds):
    """With one beam the next chunk's first candidate is the roll-out of the one that was kept."""
    trace = video(toy_pipeline, embeds, search=Lookahead(BeamSearch(1, 2), chunks=1)).trace
    (kept,) = (candidate for candidate in trace.chunks[0].candidates if candidate.kept)
    made, weight = trace.chunks[1].candidates[0], trace.chunks[1].fusion_weight
    assert kept.parts["ahead.1"] == pytest.approx(weight * made.short + (1 - weight) * made.long, rel=1e-4)


def test_looking_ahead_leaves_the_beams_alone(toy_pipeline, embeds):
    seen = []

    def look(steps, beams):
        chunks = [chunk for beam in beams for chunk in (*beam.memory.sinks, *beam.memory.window)]
        held = [each for chunk in chunks for each in (chunk.key, chunk.value)]
        held += [latents for beam in beams for latents in beam.latents]
        before = [each.clone() for each in held]
        choice = Lookahead(BeamSearch(2, 2), chunks=2, steps=1)(steps, beams)
        seen.append(all(map(torch.equal, before, held)))
        return choice

    look.num_beams = 2
    video(toy_pipeline, embeds, search=look)
    assert seen == [True] * 5


# --- stages


@pytest.mark.parametrize(
    "scores, keep, bound, kept",
    [
        ([1.0, 4.0, 2.0, 3.0], "best", 0.0, [1, 3, 2]),
        ([1.0, 4.0, 2.0, 3.0], "median", 0.0, [1, 3]),
        ([2.0, 2.0, 2.0, 1.0], "median", 0.0, [0, 1, 2]),  # ties at the median stay
        ([5.0, None, None, None], "median", 0.0, [0]),
        ([1.0, 4.0, 2.0, 3.0], "bound", 2.5, [1, 3]),
        ([1.0, 4.0, 2.0, 3.0], "bound", 9.0, [1]),  # else the best
        ([None, None, None, None], "bound", 9.0, []),
    ],
)
def test_a_stage_keeps_by_its_rule(scores, keep, bound, kept):
    class Words(FakeSteps):
        def score(self, beams, candidates, **own):
            return super().score(beams, candidates)

    search = StagedSearch(budget=[(3, 2)], keep=keep, bound=bound)
    assert list(search(Words([*scores, None, None]), [Beam(memory=None)]).kept) == kept


def test_stages_have_their_own_numbers_rewards_and_words(toy_pipeline, embeds):
    heard = []

    def listening(frames, prompt, fps):
        heard.append(prompt[0])
        return frames.mean(dim=(1, 2, 3, 4))

    search = StagedSearch(
        budget=[(2, 3), (1, 2), (1, 1)],
        image_reward=[False, None],
        video_reward=[None, listening, None],
        reward_prompt=["the scene", "the motion", None],
    )
    trace = video(toy_pipeline, embeds, search=search, reward_prompt="all of it").trace
    assert [len(chunk.candidates) for chunk in trace.chunks] == [6, 2, 1, 1, 1]
    assert [chunk.work.clean_passes for chunk in trace.chunks] == [2, 1, 1, 1, 0]
    assert heard == ["the motion"]
    assert [c.short is None for c in trace.chunks[0].candidates] == [True] * 6
    assert all(c.score == c.long for c in trace.chunks[0].candidates)
    estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
    assert (estimate.forwards, estimate.clean_passes) == (worked(trace, "forwards"), worked(trace, "clean_passes"))


# --- prompts


def test_more_candidates_for_prompts_whose_parts_are_far_apart():
    search = PromptAdaptive(2, 3, strength=0.5, max_candidates=7)
    numbers = [search.candidates(distance / 10) for distance in range(60)]
    assert numbers[0] == 3 and numbers == sorted(numbers) and numbers[-1] == 7
    assert search.candidates(2 / 3) == 4  # 3 (1 + 1/3), not 3.9999


def test_the_distance_of_a_prompt_is_of_its_tokens_or_given(toy_pipeline, embeds):
    alike = torch.ones(1, 4, 8)
    apart = torch.nn.functional.pad(torch.eye(3, 8)[None], (0, 0, 0, 2))  # the last two are padding
    assert spread_of_tokens(alike) == pytest.approx(0.0, abs=1e-6)
    assert spread_of_tokens(apart) == pytest.approx(1.0)
    assert spread_of_tokens(alike[:, :1]) == 0.0
    wanted = math.floor(2 * (1 + spread_of_tokens(embeds)) + 1e-9)
    trace = video(toy_pipeline, embeds, search=PromptAdaptive(1, 2, max_candidates=9), num_frames=9).trace
    assert len(trace.chunks[0].candidates) == wanted
    given = PromptAdaptive(2, 2, strength=2.0, distance=0.75)
    trace = video(toy_pipeline, embeds, search=given, num_frames=9).trace
    assert len(trace.chunks[0].candidates) == 2 * 5
    assert toy_pipeline.estimate(num_frames=9, search=given, **REWARDS).forwards == 2 * 5 * 4


# --- all of them in one pipeline

ALL = (
    BeamSearch(1, 3, prune_every=2),
    Backtracking(BeamSearch(2, 2), bound=0.5, depth=1, retries=1),
    Backtracking(ParticleSearch(3, 2.0), bound=0.5, depth=2, retries=1),
    Lookahead(BeamSearch(2, 2), chunks=1, steps=1),
    Lookahead(Backtracking(BeamSearch(1, 2), bound=0.5, retries=1), steps=1),
    StagedSearch(budget=[(3, 1), (2, 2)], keep=["median", "best"]),
    PromptAdaptive(2, 2),
    EarlyStop(BeamSearch(1, 2), margin=0.01, patience=2),
    ParticleSearch(3, 5.0),
    EvolutionSearch(2, 3, 1, 0.5, at_step=1, num_beams=2),
    EarlyPruning(4, 2, after_step=2, num_beams=2),
    BestOfN(2),
)


@pytest.mark.parametrize("search", ALL, ids=lambda search: repr(search)[:50])
@pytest.mark.parametrize("memory", [SlidingWindow(), StaticSink(), EMASink(), ROUTED], ids=repr)
def test_every_search_goes_with_every_policy_and_streams_what_a_call_gives(toy_pipeline, embeds, search, memory):
    arguments = {"num_frames": 45, "search": search, "memory": memory, "output_type": "pt", **REWARDS}
    called = video(toy_pipeline, embeds, monitors={"bright": brightness}, **arguments)
    stream = toy_pipeline.stream(prompt_embeds=embeds, generator=torch.Generator().manual_seed(6), **arguments)
    assert torch.equal(torch.cat([chunk.frames for chunk in stream]), called.frames[0])
    assert len(called.trace.best_path()) == 4 == len(called.trace.monitors["bright"])


@pytest.mark.parametrize("search", ALL, ids=lambda search: repr(search)[:50])
def test_no_step_is_run_twice_and_no_prediction_is_decoded_or_scored_twice(toy_pipeline, embeds, search, monkeypatch):
    done = []  # holds what it compares, so that no identity is given twice

    def once(what, *parts):
        assert not any(what == each[0] and all(map(operator.is_, parts, each[1])) for each in done)
        done.append((what, parts))

    def denoise_batch(self, memory, batch, until, made=ChunkSteps._denoise_batch):
        for candidate in batch:
            for step in range(candidate.step, until):  # all that decides what it gives: memory and noise so far
                once(f"step {step}", memory, candidate.noise, *candidate.renoise[:step])
        return made(self, memory, batch, until)

    def decode_batch(self, candidates, rows, state, made=ChunkSteps._decode_batch):
        for row in rows:
            once("decode", candidates[row].prediction)
        return made(self, candidates, rows, state)

    def rewarded(self, candidate, kind, result, made=ChunkSteps._rewarded):
        once(kind, candidate.prediction)
        return made(self, candidate, kind, result)

    for name, method in (("_denoise_batch", denoise_batch), ("_decode_batch", decode_batch), ("_rewarded", rewarded)):
        monkeypatch.setattr(ChunkSteps, name, method)
    video(toy_pipeline, embeds, search=search, num_frames=33)
    kinds = [what for what, _ in done]
    assert kinds.count("decode") == kinds.count("image") == kinds.count("video") > 0


@pytest.mark.parametrize("search", ALL[:9], ids=lambda search: repr(search)[:50])
def test_two_prompts_of_any_search_are_each_its_own_run(toy_pipeline, embeds, search):
    both = torch.cat([embeds, embeds.flip(1)])
    generators = [torch.Generator().manual_seed(seed) for seed in (6, 7)]
    arguments = {"num_frames": 33, "search": search}
    output = video(toy_pipeline, both, generator=generators, **arguments)
    alone = video(toy_pipeline, both[1:], generator=torch.Generator().manual_seed(7), **arguments)
    assert np.array_equal(output.frames[1], alone.frames[0])


@pytest.mark.parametrize("search", ALL[:10], ids=lambda search: repr(search)[:50])
def test_max_lag_goes_with_every_search_that_ranks(toy_pipeline, embeds, search):
    trace = video(toy_pipeline, embeds, search=search, max_lag=1).trace
    assert len(trace.chunks) == 5 and len(trace.best_path()) == 5


# --- numbers that fit no search


@pytest.mark.parametrize(
    "make, error, message",
    [
        (lambda: BeamSearch(2, 2, prune_every=0), ValueError, "`prune_every` of BeamSearch is 0; it must be 1"),
        (
            lambda: BeamSearch(2, budget=lambda index, beams: (1, 1), prune_every=2),
            ValueError,
            "`prune_every` of BeamSearch is 2, and `budget` is a function",
        ),
        (lambda: BeamSearch(20, 20, prune_every=2), ValueError, "400 beams are kept in a period.*for 256"),
        (lambda: Backtracking(BeamSearch(), bound=math.inf), ValueError, "`bound` of Backtracking is inf"),
        (lambda: Backtracking(BeamSearch(), bound=math.nan), ValueError, "`bound` of Backtracking is nan"),
        (lambda: Backtracking(BeamSearch(), bound=0, depth=-1), ValueError, "`depth` of Backtracking is -1"),
        (lambda: Backtracking(BeamSearch(), bound=0, retries=1.5), TypeError, "`retries` of Backtracking is 1.5"),
        (lambda: Backtracking(Backtracking(BeamSearch())), ValueError, "Backtracking, which goes back itself"),
        (lambda: EarlyStop(Backtracking(BeamSearch())), ValueError, r"Use Backtracking\(EarlyStop"),
        (lambda: EarlyStop(BeamSearch(prune_every=2)), ValueError, "does not choose at every chunk"),
        (lambda: Lookahead(BeamSearch(), chunks=0), ValueError, "`chunks` of Lookahead is 0"),
        (lambda: Lookahead(BeamSearch(), steps=0), ValueError, "`steps` of Lookahead is 0"),
        (lambda: Lookahead(3), TypeError, "`inner` is a int"),
        (lambda: StagedSearch(budget=[]), ValueError, "`budget` of StagedSearch is"),
        (
            lambda: StagedSearch(budget=lambda index, beams: (1, 1)),
            TypeError,
            "`budget` of StagedSearch is a function",
        ),
        (lambda: StagedSearch(budget=[(0, 2)]), ValueError, "`num_beams` in `budget.0.` of StagedSearch is 0"),
        (lambda: StagedSearch(keep="worst"), ValueError, "`keep` of StagedSearch is 'worst'.*'median'"),
        (lambda: StagedSearch(keep=["best", 3]), ValueError, r"`keep\[1\]` of StagedSearch is 3"),
        (lambda: StagedSearch(keep=[]), ValueError, "`keep` of StagedSearch is empty"),
        (lambda: StagedSearch(bound=math.nan), ValueError, "`bound` of StagedSearch is nan"),
        (lambda: StagedSearch(reward_prompt=[3]), TypeError, r"`reward_prompt\[0\]` of StagedSearch is a int"),
        (lambda: StagedSearch(image_reward="hps"), TypeError, "`image_reward` of StagedSearch is 'hps'"),
        (lambda: PromptAdaptive(2, 4, max_candidates=3), ValueError, "`max_candidates` of PromptAdaptive is 3.*Use 4"),
        (lambda: PromptAdaptive(strength=-1), ValueError, "`strength` of PromptAdaptive is -1"),
        (lambda: PromptAdaptive(distance=-0.1), ValueError, "`distance` of PromptAdaptive is -0.1"),
        (lambda: PromptAdaptive(2, max_candidates=600), ValueError, "for 512. Use 512 or fewer"),
        (lambda: ParticleSearch(2, 1e31), ValueError, r"`strength` of ParticleSearch is 1e\+31.*Use 1e\+30"),
        (lambda: ParticleSearch(2, 1.0, threshold=1.5), ValueError, "`threshold` of ParticleSearch is 1.5.*Use 1"),
    ],
)
def test_numbers_that_fit_no_search_are_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.parametrize("search", [Lookahead(BeamSearch(2, 2)), Backtracking(BeamSearch(2, 2), bound=0.0)], ids=repr)
def test_scores_of_several_calls_are_not_normalised_within_one(toy_pipeline, embeds, search):
    with nothing_done(toy_pipeline), pytest.raises(ValueError, match="`score_normalization` is 'rank'"):
        video(toy_pipeline, embeds, search=search, score_normalization="rank")
