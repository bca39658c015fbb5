"""Unit 2: how scores are fused and who is kept."""

import pytest
import torch

from stream_t1.search import fuse_scores, keep_best, normalize_scores


def test_the_first_chunk_is_ranked_on_the_long_score_alone():
    assert fuse_scores(5.0, 2.0, chunk_index=0, num_chunks=7, cap=0.4) == 2.0


def test_the_short_score_gains_weight_up_to_the_cap():
    weights = [fuse_scores(1.0, 0.0, chunk_index=n, num_chunks=7, cap=0.4) for n in range(7)]
    assert weights == pytest.approx([0, 1 / 6, 2 / 6, 0.4, 0.4, 0.4, 0.4])


def test_a_video_of_one_chunk_is_ranked_on_the_long_score():
    assert fuse_scores(5.0, 2.0, chunk_index=0, num_chunks=1, cap=0.4) == 2.0


def test_scores_may_be_tensors():
    fused = fuse_scores(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), chunk_index=6, num_chunks=7, cap=0.4)
    torch.testing.assert_close(fused, torch.tensor([0.4, 0.6]))


def test_zscores_have_mean_0_and_deviation_1():
    assert normalize_scores([1.0, 2.0, 3.0], "zscore") == pytest.approx([-(1.5**0.5), 0, 1.5**0.5])


def test_equal_scores_have_zscore_0():
    assert normalize_scores([2.0, 2.0], "zscore") == [0.0, 0.0]


def test_ranks_run_from_0_to_1_and_ties_share_theirs():
    assert normalize_scores([5.0, -1.0, 5.0, 90.0], "rank") == pytest.approx([0.5, 0.0, 0.5, 1.0])
    assert normalize_scores([5.0], "rank") == [0.0]


def test_best_are_kept_first_ties_in_order_of_arrival_and_lost_ones_never():
    assert keep_best([1.0, 3.0, None, 3.0, 2.0], num_beams=3) == [1, 3, 4]
    assert keep_best([None, 0.5], num_beams=2) == [1]
