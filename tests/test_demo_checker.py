"""The checker and the rewards of the demo, on clips whose content is known."""

import pytest
import torch
from torch.nn import functional

from stream_t1.demo.checker import check
from stream_t1.demo.clips import ATTRIBUTES, MOTIONS, Caption, held_out_captions, render_clip
from stream_t1.demo.rewards import LegibilityReward, MotionReward
from stream_t1.demo.score import summarize_verdicts

CAPTION = Caption(shape="triangle", color="red", background="white", motion="left")


def clip(caption: Caption = CAPTION, num_frames: int = 45, seed: int = 0) -> torch.Tensor:
    return render_clip(caption, num_frames, seed).float() / 255


def blurred(frames: torch.Tensor) -> torch.Tensor:
    return functional.avg_pool2d(frames, 5, stride=1, padding=2, count_include_pad=False)


def followed(frames: torch.Tensor, caption: Caption) -> list[bool]:
    verdict = check(frames)
    return [verdict.follows(caption, name) for name in ATTRIBUTES]


@pytest.mark.parametrize("num_frames", [12, 45])
def test_clean_clips_are_read_without_a_mistake(num_frames):
    for index, caption in enumerate(held_out_captions(24)):
        assert all(followed(clip(caption, num_frames, index), caption)), caption.text


def test_colors_and_motion_survive_blur_and_noise():
    noise = torch.Generator().manual_seed(0)
    for index, caption in enumerate(held_out_captions(18)):
        frames = blurred(clip(caption, seed=index))
        frames = (frames + 0.04 * torch.randn(frames.shape, generator=noise)).clamp(0, 1)
        verdict = check(frames)
        assert (verdict.color, verdict.background, verdict.motion) == (
            caption.color,
            caption.background,
            caption.motion,
        )


def test_a_shape_that_is_none_of_the_three_has_no_name():
    frames = clip(Caption(shape="circle", color="red", background="white", motion="up"))
    squeezed = functional.interpolate(frames, scale_factor=(1.0, 0.55), mode="bilinear")
    padded = torch.cat([squeezed, frames[..., :1].expand(-1, -1, -1, 64 - squeezed.shape[-1])], dim=-1)
    assert check(padded).shape is None


def test_a_half_melted_shape_has_no_name():
    caption = Caption(shape="triangle", color="red", background="white", motion="up")
    melted = (clip(caption) + clip(Caption(shape="cross", color="red", background="white", motion="up"))) / 2
    assert check(melted).shape is None


def test_a_shape_that_stands_still_has_no_motion():
    assert check(clip()[:1].expand(45, -1, -1, -1)).motion is None


def test_a_jump_is_measured_in_pixels():
    frames = clip()
    jumped = torch.cat([frames[:20], frames[20:].roll(10, dims=2)])
    assert check(frames).largest_jump < 1.5
    assert check(jumped).largest_jump == pytest.approx(10, abs=1.5)


def test_leaving_over_a_border_is_no_jump():
    assert check(clip(num_frames=81)).largest_jump < 1.5


def test_an_empty_video_shows_its_background_alone():
    verdict = check(torch.full((12, 3, 64, 64), 0.9))
    assert verdict.background == "white"
    assert (verdict.color, verdict.motion, verdict.shape, verdict.presence) == (None, None, None, 0.0)


def test_larger_videos_get_the_same_verdict():
    frames = functional.interpolate(clip(), scale_factor=2.0, mode="bilinear")
    assert check(frames).follows(CAPTION, "motion") and check(frames).shape == "triangle"


def test_too_few_frames_are_refused():
    with pytest.raises(ValueError, match="F >= 9"):
        check(clip(num_frames=5))


def test_a_summary_counts_videos_that_follow_everything_and_every_shape_alike():
    circle = Caption(shape="circle", color="red", background="white", motion="up")
    right, wrong = check(clip(circle)), check(clip(CAPTION))
    summary = summarize_verdicts([right, wrong, wrong, wrong], [circle, CAPTION, CAPTION, circle])
    assert summary["all_attributes"] == 0.75 and summary["shape"] == 0.75
    assert summary["shape_balanced"] == pytest.approx(0.75)  # circles one of two, triangles both, no crosses


@pytest.mark.parametrize("name", ["shape", "color", "background"])
def test_legibility_prefers_the_prompt_that_fits(name):
    frames = clip()[None, :12]
    wrong = {"shape": "circle", "color": "green", "background": "black"}
    other = Caption(**{**CAPTION.__dict__, name: wrong[name]})
    reward = LegibilityReward()
    assert reward(frames, [CAPTION.text], 16).score > reward(frames, [other.text], 16).score + 0.1


@pytest.mark.parametrize("motion", [motion for motion in MOTIONS if motion != "left"])
def test_motion_reward_prefers_the_motion_that_is_there(motion):
    frames = clip()[None]
    other = Caption(**{**CAPTION.__dict__, "motion": motion})
    reward = MotionReward()
    assert reward(frames, [CAPTION.text], 16).score > reward(frames, [other.text], 16).score + 0.1


def test_motion_reward_falls_with_a_jump_and_with_a_change_of_size():
    frames = clip()
    jumped = torch.cat([frames[:20], frames[20:].roll(10, dims=2)])
    parts = MotionReward()(torch.stack([frames, jumped]), [CAPTION.text] * 2, 16).parts
    assert parts["continuous"][0] > parts["continuous"][1] + 0.2


@pytest.mark.parametrize("reward, num_frames", [(LegibilityReward(), 1), (MotionReward(), 9)])
def test_rewards_are_finite_for_any_prompt_size_and_length(reward, num_frames):
    frames = torch.rand(3, num_frames, 3, 48, 80)
    frames[1] = 0
    output = reward(frames, ["", "a horse", "a red circle moving up"], 16)
    assert output.score.shape == (3,) and output.score.isfinite().all()
    assert all(values.shape == (3,) for values in output.parts.values())


@pytest.mark.parametrize("reward, num_frames", [(LegibilityReward(), 12), (MotionReward(), 45)])
def test_rewards_score_a_video_alike_alone_and_in_a_batch(reward, num_frames):
    captions = held_out_captions(3)
    frames = torch.stack([clip(caption, num_frames, index) for index, caption in enumerate(captions)])
    together = reward(frames, [caption.text for caption in captions], 16).score
    alone = torch.cat([reward(frames[i : i + 1], [captions[i].text], 16).score for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5)
