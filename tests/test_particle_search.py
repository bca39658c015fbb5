"""Particles: laws of resampling, the tilted law on a chain that can be worked out, and the pipeline."""

import itertools
import math
import random
from dataclasses import replace
from typing import get_args, get_type_hints

import pytest
import torch
from conftest import brightness, contrast

from stream_t1.search import Beam, BestOfN, Candidate, EMASink, ParticleSearch
from stream_t1.search.resampling import RESAMPLING, effective_sample_size, normalized_weights

REWARDS = {"image_reward": brightness, "video_reward": contrast}
STAY, NUM_CHUNKS, STRENGTH = 0.7, 4, 1.2
REWARD = {0: -0.5, 1: 1.0}  # of a state


class ChainSteps:
    """A model of two states, which it keeps from chunk to chunk with a probability; a chunk's reward is its state's.

    The state is kept in a beam's `noise`.
    """

    num_chunks, num_steps = NUM_CHUNKS, 1

    def __init__(self, chunk_index, chance, generator):
        self.chunk_index, self.chance, self.generator = chunk_index, chance, generator

    def propose(self, beams, counts, first=0):
        return [
            Candidate(parent, seed=0, noise=self._next(beams[parent]), renoise=())
            for parent, count in enumerate(counts)
            for _ in range(count)
        ]

    def _next(self, beam):
        if beam.noise is None:
            return int(self.chance.random() < 0.5)
        return beam.noise if self.chance.random() < STAY else 1 - beam.noise

    def denoise(self, beams, candidates, until=None):
        return candidates

    def score(self, beams, candidates):
        return [replace(candidate, score=REWARD[candidate.noise], step=1) for candidate in candidates]


def tilted_share() -> float:
    """Of videos that end in state 1, under p(states) exp(strength * last reward), summed over all of them."""
    weight = {0: 0.0, 1: 0.0}
    for states in itertools.product((0, 1), repeat=NUM_CHUNKS):
        chance = 0.5 * math.prod(STAY if a == b else 1 - STAY for a, b in itertools.pairwise(states))
        # Of a video's beginning too, which must not be tilted by more than its end.
        weight[states[-1]] += chance * math.exp(STRENGTH * REWARD[states[-1]])
    return weight[1] / sum(weight.values())


def one_run(search, seed) -> tuple[float, float]:
    """The weighted share of a run's particles that end in state 1, and the run's own weight.

    The product of the mean weights of all resamplings is an unbiased estimate of the law's normaliser, for any number
    of particles: so the shares of many runs, weighted by it, have no bias that more runs would not remove.
    """
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    beams, log_weight = [Beam(memory=None)], 0.0
    for chunk_index in range(NUM_CHUNKS):
        choice = search(ChainSteps(chunk_index, chance, generator), beams)
        if any(choice.log_weights):
            log_weights = choice.log_weights
        else:  # resampled
            log_weight += log_mean_exp([candidate.log_weight for candidate in choice.candidates])
            log_weights = [0.0] * len(choice.kept)
        grown = []
        for index, weight in zip(choice.kept, log_weights, strict=True):
            candidate = choice.candidates[index]
            scores = (*beams[candidate.parent].scores, candidate.score)
            grown.append(Beam(memory=None, noise=candidate.noise, scores=scores, log_weight=weight))
        beams = grown
    weights = [math.exp(beam.log_weight) for beam in beams]
    share = sum(weight for weight, beam in zip(weights, beams, strict=True) if beam.noise == 1) / sum(weights)
    return share, math.exp(log_weight + log_mean_exp([beam.log_weight for beam in beams]))


def log_mean_exp(values) -> float:
    return math.log(sum(map(math.exp, values)) / len(values))


def check_law(search, num_runs=4000):
    runs = torch.tensor([one_run(search, seed) for seed in range(num_runs)], dtype=torch.float64)
    shares, weights = runs.unbind(dim=1)
    share = float((shares * weights).sum() / weights.sum())
    error = float((weights * (shares - share)).std() / weights.mean()) / math.sqrt(num_runs)
    assert 0.001 < error < 0.02
    assert abs(share - tilted_share()) < 3 * error


@pytest.mark.parametrize("threshold", [0.5, 1.0], ids=["adaptive", "always"])
@pytest.mark.parametrize("resampling", list(RESAMPLING))
@pytest.mark.parametrize("potential", ["difference", "max", "sum"])
def test_particles_are_of_the_tilted_law(potential, resampling, threshold):
    check_law(ParticleSearch(4, STRENGTH, potential=potential, resampling=resampling, threshold=threshold))


def test_particles_that_are_never_resampled_are_of_the_same_law():
    check_law(ParticleSearch(4, STRENGTH, threshold=0.0), num_runs=2000)


def test_tempered_particles_are_of_the_same_law():
    check_law(ParticleSearch(4, STRENGTH, tempering=0.3, threshold=0.9))


def test_every_scheme_is_an_argument_and_no_other():
    assert get_args(get_type_hints(ParticleSearch)["resampling"]) == tuple(RESAMPLING)


def test_the_law_is_not_the_models_own():
    assert tilted_share() - 0.5 > 0.3  # so that the tests above would notice particles that are not steered


@pytest.mark.parametrize("name", list(RESAMPLING))
def test_every_scheme_keeps_a_particle_on_average_by_its_weight(name):
    weights = torch.tensor([0.5, 0.3, 0.0, 0.15, 0.05], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    counts = torch.zeros(5, dtype=torch.float64)
    for _ in range(2000):
        drawn = RESAMPLING[name](weights, 8, generator)
        assert len(drawn) == 8 and 2 not in drawn
        counts += torch.bincount(torch.tensor(drawn), minlength=5)
    assert torch.allclose(counts / 2000 / 8, weights, atol=0.01)


@pytest.mark.parametrize("name", ["systematic", "residual"])
def test_these_schemes_keep_at_least_the_whole_part_of_what_is_expected(name):
    weights = torch.tensor([0.45, 0.35, 0.2], dtype=torch.float64)
    drawn = RESAMPLING[name](weights, 10, torch.Generator().manual_seed(1))
    assert [drawn.count(index) >= floor for index, floor in enumerate((4, 3, 2))] == [True] * 3


def test_the_effective_sample_size_goes_from_one_to_all():
    assert effective_sample_size(normalized_weights([0.0] * 6)) == pytest.approx(6)
    assert effective_sample_size(normalized_weights([0.0, -1e9])) == pytest.approx(1)


def seeded():
    return torch.Generator().manual_seed(2)


def video(pipe, embeds, **arguments):
    return pipe(prompt_embeds=embeds, **{"num_frames": 57, "generator": seeded(), "output_type": "pt"}, **arguments)


@pytest.mark.parametrize("rewards", [REWARDS, {"image_reward": False, "video_reward": False}])
def test_without_strength_particles_are_independent_videos(toy_pipeline, embeds, rewards):
    searches = (BestOfN(3), ParticleSearch(3, 0.0, threshold=1.0))
    best, particles = (
        video(toy_pipeline, embeds, search=search, num_videos_per_prompt=3, **rewards) for search in searches
    )
    assert torch.equal(best.frames, particles.frames)
    assert [chunk.candidates for chunk in best.trace.chunks] == [chunk.candidates for chunk in particles.trace.chunks]


def test_log_weights_of_particles_that_are_never_resampled_telescope(toy_pipeline, embeds):
    seen = []

    class Watched(ParticleSearch):
        def __call__(self, steps, beams):
            choice = super().__call__(steps, beams)
            seen.append({choice.candidates[i].parent: w for i, w in zip(choice.kept, choice.log_weights, strict=True)})
            return choice

    for potential in ("difference", "max", "sum"):
        search = Watched(3, 2.0, potential=potential, threshold=0.0)
        trace = video(toy_pipeline, embeds, search=search, num_videos_per_prompt=3, **REWARDS).trace
        last = [c.score for c in sorted(trace.chunks[-1].candidates, key=lambda c: c.parent)]
        assert [seen[-1][parent] for parent in range(3)] == pytest.approx([2.0 * score for score in last], rel=1e-9)


def test_a_strong_pull_leaves_copies_of_the_best(toy_pipeline, embeds):
    trace = video(toy_pipeline, embeds, search=ParticleSearch(4, 1e7, threshold=1.0), **REWARDS).trace
    for chunk in trace.chunks:
        best = max(chunk.candidates, key=lambda c: c.score)
        assert best.kept_as == [0, 1, 2, 3]
        assert len({candidate.seed for candidate in chunk.candidates}) == 4  # copies part with their next noise
    assert [chunk.work.clean_passes for chunk in trace.chunks] == [1, 1, 1, 1, 0]


def test_weights_that_overflow_let_the_best_go_on(toy_pipeline, embeds, caplog):
    trace = video(toy_pipeline, embeds, search=ParticleSearch(3, 1e30), image_reward=False, video_reward=big).trace
    assert caplog.text.count("the weights are not finite") == 5
    assert all(len([c for c in chunk.candidates if c.kept]) == 3 for chunk in trace.chunks)
    assert [chunk.notes for chunk in trace.chunks] == [
        ["the weights are not finite; the best particles go on as equals"]
    ] * 5


def big(frames, prompt, fps):
    return 1e300 * contrast(frames, prompt, fps).double()


def test_a_lost_particle_is_replaced_when_they_are_resampled(toy_pipeline, embeds):
    calls = []

    def second_is_lost(frames, prompt, fps):
        calls.append(1)
        return torch.full((len(frames),), float("nan") if len(calls) == 2 else 1.0)

    search = ParticleSearch(3, 1.0, threshold=1.0)
    trace = video(toy_pipeline, embeds, search=search, image_reward=False, video_reward=second_is_lost).trace
    assert [len(chunk.candidates) for chunk in trace.chunks] == [3] * 5
    assert sum(len(c.kept_as) for c in trace.chunks[0].candidates) == 3 and trace.chunks[0].candidates[1].lost


def test_particles_stream_and_are_estimated(toy_pipeline, embeds):
    search = ParticleSearch(3, 5.0, threshold=0.9)
    called = video(toy_pipeline, embeds, search=search, max_lag=2, **REWARDS)
    arguments = {"num_frames": 57, "generator": seeded(), "output_type": "pt", "search": search, "max_lag": 2}
    chunks = list(toy_pipeline.stream(prompt_embeds=embeds, **arguments, **REWARDS))
    assert torch.equal(torch.cat([chunk.frames for chunk in chunks]), called.frames[0])
    called = video(toy_pipeline, embeds, search=search, **REWARDS)
    estimate = toy_pipeline.estimate(num_frames=57, search=search, **REWARDS)
    assert estimate.least_forwards == estimate.forwards == sum(c.work.forwards for c in called.trace.chunks)
    assert estimate.clean_passes >= sum(chunk.work.clean_passes for chunk in called.trace.chunks)


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ((0, 1.0), ValueError, "`num_particles` of ParticleSearch is 0"),
        ((2, "1"), TypeError, "`strength` of ParticleSearch is '1'"),
        ((2, float("nan")), ValueError, "`strength` of ParticleSearch is nan"),
        ((2, 1.0, "rt"), ValueError, "`potential` of ParticleSearch is 'rt'.*'difference', 'max', 'sum'"),
        ((2, 1.0, "max", "lottery"), ValueError, "`resampling` of ParticleSearch is 'lottery'.*'residual'"),
        ((2, 1.0, "max", "residual", 1.5), ValueError, r"`threshold` of ParticleSearch is 1.5.*\[0, 1\]"),
        ((2, 1.0, "max", "residual", 0.5, -1.0), ValueError, "`tempering` of ParticleSearch is -1.0"),
    ],
)
def test_particles_that_cannot_be_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        ParticleSearch(*arguments)


@pytest.mark.parametrize("search", [ParticleSearch(2, 1.0, "max"), ParticleSearch(2, 1.0, tempering=0.5)])
def test_what_is_corrected_at_the_last_chunk_needs_one(toy_pipeline, embeds, search):
    endless = {"num_frames": None, "horizon": 3, "memory": EMASink()}
    with pytest.raises(ValueError, match="an endless stream has none"):
        toy_pipeline.stream(prompt_embeds=embeds, search=search, **endless, **REWARDS)
    next(toy_pipeline.stream(prompt_embeds=embeds, search=ParticleSearch(1, 1.0), **endless, **REWARDS))
