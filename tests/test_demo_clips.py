"""The demo's world and its captions."""

import pytest
import torch

from stream_t1.demo.clips import (
    ATTRIBUTES,
    BACKGROUNDS,
    COLORS,
    FRAME_PIXELS,
    MOTIONS,
    NUM_HELD_OUT,
    SHAPES,
    Caption,
    all_captions,
    draw_clip,
    draw_clips,
    held_out_captions,
    parse_caption,
    render_clip,
    train_captions,
)

VALUES = {"shape": SHAPES, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "motion": MOTIONS}


def test_every_caption_is_parsed_back_from_its_text():
    assert all(parse_caption(caption.text) == caption for caption in all_captions())


def test_parsing_needs_neither_word_order_nor_all_attributes():
    red_circle = Caption(shape="circle", color="red", background="white", motion="left")
    assert parse_caption("red circle going left, white background") == red_circle
    assert parse_caption("On a WHITE background a circle, which is red, moves left.") == red_circle
    assert parse_caption("a triangle") == Caption(shape="triangle")


def test_moving_in_a_circle_is_a_motion_and_not_a_shape():
    assert parse_caption("a cross moving in a circle") == Caption(shape="cross", motion="in circles")
    assert parse_caption("moving in circles") == Caption(motion="in circles")


def test_a_prompt_about_something_else_names_nothing():
    assert parse_caption("an astronaut rides a horse") == Caption()


def test_held_out_captions_are_never_trained_on():
    assert len(held_out_captions()) == NUM_HELD_OUT
    assert set(held_out_captions()).isdisjoint(train_captions())
    assert set(held_out_captions()) | set(train_captions()) == set(all_captions())


def test_held_out_captions_are_the_same_list_for_everybody():
    first = held_out_captions(1)[0]
    assert first == Caption(shape="circle", color="green", background="black", motion="down")


def test_more_held_out_captions_than_there_are_is_refused():
    with pytest.raises(ValueError, match="1 to 48"):
        held_out_captions(49)


@pytest.mark.parametrize("captions", [train_captions(), held_out_captions()], ids=["train", "held_out"])
def test_every_attribute_value_is_well_covered(captions):
    for name in ATTRIBUTES:
        for value in VALUES[name]:
            assert sum(getattr(caption, name) == value for caption in captions) >= 5


def test_what_a_caption_leaves_open_is_drawn():
    drawn = draw_clips([Caption(background="black")] * 8, 1, seed=0)
    assert len({tuple(clip.frames[0].flatten(1).amax(dim=1).tolist()) for clip in drawn}) > 1


def test_the_same_seed_draws_the_same_clip():
    caption = held_out_captions(1)[0]
    assert torch.equal(render_clip(caption, 9, seed=3), render_clip(caption, 9, seed=3))
    assert not torch.equal(render_clip(caption, 9, seed=3), render_clip(caption, 9, seed=4))


def test_a_clip_drawn_longer_begins_with_the_shorter_one():
    caption = held_out_captions(1)[0]
    assert torch.equal(render_clip(caption, 21, seed=0)[:9], render_clip(caption, 9, seed=0))


def test_frames_are_bytes_of_the_promised_size():
    frames = render_clip(Caption(), 5)
    assert frames.dtype == torch.uint8 and frames.shape == (5, 3, FRAME_PIXELS, FRAME_PIXELS)


@pytest.mark.parametrize("motion", MOTIONS)
def test_motions_never_end_and_never_lose_the_shape(motion):
    clip = draw_clip(Caption(motion=motion), 400, seed=1)
    steps = clip.centers.diff(dim=0).norm(dim=1)
    assert steps.min() > 0.3 and steps.max() < 1.3
    assert (clip.coverage.mean(dim=(1, 2)) > 0.05).all()


def test_circles_stay_inside():
    centers = draw_clip(Caption(motion="in circles"), 400, seed=2).centers
    assert centers.min() >= 14 and centers.max() <= FRAME_PIXELS - 14
