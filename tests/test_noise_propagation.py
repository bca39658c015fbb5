"""Unit 1: what a candidate starts from."""

import itertools

import pytest
import torch

from stream_t1.search import propagate_noise
from stream_t1.search.noise_propagation import (
    base_seed,
    candidate_generator,
    draw_noise,
    independent_seed,
    reference_seed,
    split_evenly,
)

DRAWS = (100, 100, 10, 10)  # 10^6


@pytest.mark.parametrize("beta", [-0.9, -0.1, 0.0, 0.5])
def test_propagated_noise_is_standard_normal_and_correlates_by_beta(beta):
    parent, fresh = draw_noise([candidate_generator(1), candidate_generator(2)], DRAWS)
    noise = propagate_noise(parent, fresh, beta)
    # The standard error of a mean or correlation of 10^6 draws is 1e-3: five of them.
    assert abs(noise.mean()) < 5e-3
    assert noise.std() == pytest.approx(1.0, abs=5e-3)
    assert torch.corrcoef(torch.stack((parent.flatten(), noise.flatten())))[0, 1] == pytest.approx(beta, abs=5e-3)
    share_beyond_two = (noise.abs() > 2).float().mean()
    assert share_beyond_two == pytest.approx(0.0455, abs=1.5e-3)  # of N(0, 1)


def test_the_authors_seeds_draw_the_parents_noise_again_so_that_it_shrinks():
    parent = draw_noise([candidate_generator(reference_seed(42, 0, 0, 0, 42))], DRAWS)
    fresh = draw_noise([candidate_generator(reference_seed(42, 1, 0, 0, 42))], DRAWS)
    # One generation: -0.1 x + sqrt(0.99) x.
    assert propagate_noise(parent, fresh, -0.1).std() == pytest.approx(0.895, abs=2e-3)
    twice = propagate_noise(propagate_noise(parent, fresh, -0.1), fresh, -0.1)
    assert twice.std() == pytest.approx(0.906, abs=2e-3)


def test_the_first_chunk_starts_from_fresh_noise():
    fresh = torch.randn(3, 4, 2, 2)
    assert propagate_noise(None, fresh, -0.1) is fresh


def test_reference_seeds_are_the_authors():
    assert [reference_seed(42, 0, 0, index, 42) for index in range(4)] == [42, 43, 44, 45]
    assert reference_seed(42, 3, 1, 0, 2043) == 2043
    assert reference_seed(42, 10, 1, 3, 4143) == 42 + 10_000 + 100 + 3


def test_no_two_independent_candidates_of_a_run_share_a_stream():
    places = itertools.product(range(200), range(8), range(16))
    seeds = [independent_seed(42, *place, 0) for place in places]
    # The CPU generator reads the lower 32 bits of a seed and no more.
    assert len({seed % 2**32 for seed in seeds}) == len(seeds)
    assert all(0 <= seed < 2**53 for seed in seeds)


def test_the_cpu_generator_reads_the_lower_32_bits_only():
    one, other = candidate_generator(5), candidate_generator(5 + 2**32)
    assert torch.equal(torch.randn(20, generator=one), torch.randn(20, generator=other))


def test_runs_of_neighbouring_seeds_share_no_stream():
    places = list(itertools.product(range(100), range(4), range(8)))
    runs = [{independent_seed(seed, *place, 0) for place in places} for seed in range(20)]
    assert len(set.union(*runs)) == 20 * len(places)


def test_candidate_0_of_chunk_0_is_the_plain_sample_of_its_seed():
    assert independent_seed(1234, 0, 0, 0, 0) == reference_seed(1234, 0, 0, 0, 0) == 1234


def test_noise_does_not_depend_on_how_candidates_are_batched():
    together = draw_noise([candidate_generator(seed) for seed in (7, 8, 9)], (3, 4, 5, 7))
    alone = draw_noise([candidate_generator(8)], (3, 4, 5, 7))
    assert torch.equal(together[1], alone[0])


def test_independent_mode_advances_the_generator_and_reference_mode_does_not():
    generator = torch.Generator().manual_seed(3)
    assert base_seed(generator, "reference") == base_seed(generator, "reference") == 3
    assert base_seed(generator, "independent") != base_seed(generator, "independent")


def test_without_a_generator_the_base_follows_the_global_seed():
    bases = [base_seed(None, "independent") for seed in (1, 1, 2) if torch.manual_seed(seed)]
    assert bases[0] == bases[1] != bases[2]


@pytest.mark.parametrize(
    "total, parts, shares", [(4, 1, [4]), (4, 2, [2, 2]), (4, 3, [2, 1, 1]), (6, 4, [2, 1, 2, 1])]
)
def test_candidates_are_shared_out_over_the_beams_that_are_left(total, parts, shares):
    assert split_evenly(total, parts) == shares


def test_streams_wrap_around_after_2_to_the_14_chunks():
    assert independent_seed(7, 2**14 + 3, 1, 2, 0) == independent_seed(7, 3, 1, 2, 0)
