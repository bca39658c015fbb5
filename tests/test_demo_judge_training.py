"""The judge's training: clips whose truth is how they were drawn, and disturbances that change no answer."""

import json
import random

import pytest
import torch

from stream_t1.demo.checker import check
from stream_t1.demo.clips import ATTRIBUTES, BACKGROUNDS, COLORS, VALUES, Caption, held_out_captions
from stream_t1.demo.judge import Reading, load_judge, targets_of
from stream_t1.demo.judge_clips import ODDITIES, draw_labelled_clip, draw_oddities
from stream_t1.demo.judge_validation import calibration
from stream_t1.demo.train_judge import (
    JudgeSettings,
    disturb,
    drawn_windows,
    main,
    train_judge,
)

CAPTION = Caption(shape="triangle", color="red", background="black", motion="in circles")


def known_clip(oddities, index=0, caption=CAPTION):
    return draw_labelled_clip(caption, oddities, range(45), f"test/{index}")


def test_a_clip_without_oddities_shows_its_caption():
    clips = [known_clip({}, index, caption) for index, caption in enumerate(held_out_captions(6))]
    assert [clip.truth for clip in clips] == held_out_captions(6)
    followed = [check(clip.frames / 255).follows(clip.truth, name) for clip in clips for name in ATTRIBUTES]
    assert sum(followed) >= 23  # of 24: some shapes wobble


@pytest.mark.parametrize("attribute", ["shape", "color", "background", "motion"])
def test_an_oddity_takes_its_attribute_and_leaves_the_others(attribute):
    for kind in ODDITIES[attribute]:
        truth = known_clip({attribute: kind}, index=1).truth
        assert getattr(truth, attribute) is None
        kept = [name for name in ATTRIBUTES if name != attribute and (kind, name) != ("two objects", "color")]
        assert all(getattr(truth, name) == getattr(CAPTION, name) for name in kept)


def test_two_objects_keep_a_color_that_both_have():
    clips = [known_clip({"shape": "two objects"}, index) for index in range(6)]
    for clip in clips:
        greenish_or_blue = (clip.frames[0, 1:].amax(dim=0) > 80).sum()  # every other colour has much of one of them
        assert (greenish_or_blue > 50) == (clip.truth.color is None)
    assert {clip.truth.color for clip in clips} == {"red", None}


def test_what_fades_is_gone_over_a_third_of_every_window():
    for index in range(8):
        clip = known_clip({"presence": "fading"}, index)
        assert clip.truth == Caption(background="black")
        red = clip.frames[:, 0].flatten(1).amax(dim=1) > 100
        assert all(red[start : start + 33].float().mean() < 2 / 3 for start in (0, 12))


def test_colors_without_a_name_are_far_from_all_that_have_one():
    for index in range(20):
        clip = known_clip({"color": "without a name", "background": "without a name"}, index)
        pixels = clip.frames[0].flatten(1).T / 255
        background = pixels.mode(dim=0).values
        color = pixels[(pixels - background).norm(dim=1).argmax()]
        for seen, named in ((background, BACKGROUNDS), (color, COLORS)):
            assert (torch.tensor(list(named.values())) / 255 - seen).norm(dim=1).min() > 0.29


@pytest.mark.parametrize("kind", ["still", "crawling", "turning"])
def test_the_checker_names_no_odd_motion_either(kind):
    for index in range(6):
        clip = known_clip({"motion": kind}, index, Caption("circle", "red", "black", "left"))
        assert check(clip.frames / 255).motion is None


def test_oddities_come_as_often_as_they_should():
    generator = random.Random(0)
    drawn = [draw_oddities(generator) for _ in range(4000)]
    for attribute, shares in ODDITIES.items():
        for kind, share in shares.items():
            assert sum(odd.get(attribute) == kind for odd in drawn) / 4000 == pytest.approx(share, abs=0.018)


def test_the_last_target_is_neither():
    assert targets_of(CAPTION) == [0, 0, 4, 1]
    assert targets_of(Caption()) == [len(values) for values in VALUES.values()] == [4, 2, 6, 3]


def test_a_disturbed_window_moves_as_a_whole():
    seen = drawn_windows(4, seed=0, step=0).seen.float() / 255
    disturbed = disturb(seen, torch.Generator().manual_seed(0))
    assert disturbed.shape == seen.shape
    light = (seen.mean(dim=(3, 4)) - disturbed.mean(dim=(3, 4))).abs().max()
    steps, disturbed_steps = (windows.diff(dim=1).abs().mean(dim=(1, 2, 3, 4)) for windows in (seen, disturbed))
    assert light < 0.04 and (disturbed - seen).abs().max() > 0.5
    assert (disturbed_steps < 1.2 * steps + 0.04).all()


def test_every_step_draws_windows_of_its_own_and_the_same_in_every_run():
    first, again, next_step = (drawn_windows(2, seed=3, step=step).seen for step in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, next_step)


def test_training_learns_backgrounds_within_seconds():
    judge = train_judge(drawn_windows(32, seed=0, step=0), JudgeSettings(num_steps=20, batch_windows=6), seed=1)
    fresh = drawn_windows(48, seed=1, step=0)
    answers = judge.classify(fresh.seen / 255)["background"].argmax(dim=1)
    assert (answers == fresh.targets[:, 1]).float().mean() > 0.6  # two fifths are the most common answer's


def test_training_repeats_exactly():
    windows = drawn_windows(4, seed=0, step=0)
    first, again, other = (
        train_judge(windows, JudgeSettings(num_steps=2, batch_windows=4), seed=seed).hidden.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_calibration_compares_confidence_with_accuracy():
    sure = torch.tensor([[0.9, 0.1, 0.0], [0.6, 0.4, 0.0]])
    measured = calibration([Reading({"background": sure})], [Caption(background="black")], "background")
    assert measured["mean_probability"] == pytest.approx(0.75) and measured["accuracy"] == 1
    assert measured["log_loss"] == pytest.approx(0.3081, abs=1e-4)  # mean of -ln 0.9 and -ln 0.6


def test_the_command_writes_a_judge_that_loads_and_says_what_it_was_made_of(tmp_path):
    main(["--output", str(tmp_path / "judge"), "--smoke"])
    kept = json.loads((tmp_path / "judge" / "judge.json").read_text())
    assert kept["training"]["settings"]["num_steps"] == 2 and len(kept["training"]["vae_sha256"]) == 64
    assert {"clean", "reconstructed", "blobs", "captions not held out"} <= set(kept["sets"])
    assert len(load_judge(tmp_path / "judge").read(torch.rand(33, 3, 64, 64)).probabilities["motion"]) == 1
