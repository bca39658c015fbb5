"""The learned verdict: what it reads, what it answers, and that it never depends on where things are."""

import hashlib
import json

import pytest
import torch

from stream_t1.demo import CHECKPOINT
from stream_t1.demo.clips import ATTRIBUTES, SHAPES, Caption, all_captions, draw_clips, held_out_captions
from stream_t1.demo.judge import JUDGE, Judge, Reading, load_judge
from stream_t1.demo.outlines import blob, clips_of, melted, other_shape


@pytest.fixture(scope="module")
def untrained() -> Judge:
    torch.manual_seed(0)
    return Judge().eval()


def reading(**probabilities: list[list[float]]) -> Reading:
    return Reading({name: torch.tensor(values) for name, values in probabilities.items()})


def test_there_is_one_window_for_every_chunk_from_the_third_on(untrained):
    lengths = {
        frames: len(untrained.read(torch.rand(frames, 3, 64, 64)).probabilities["shape"]) for frames in (33, 81)
    }
    assert lengths == {33: 1, 81: 5}  # 33 frames are three chunks of latents, 81 seven


def test_a_window_is_read_alone(untrained):
    video = torch.rand(57, 3, 64, 64)
    last = untrained.read(video[24:57])
    assert torch.allclose(untrained.read(video).probabilities["motion"][2:], last.probabilities["motion"], atol=1e-6)


def test_the_answer_is_the_likeliest_on_the_mean_over_the_windows():
    read = reading(background=[[0.9, 0.1, 0.0], [0.3, 0.7, 0.0], [0.2, 0.8, 0.0]])  # means 0.467, 0.533
    assert read.answer("background") == "white"


def test_the_last_value_is_neither_and_follows_no_caption_that_says_one():
    read = reading(background=[[0.1, 0.2, 0.7]])
    assert read.answer("background") is None
    assert not read.follows(Caption(background="white"), "background")
    assert read.follows(Caption(color="red"), "background")


def test_the_probability_of_a_caption_is_the_product_of_what_it_says():
    read = reading(background=[[0.5, 0.2, 0.3], [1.0, 0.0, 0.0]], shape=[[0.1, 0.8, 0.1, 0.0], [0.0, 0.25, 0.75, 0.0]])
    caption = Caption(background="black", shape="triangle")
    assert read.probability(caption).tolist() == pytest.approx([0.4, 0.25])
    assert read.probability(Caption()).tolist() == [1, 1]


def test_borders_are_joined(untrained):
    window = torch.rand(1, 33, 3, 64, 64)
    moved = window.roll((8, 24), dims=(3, 4))  # by whole cells of the coarsest grid
    assert torch.allclose(untrained(window)["shape"], untrained(moved)["shape"], atol=1e-5)


def test_other_sizes_are_resized(untrained):
    window = torch.rand(1, 33, 3, 64, 64)
    large = window.repeat_interleave(2, dim=3).repeat_interleave(2, dim=4)
    with torch.no_grad():
        difference = (untrained(large)["color"] - untrained(window)["color"]).abs().max()
        spread = (untrained(torch.zeros_like(window))["color"] - untrained(window)["color"]).abs().max()
    assert difference < 0.2 * spread


@pytest.mark.parametrize("shape", [(32, 3, 64, 64), (81, 1, 64, 64), (1, 81, 3, 64, 64)])
def test_too_few_frames_and_other_axes_are_refused(untrained, shape):
    with pytest.raises(ValueError, match="F >= 33"):
        untrained.read(torch.rand(shape))


def test_the_shipped_judge_is_small_and_reads_clips_as_they_were_drawn():
    judge = load_judge()
    assert sum(weight.numel() for weight in judge.parameters()) < 300_000
    captions = all_captions()[::12]
    readings = [judge.read(clip.frames / 255) for clip in draw_clips(captions, 45, seed=7_000_000)]
    followed = [read.follows(c, name) for read, c in zip(readings, captions, strict=True) for name in ATTRIBUTES]
    assert sum(followed) >= 47  # of 48
    right, wrong = (
        torch.cat([read.probability(c) for read, c in zip(readings, said, strict=True)]).mean()
        for said in (captions, captions[1:] + captions[:1])
    )
    assert right > 0.8 and wrong < 0.1


@pytest.mark.parametrize("outline", [blob, melted, other_shape], ids=lambda outline: outline.__name__)
def test_the_shipped_judge_calls_other_objects_neither(outline):
    judge = load_judge()
    videos = clips_of(held_out_captions(8), outline, 45, seed=7_000_000)
    assert sum(judge.read(video).answer("shape") is None for video in videos) >= 7


def test_the_kept_figures_are_of_this_world_and_this_vae_and_reach_what_is_promised():
    kept = json.loads((JUDGE / "judge.json").read_text())
    vae = (CHECKPOINT / "vae/diffusion_pytorch_model.safetensors").read_bytes()
    assert kept["training"]["vae_sha256"] == hashlib.sha256(vae).hexdigest()
    shares = {name: values["balanced_accuracy"] for name, values in kept["sets"].items()}
    assert set(kept["sets"]["clean"]["confusion"]["shape"]) == set(SHAPES)
    assert all(share >= 0.98 for share in shares["reconstructed"].values())
    assert all(share >= 0.9 for share in shares["captions not held out"].values())
    assert min(shares[name]["shape"] for name in ("blobs", "other shapes")) >= 0.95
