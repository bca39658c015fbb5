"""The checker against clips whose content is known, and the figures of it that are kept."""

import json

import pytest

from stream_t1.demo import CHECKPOINT
from stream_t1.demo.checker_validation import (
    NEITHER,
    RESULTS,
    balanced_accuracy,
    bent,
    blob,
    clips_of,
    confusion,
    generated_confusion,
    melted,
    other_shape,
    wobbly,
)
from stream_t1.demo.clips import SHAPES, held_out_captions


@pytest.mark.parametrize("outline", [blob, melted, other_shape], ids=lambda outline: outline.__name__)
def test_an_object_of_another_shape_is_neither_of_them(outline):
    captions = held_out_captions(6)
    matrix = confusion(clips_of(captions, outline, seed=1), captions, has_shape=False)["shape"]
    assert matrix == {NEITHER: {NEITHER: 6}}


def test_a_pixel_of_deformation_leaves_most_shapes_their_names_and_five_take_them():
    captions = held_out_captions(12)
    kept = confusion(clips_of(captions, wobbly, seed=1), captions, has_shape=True)["shape"]
    assert balanced_accuracy(kept) >= 0.75
    lost = confusion(clips_of(captions, bent, seed=1), captions, has_shape=False)["shape"]
    assert balanced_accuracy(lost) >= 0.75


def test_another_shape_keeps_the_color_the_background_and_the_motion():
    captions = held_out_captions(6)
    matrices = confusion(clips_of(captions, blob, seed=1), captions, has_shape=False)
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
        generated_confusion(CHECKPOINT, {"transformer_sha256": "0" * 64})
