"""Calls of a reward."""

import pytest
import torch

from stream_t1.rewards import Reward, RewardOutput
from stream_t1.rewards.arguments import check_rewards, chosen_reward
from stream_t1.rewards.base import as_component
from stream_t1.rewards.scoring import score_clips

CLIPS = torch.arange(3, dtype=torch.uint8)[:, None, None, None, None].expand(3, 2, 3, 4, 4) * 100


def mean(frames, prompt, fps):
    return frames.mean(dim=(1, 2, 3, 4))


def scores(reward):
    return [result.score for result in score_clips(reward, CLIPS, "words", 16.0, name="image_reward")]


def test_frames_are_floats_from_0_to_1():
    assert scores(mean) == pytest.approx([0.0, 100 / 255, 200 / 255])


def test_parts_are_read_per_clip():
    def reward(frames, prompt, fps):
        return RewardOutput(mean(frames, prompt, fps), {"half": mean(frames, prompt, fps) / 2})

    results = score_clips(reward, CLIPS, "words", 16.0, name="image_reward")
    assert [result.parts["half"] for result in results] == pytest.approx([0.0, 50 / 255, 100 / 255])


def test_a_batch_that_raises_is_repeated_clip_by_clip(caplog):
    def one_at_a_time(frames, prompt, fps):
        if len(frames) > 1:
            raise RuntimeError("out of memory")
        return mean(frames, prompt, fps)

    assert scores(one_at_a_time) == pytest.approx([0.0, 100 / 255, 200 / 255])
    assert "one by one" in caplog.text


def test_an_error_in_the_format_is_not_repeated():
    calls = []

    def reward(frames, prompt, fps):
        calls.append(1)
        return torch.zeros(len(frames), 2)

    with pytest.raises(TypeError, match=r"shape \(3, 2\)"):
        scores(reward)
    assert len(calls) == 1


def test_the_argument_goes_before_the_component_and_false_means_none():
    other = Reward()
    assert chosen_reward("image_reward", None, mean) is mean
    assert chosen_reward("image_reward", other, mean) is other
    assert chosen_reward("image_reward", False, mean) is None


def test_only_a_reward_that_says_so_reads_the_prompt():
    without_words = {"words": [None], "num_beams": 1, "has_pixels": True}
    check_rewards({"image_reward": mean}, **without_words)
    with pytest.raises(ValueError, match="reward_prompt"):
        check_rewards({"image_reward": Reward()}, **without_words)


def test_parts_may_be_missing():
    assert scores(lambda frames, prompt, fps: RewardOutput(mean(frames, prompt, fps), None))[0] == 0.0


def test_a_plain_module_can_be_a_component():
    class Mean(torch.nn.Module):
        def forward(self, frames, prompt, fps):
            return frames.mean(dim=(1, 2, 3, 4))

    component = as_component(Mean())
    assert scores(component) == scores(mean)
    assert component.device.type == "cpu" and component.dtype == torch.float32 and not component.reads_prompt
    assert as_component(mean) is mean and as_component(None) is None
