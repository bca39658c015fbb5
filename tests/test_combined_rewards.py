"""Weighted sums and gates."""

import pytest
import torch
from conftest import brightness, contrast
from tiny_rewards import hpsv3_reward

from stream_t1.rewards import ExposureReward, GatedReward, Reward, RewardOutput, WeightedReward
from stream_t1.rewards.base import RewardFormatError
from stream_t1.rewards.combining import normalized, passing
from stream_t1.rewards.scoring import score_clips
from stream_t1.search import normalize_scores

CLIPS = torch.rand(4, 2, 3, 6, 6, generator=torch.Generator().manual_seed(0)).mul(255).byte()
CLIPS = (CLIPS * torch.tensor([0.2, 1.0, 0.6, 0.4])[:, None, None, None, None]).byte()
WORDS = [""] * 4
BRIGHT = brightness(CLIPS / 255, WORDS, 16.0)
CONTRAST = contrast(CLIPS / 255, WORDS, 16.0)


class Expensive(Reward):
    """A reward that records what it was shown."""

    reads_prompt = False

    def __init__(self):
        super().__init__()
        self.shown = []

    def forward(self, frames, prompt, fps):
        self.shown.append(frames)
        return RewardOutput(100 * frames.mean(dim=(1, 2, 3, 4)), {"part": frames[:, 0, 0, 0, 0]})


def fails_on_dark(frames, prompt, fps):
    if bool((frames.mean(dim=(1, 2, 3, 4)) < 0.15).any()):
        raise RuntimeError("too dark")
    return brightness(frames, prompt, fps)


def test_a_weighted_reward_is_the_sum_and_names_what_it_was_made_from():
    output = WeightedReward([brightness, contrast], [2.0, -1.0])(CLIPS, WORDS, 16.0)
    assert torch.allclose(output.score, 2 * BRIGHT - CONTRAST, atol=1e-6)
    assert torch.allclose(output.parts["brightness"], BRIGHT) and torch.allclose(output.parts["contrast"], CONTRAST)


def test_parts_of_parts_and_equal_names_are_kept_apart():
    output = WeightedReward([ExposureReward(), brightness, brightness], [1, 1, 1])(CLIPS, WORDS, 16.0)
    names = ["ExposureReward", "ExposureReward.dark", "ExposureReward.bright", "brightness_1", "brightness_2"]
    assert list(output.parts) == names


@pytest.mark.parametrize("method", ["zscore", "rank"])
def test_normalisation_is_over_the_candidates_of_the_call(method):
    output = WeightedReward([brightness, contrast], [1.0, 0.5], normalize=method)(CLIPS, WORDS, 16.0)
    expected = torch.tensor(normalize_scores(BRIGHT.tolist(), method))
    expected += 0.5 * torch.tensor(normalize_scores(CONTRAST.tolist(), method))
    assert torch.allclose(output.score, expected.float(), atol=1e-5)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [3.0], [2.0, 1.0, 2.0, 5.0], []])
@pytest.mark.parametrize("method", [None, "zscore", "rank"])
def test_rewards_and_the_search_normalise_alike(scores, method):
    ours = normalized(torch.tensor(scores), method).tolist()
    assert ours == pytest.approx(normalize_scores(scores, method), abs=1e-6)


def test_a_clip_that_one_reward_loses_is_lost_and_no_part_of_the_normalisation():
    reward = WeightedReward([fails_on_dark, contrast], [1.0, 0.0], normalize="rank")
    results = score_clips(reward, CLIPS, "", 16.0, name="video_reward")
    assert [result.score for result in results] == [None, 1.0, 0.5, 0.0]
    assert "`fails_on_dark` raised RuntimeError: too dark" in results[0].problem


def test_a_format_error_of_an_inner_reward_is_raised():
    with pytest.raises(RewardFormatError, match="`<lambda>` gave a int"):
        score_clips(WeightedReward([lambda *_: 3], [1.0]), CLIPS, "", 16.0, name="video_reward")


def test_a_gate_keeps_clips_from_the_expensive_reward():
    expensive = Expensive()
    results = score_clips(
        GatedReward(brightness, expensive, bound=0.25, at_least=1), CLIPS, "", 16.0, name="video_reward"
    )
    assert [len(frames) for frames in expensive.shown] == [2]
    assert torch.allclose(expensive.shown[0], CLIPS[[1, 2]] / 255)
    assert [result.score is None for result in results] == [True, False, False, True]
    assert results[0].gated.startswith("gated out: brightness scored 0.0") and results[0].problem is None
    assert results[1].score == pytest.approx(100 * BRIGHT[1].item(), rel=1e-5) and "part" in results[1].parts
    assert results[0].parts == {"gate": pytest.approx(BRIGHT[0].item())}


def test_a_clip_that_passes_and_cannot_be_scored_is_lost_not_gated():
    gate = GatedReward(contrast, fails_on_dark, bound=0.0, at_least=1)
    results = score_clips(gate, CLIPS, "", 16.0, name="video_reward")
    assert results[0].score is None and results[0].gated is None and "too dark" in results[0].problem
    assert all(result.problem is None for result in results[1:])


def test_at_least_so_many_pass_a_gate_the_best_of_the_others_first():
    assert passing([0.1, 0.4, 0.2, 0.3], bound=0.35, at_least=2) == [1, 3]
    assert passing([0.1, 0.4, 0.2, 0.3], bound=0.15, at_least=2) == [1, 2, 3]
    assert passing([None, 0.1], bound=0.5, at_least=2) == [1]


def test_a_gate_that_could_leave_too_few_beams_is_refused_before_any_work():
    gate = GatedReward(brightness, contrast, bound=0.5, at_least=2)
    gate.check_request(["words"], num_beams=2)
    with pytest.raises(ValueError, match="at_least=3"):
        gate.check_request(["words"], num_beams=3)


def test_combined_rewards_read_what_their_parts_read_and_move_with_them():
    class Reads(Expensive):
        reads_prompt = reads_fps = True

    module = torch.nn.Linear(2, 2)
    module.forward = lambda frames, prompt, fps: frames.mean(dim=(1, 2, 3, 4)).float()
    reward = WeightedReward([Reads(), module, brightness], [1, 1, 1])
    assert reward.reads_prompt and reward.reads_fps and not WeightedReward([brightness], [1]).reads_prompt
    assert reward.to(torch.float64).dtype == module.weight.dtype == torch.float64
    reward.offload()
    assert reward.rewards[0]._offloads and not reward._offloads


@pytest.mark.parametrize(
    "combined",
    [
        lambda reward: WeightedReward([brightness, reward], [1.0, 1.0]),
        lambda reward: GatedReward(brightness, reward, bound=0.0, at_least=1),
    ],
)
def test_a_prompt_that_a_part_cannot_read_is_an_error_of_the_call_and_no_lost_clip(combined):
    with pytest.raises(ValueError, match=r"`prompt` contains <\|im_end\|>"):
        combined(hpsv3_reward())(CLIPS, ["a sign: <|im_end|>"] * 4, 16.0)


def test_mistakes_in_a_combination_are_refused():
    with pytest.raises(ValueError, match="one weight per reward"):
        WeightedReward([brightness], [1.0, 2.0])
    with pytest.raises(ValueError, match='"zscore" or "rank"'):
        WeightedReward([brightness], [1.0], normalize="softmax")
    with pytest.raises(TypeError, match=r"`rewards\[0\]` is a int"):
        WeightedReward([3], [1.0])
    for number in (float("nan"), float("inf"), "1", None, True):
        with pytest.raises((TypeError, ValueError), match=r"`weights\[1\]` is .* it must be a finite number"):
            WeightedReward([brightness, contrast], [1.0, number])
        with pytest.raises((TypeError, ValueError), match="`bound` is .* it must be a finite number"):
            GatedReward(brightness, contrast, bound=number, at_least=2)
    gate = GatedReward(brightness, contrast, bound=0.5, at_least=2)
    with pytest.raises(TypeError, match=r"GatedReward\(gate, WeightedReward"):
        WeightedReward([gate], [1.0])
