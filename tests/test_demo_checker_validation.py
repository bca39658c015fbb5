"""The checker against clips whose content is known, and the figures of it that are kept."""

import json

import pytest

from stream_t1.demo import CHECKPOINT
from stream_t1.demo.checker import check
from stream_t1.demo.checker_validation import (
    NEITHER,
    NUM_FRAMES,
    RESULTS,
    KnownClips,
    balanced_accuracy,
    confusion,
    generated_confusion,
)
from stream_t1.demo.clips import SHAPES, held_out_captions
from stream_t1.demo.outlines import bent, blob, clips_of, melted, other_shape, wobbly


def checked(outline, num_clips, *, has_shape):
    captions = held_out_captions(num_clips)
    return confusion(KnownClips(clips_of(captions, outline, NUM_FRAMES, seed=1), captions, has_shape), check)


@pytest.mark.parametrize("outline", [blob, melted, other_shape], ids=lambda outline: outline.__name__)
def test_an_object_of_another_shape_is_neither_of_them(outline):
    assert checked(outline, 6, has_shape=False)["shape"] == {NEITHER: {NEITHER: 6}}


def test_a_pixel_of_deformation_leaves_most_shapes_their_names_and_five_take_them():
    assert balanced_accuracy(checked(wobbly, 12, has_shape=True)["shape"]) >= 0.75
    assert balanced_accuracy(checked(bent, 12, has_shape=False)["shape"]) >= 0.75


def test_another_shape_keeps_the_color_the_background_and_the_motion():
    matrices = checked(blob, 6, has_shape=False)
    assert all(balanced_accuracy(matrices[name]) == 1 for name in ("color", "background", "motion"))


def test_balanced_accuracy_counts_every_true_value_alike():
    assert balanced_accuracy({"circle": {"circle": 1, "cross": 3}, "cross": {"cross": 8}}) == pytest.approx(0.625)


def test_the_kept_figures_are_of_this_world_and_name_blobs_neither():
    sets = json.loads(RESULTS.read_text())["sets"]
    assert set(sets["clean"]["confusion"]["shape"]) == set(SHAPES)
    assert sets["clean"]["balanced_accuracy"]["shape"] == 1
    assert sets["blobs"]["balanced_accuracy"]["shape"] >= 0.95
    assert sets["reconstructed"]["balanced_accuracy"]["shape"] >= 0.95
    assert sets["generated"]["balanced_accuracy"]["shape"] >= 0.9


def test_labels_of_another_checkpoint_are_refused():
    with pytest.raises(ValueError, match="not the one whose samples were labelled"):
        generated_confusion(CHECKPOINT, {"transformer_sha256": "0" * 64}, check)
