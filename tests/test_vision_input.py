"""Sampled frames, sizes, patches, and resizing as PIL and as torchvision do it."""

import json

import numpy as np
import pytest
import torch
from conftest import REFERENCE
from PIL import Image
from tiny_rewards import clips, hpsv3_reward

from stream_t1.rewards import hpsv3, resizing, videoalign
from stream_t1.rewards.vision_input import patchify, resized_size, sampled_indices

GOLDEN = json.loads((REFERENCE / "rewards" / "frame_sampling.json").read_text())


def described(row):
    return "-".join(str(row[key]) for key in ("frames", "height", "width", "fps") if key in row)


@pytest.mark.parametrize("row", GOLDEN["videoalign"], ids=described)
def test_videoalign_samples_and_resizes_as_the_original(row):
    assert sampled_indices(row["frames"], row["fps"], 2.0) == row["indices"]
    bounds = {"min_pixels": videoalign.MIN_PIXELS, "max_pixels": videoalign.MAX_PIXELS}
    assert list(resized_size(row["height"], row["width"], factor=28, **bounds)) == row["resized"]


@pytest.mark.parametrize("row", GOLDEN["hpsv3"], ids=described)
def test_hpsv3_resizes_as_the_original(row):
    bounds = {"min_pixels": hpsv3.NUM_PIXELS, "max_pixels": hpsv3.NUM_PIXELS}
    assert list(resized_size(row["height"], row["width"], factor=28, **bounds)) == row["resized"]


@pytest.mark.parametrize("num_frames, num_sampled", [(88, 12), (104, 12), (7000, 768)])
def test_the_number_of_sampled_frames_is_even_and_bounded(num_frames, num_sampled):
    # 5.5 seconds at 2 fps are 11 frames, 5.5 pairs, which round to 6; 6.5 pairs round to 6 too. 768 are the most.
    assert len(sampled_indices(num_frames, 16.0, 2.0)) == num_sampled


def test_a_clip_of_one_frame_is_repeated():
    assert sampled_indices(1, 16.0, 2.0) == [0, 0]


def test_frames_too_elongated_are_refused():
    with pytest.raises(ValueError, match="10x2001 are too elongated.*200 times"):
        resized_size(10, 2001, factor=28, min_pixels=784, max_pixels=7840)


def pil_resize(pictures, height, width):
    arrays = pictures.mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    resized = [np.array(Image.fromarray(array).resize((width, height), Image.Resampling.BICUBIC)) for array in arrays]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).float()


@pytest.mark.parametrize("height, width", [(480, 832), (240, 320), (64, 96)])
def test_the_resize_is_pils_bicubic(height, width):
    noise = torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(0))
    difference = (resizing.resize_as_pil(noise, 336, 588) - pil_resize(noise, 336, 588)).abs()
    # PIL rounds its weights to 22 bits, so that a sum very near a half may fall on the other side; where the second
    # pass sums such a level, it may be two off. Noise is the worst case.
    assert difference.max() <= 2 and (difference > 0).float().mean() < 2e-3


def test_a_resize_to_the_same_size_changes_nothing():
    noise = torch.rand(1, 3, 28, 28)
    assert torch.equal(resizing.resize_as_pil(noise, 28, 28), noise.mul(255).round())
    assert torch.equal(resizing.resize_as_torchvision(noise, 28, 28), noise.mul(255).round())


def test_a_score_moves_by_less_than_a_thousandth_against_pil(monkeypatch):
    frames = clips(2, 2, 90, 160)
    ours = hpsv3_reward()(frames, ["a", "b"]).score
    monkeypatch.setattr(resizing, "resize_as_pil", pil_resize)
    assert (hpsv3_reward()(frames, ["a", "b"]).score - ours).abs().max() < 1e-3


def test_patches_are_in_the_order_of_merging():
    frames = torch.arange(2 * 2 * 8 * 8).reshape(1, 2, 2, 8, 8)  # two frames, two channels, 8 by 8 numbered pixels
    patches, grids = patchify(frames, patch_size=2, merge_size=2, temporal_patch_size=2)
    assert grids.tolist() == [[1, 4, 4]] and patches.shape == (16, 16)
    corners = patches[:, 0].tolist()  # the first pixel of each patch: four patches of a square, then the next square
    assert corners[:6] == [0, 2, 16, 18, 4, 6]
    # Within a patch: both frames of a channel (128 apart), two by two pixels of each; then the next channel (64 apart)
    assert patches[0].tolist() == [0, 1, 8, 9, 128, 129, 136, 137, 64, 65, 72, 73, 192, 193, 200, 201]


def test_grids_are_counted_per_clip():
    patches, grids = patchify(torch.zeros(3, 6, 3, 56, 28), patch_size=14, merge_size=2, temporal_patch_size=2)
    assert grids.tolist() == [[3, 4, 2]] * 3 and patches.shape == (3 * 3 * 4 * 2, 3 * 2 * 14 * 14)


def test_patches_are_those_of_transformers_image_processor():
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    picture = clips(1, 1, 56, 84)[0]  # (1, 3, H, W) uint8, a size that needs no resize
    size = {"shortest_edge": 56 * 84, "longest_edge": 56 * 84}
    theirs = Qwen2VLImageProcessorPil(size=size)([picture[0].permute(1, 2, 0).numpy()], return_tensors="pt")
    pixels = resizing.normalize(picture.float())[None].expand(-1, 2, -1, -1, -1)
    ours, grids = patchify(pixels, patch_size=14, merge_size=2, temporal_patch_size=2)
    assert torch.allclose(ours, theirs["pixel_values"], atol=1e-5)
    assert grids.tolist() == theirs["image_grid_thw"].tolist()
