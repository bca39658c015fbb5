"""Light rewards on tiny random CLIP and DINO models of the real classes, and on pixels alone."""

import math
import shutil
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_rewards import clips, save_layers, save_tiny_clip, save_tiny_dino
from torch.nn import functional
from transformers import CLIPImageProcessorPil, CLIPModel

from stream_t1.rewards import (
    AestheticReward,
    BackgroundConsistencyReward,
    ChunkSeamReward,
    CLIPScoreReward,
    DynamicDegreeReward,
    ExposureReward,
    PickScoreReward,
    SharpnessReward,
    SubjectConsistencyReward,
    TemporalFlickerReward,
)
from stream_t1.rewards.clip import clip_pixels
from stream_t1.rewards.consistency import IMAGENET_MEAN, IMAGENET_STD, consistency
from stream_t1.rewards.resizing import CLIP_MEAN, CLIP_STD

FRAMES = clips(2, 3)
WORDS = ["a red dog", "a"]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clip")
    save_tiny_clip(folder)
    return folder


@pytest.fixture(scope="module")
def dino_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dino")
    save_tiny_dino(folder)
    return folder


def cosines(folder):
    """Cosines of every frame to its text, (clips, frames): one picture at a time, embeddings by hand."""
    model, reward = CLIPModel.from_pretrained(folder), CLIPScoreReward.from_pretrained(folder)
    table = torch.zeros(FRAMES.shape[:2])
    for i, (clip, words) in enumerate(zip(FRAMES, WORDS, strict=True)):
        text = model.get_text_features(**reward.tokenizer(words, return_tensors="pt")).pooler_output[0]
        for j, frame in enumerate(clip.float() / 255):
            picture = model.get_image_features(clip_pixels(frame[None], 32)).pooler_output[0]
            table[i, j] = picture @ text / picture.norm() / text.norm()
    return table.detach()


@pytest.mark.parametrize("reward", [CLIPScoreReward, PickScoreReward, BackgroundConsistencyReward])
def test_a_reward_on_clip_refuses_a_folder_of_another_model(reward, dino_folder):
    with pytest.raises(ValueError, match=r"no whole CLIPModel: its config says 'vit', and logit_scale, text_model"):
        reward.from_pretrained(dino_folder)


def test_a_reward_on_dino_refuses_a_folder_of_another_model(clip_folder):
    with pytest.raises(ValueError, match=r"no whole ViTModel: its config says 'clip', and embeddings.cls_token"):
        SubjectConsistencyReward.from_pretrained(clip_folder)


@pytest.mark.parametrize("reshape", [None, lambda weight: weight[:8].clone()])
def test_a_clip_with_projections_missing_or_of_another_shape_is_refused(clip_folder, tmp_path, reshape):
    folder = shutil.copytree(clip_folder, tmp_path / "clip")
    weights = load_file(folder / "model.safetensors")
    text, visual = (weights.pop(f"{side}_projection.weight") for side in ("text", "visual"))
    if reshape:
        weights |= {"text_projection.weight": reshape(text), "visual_projection.weight": reshape(visual)}
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="text_projection.weight, visual_projection.weight are missing or of another"):
        PickScoreReward.from_pretrained(folder)


def test_clipscore_is_two_and_a_half_times_the_cosine_and_never_negative(clip_folder):
    score = CLIPScoreReward.from_pretrained(clip_folder)(FRAMES, WORDS).score
    expected = 2.5 * cosines(clip_folder).clamp(min=0).mean(dim=1)
    assert torch.allclose(score, expected, atol=1e-5) and cosines(clip_folder).std() > 1e-3


def test_pickscore_is_the_cosine_times_the_models_scale(clip_folder):
    score = PickScoreReward.from_pretrained(clip_folder, tokenizer=clip_folder)(FRAMES, WORDS).score
    scale = CLIPModel.from_pretrained(clip_folder).logit_scale.exp().item()
    assert torch.allclose(score, scale * cosines(clip_folder).mean(dim=1), atol=1e-4)


def test_a_prompt_longer_than_the_text_tower_is_cut(clip_folder):
    reward = CLIPScoreReward.from_pretrained(clip_folder)
    scores = [reward(FRAMES[:1], ["x" * length]).score for length in (24, 60)]
    assert torch.equal(*scores)


@pytest.mark.parametrize("words", ["a <|endoftext|> sign", "a <|ENDOFTEXT|> sign"])
def test_a_prompt_with_a_token_of_clips_own_is_refused_by_a_call_and_before_a_search(clip_folder, words):
    reward = CLIPScoreReward.from_pretrained(clip_folder)
    with pytest.raises(ValueError, match=r"`prompt` contains <\|endoftext\|>"):
        reward(FRAMES, ["a dog", words])
    with pytest.raises(ValueError, match=r"`prompt` contains <\|endoftext\|>"):
        reward.check_request([words], num_beams=1)


def test_a_padding_character_may_occur_in_a_prompt(clip_folder):
    reward = CLIPScoreReward.from_pretrained(clip_folder)
    reward.tokenizer.add_special_tokens({"pad_token": "!"})
    reward.check_prompts(["a dog!"])


def test_frame_stride_and_micro_batches_of_a_clip_reward(clip_folder):
    whole = PickScoreReward.from_pretrained(clip_folder)(FRAMES[:, [0, 2]], WORDS).score
    reward = PickScoreReward.from_pretrained(clip_folder, frame_stride=2, micro_batch_size=1)
    assert torch.allclose(reward(FRAMES, WORDS).score, whole, atol=1e-5)


SIZES = [(32, 35), (35, 32), (33, 90), (90, 33), (40, 47), (61, 200), (37, 37), (32, 32)]  # odd, wide and tall


def cropped_by_hand(picture: torch.Tensor, side: int) -> torch.Tensor:
    """torchvision's centre crop of (..., H, W): Python rounds a half to the even number."""
    top, left = (int(round((length - side) / 2.0)) for length in picture.shape[-2:])
    return picture[..., top : top + side, left : left + side]


def resized_size(height: int, width: int, side: int) -> tuple[int, int]:
    """torchvision's size for one number: that of the shorter side, the longer one rounded down."""
    short, long = min(height, width), max(height, width)
    sizes = side, int(side * long / short)
    return sizes if height <= width else sizes[::-1]


def normalized(levels: torch.Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> torch.Tensor:
    mean, std = (torch.tensor(values)[:, None, None] for values in (mean, std))
    return (levels.float().div(255.0) - mean) / std


@pytest.mark.parametrize("height, width", SIZES)
def test_clip_reads_what_openais_preprocessor_makes(height, width):
    """That of OpenAI's package: PIL's bicubic resize, then torchvision's crop."""
    picture = clips(1, 1, height, width)[0]
    image = Image.fromarray(picture[0].permute(1, 2, 0).numpy())
    image = image.resize(resized_size(height, width, 32)[::-1], Image.Resampling.BICUBIC)
    levels = cropped_by_hand(torch.tensor(np.array(image)).permute(2, 0, 1), 32)
    expected = normalized(levels, CLIP_MEAN, CLIP_STD)
    assert (clip_pixels(picture / 255, 32)[0] - expected).abs().max() < 0.02  # a level of 256 is 0.015


@pytest.mark.parametrize("height, width", SIZES)
def test_pickscore_reads_what_transformers_preprocessor_makes(height, width):
    picture = clips(1, 1, height, width)[0]
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    theirs = processor(Image.fromarray(picture[0].permute(1, 2, 0).numpy()), return_tensors="pt").pixel_values
    assert (clip_pixels(picture / 255, 32, PickScoreReward.crop) - theirs).abs().max() < 0.02


@pytest.mark.parametrize("name", ["head.safetensors", "head.pth"])
def test_the_aesthetic_layers_read_the_normalised_embedding(clip_folder, tmp_path, name):
    layers = save_layers(tmp_path / name)
    score = AestheticReward.from_pretrained(clip_folder, head=tmp_path / name)(FRAMES, ["", ""]).score
    model, scores = CLIPModel.from_pretrained(clip_folder), []
    for clip in FRAMES.float() / 255:
        embeds = functional.normalize(model.get_image_features(clip_pixels(clip, 32)).pooler_output, dim=-1)
        scores.append(layers[1](layers[0](embeds)).mean())
    assert torch.allclose(score, torch.stack(scores), atol=1e-5)


@pytest.mark.parametrize("name", ["head.safetensors", "head.pth"])
def test_one_linear_layer_is_laions_first_aesthetic_head(clip_folder, tmp_path, name):
    layer = torch.nn.Linear(16, 1)
    save_file(layer.state_dict(), tmp_path / name) if "safe" in name else torch.save(
        layer.state_dict(), tmp_path / name
    )
    score = AestheticReward.from_pretrained(clip_folder, head=tmp_path / name)(FRAMES, ["", ""]).score
    save_file({f"layers.0.{k}": v for k, v in layer.state_dict().items()}, tmp_path / "same.safetensors")
    same = AestheticReward.from_pretrained(clip_folder, head=tmp_path / "same.safetensors")(FRAMES, ["", ""]).score
    assert torch.equal(score, same) and score.std() > 0


def test_a_head_with_activations_between_its_layers_is_refused(clip_folder, tmp_path):
    state = {}
    for number, (inputs, outputs) in {0: (16, 8), 3: (8, 4), 6: (4, 1)}.items():  # linear, ReLU, dropout, and again
        state |= {f"layers.{number}.{k}": v for k, v in torch.nn.Linear(inputs, outputs).state_dict().items()}
    torch.save(state, tmp_path / "ava+logos-l14-reluMSE.pth")
    with pytest.raises(ValueError, match="2 modules between layers.0 and layers.3.*an activation and a dropout"):
        AestheticReward.from_pretrained(clip_folder, head=tmp_path / "ava+logos-l14-reluMSE.pth")


def test_a_head_with_more_than_layers_is_refused_by_name(clip_folder, tmp_path):
    save_layers(tmp_path / "head.safetensors")
    state = load_file(tmp_path / "head.safetensors") | {"scale": torch.ones(1)}
    save_file(state, tmp_path / "head.safetensors")
    with pytest.raises(ValueError, match=r"'scale': \(1,\)"):
        AestheticReward.from_pretrained(clip_folder, head=tmp_path / "head.safetensors")


def test_a_compressed_head_is_refused_without_being_unpacked(clip_folder, tmp_path):
    torch.save({"weight": torch.zeros(1, 16), "bias": torch.zeros(1)}, tmp_path / "head.pth")
    with zipfile.ZipFile(tmp_path / "head.pth") as archive:
        contents = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "head.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    with pytest.raises(ValueError, match="head.pth can't be read as a file of tensors.* record .* is compressed"):
        AestheticReward.from_pretrained(clip_folder, head=tmp_path / "head.pth")


def test_aesthetic_layers_for_another_clip_are_refused(clip_folder, tmp_path):
    save_layers(tmp_path / "head.safetensors", sizes=(24, 1))
    with pytest.raises(ValueError, match=r"weight': \(1, 24\).*the 16 numbers of this CLIP"):
        AestheticReward.from_pretrained(clip_folder, head=tmp_path / "head.safetensors")


@pytest.mark.parametrize("name", ["head.safetensors", "head.pth"])
@pytest.mark.parametrize("damage", [lambda content: content[:-40], lambda content: b"<html>", lambda content: b""])
def test_a_damaged_file_of_aesthetic_layers_is_refused(clip_folder, tmp_path, name, damage):
    save_layers(tmp_path / name)
    (tmp_path / name).write_bytes(damage((tmp_path / name).read_bytes()))
    with pytest.raises(ValueError, match=f"{name} can't be read as a file of tensors"):
        AestheticReward.from_pretrained(clip_folder, head=tmp_path / name)


@pytest.mark.parametrize(
    "content",
    [
        {"layers.0.weight": torch.zeros(1, 16)},
        {"layers.0.bias": torch.zeros(1)},
        {"layers.0.weight": torch.zeros(1, 16), "layers.0.bias": torch.zeros(2)},
        {"layers.0.weight": torch.zeros(16), "layers.0.bias": torch.zeros(1)},
        {"layers.zero.weight": torch.zeros(1, 16)},
        {"linear.weight": torch.zeros(1, 16)},
        torch.zeros(1, 16),
    ],
)
def test_a_file_without_whole_aesthetic_layers_is_refused(clip_folder, tmp_path, content):
    torch.save(content, tmp_path / "head.pth")
    with pytest.raises(ValueError, match="must be `layers.N.weight` and `layers.N.bias` that lead from the 16"):
        AestheticReward.from_pretrained(clip_folder, head=tmp_path / "head.pth")


def test_consistency_is_the_mean_of_the_cosines_to_the_first_frame_and_to_the_one_before():
    angles = torch.tensor([[0.0, 60.0, 180.0]]).deg2rad()
    features = torch.stack([angles.cos(), angles.sin()], dim=2) * torch.tensor([1.0, 5.0, 2.0])[:, None]
    # Frame 2: cos 60 to both. Frame 3: cos 120 to the one before, cos 180 to the first, both below 0.
    assert consistency(features).item() == pytest.approx(((0.5 + 0.5) / 2 + (0 + 0) / 2) / 2)


@pytest.mark.parametrize("kind", ["subject", "background"])
def test_a_still_clip_is_consistent_and_a_changing_one_is_less(kind, clip_folder, dino_folder):
    if kind == "subject":
        reward = SubjectConsistencyReward.from_pretrained(dino_folder)
    else:
        reward = BackgroundConsistencyReward.from_pretrained(clip_folder)
    still = FRAMES[:1, :1].expand(1, 3, -1, -1, -1)
    scores = reward(torch.cat([still, FRAMES[:1]]), ["", ""]).score
    assert scores[0].item() == pytest.approx(1.0, abs=1e-5) and 0 < scores[1] < 0.9999
    assert reward(FRAMES[:1, :1], [""]).score.item() == 1.0


def vbench_pixels(kind: str, frames: torch.Tensor, side: int) -> torch.Tensor:
    """Input of VBench's model for frames (F, 3, H, W) uint8.

    VBench makes float tensors of the decoded frames before it resizes them, without antialiasing, so no value is
    rounded or clamped.
    """
    mode = "bilinear" if kind == "subject" else "bicubic"
    levels = functional.interpolate(frames.float(), resized_size(*frames.shape[-2:], side), mode=mode)
    if kind == "subject":
        return normalized(levels, IMAGENET_MEAN, IMAGENET_STD)
    return normalized(cropped_by_hand(levels, side), CLIP_MEAN, CLIP_STD)


def vbench_consistency(features: torch.Tensor) -> float:
    """VBench's loop over the features (F, D) of one video."""
    features, total = functional.normalize(features, dim=-1), 0.0
    for i in range(1, len(features)):
        before, first = (functional.cosine_similarity(features[j], features[i], dim=0).item() for j in (i - 1, 0))
        total += (max(0.0, before) + max(0.0, first)) / 2
    return total / (len(features) - 1)


@pytest.mark.parametrize("height, width", SIZES)
@pytest.mark.parametrize("kind", ["subject", "background"])
def test_consistency_is_vbenchs_on_any_size(kind, height, width, clip_folder, dino_folder):
    frames = clips(1, 3, height, width)
    frames[..., :4, :] = 255 * (frames[..., :4, :] > 127)  # hard edges, where bicubic values leave 0 to 255
    if kind == "subject":
        reward = SubjectConsistencyReward.from_pretrained(dino_folder)
        pixels = vbench_pixels(kind, frames[0], 224)
        features = reward.model(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 0]
    else:
        reward = BackgroundConsistencyReward.from_pretrained(clip_folder)
        features = reward.model.get_image_features(vbench_pixels(kind, frames[0], 32)).pooler_output
    assert reward(frames, [""]).score.item() == pytest.approx(vbench_consistency(features), abs=1e-5)


def test_dino_reads_frames_of_any_shape_by_their_shorter_side(dino_folder):
    reward, seen = SubjectConsistencyReward.from_pretrained(dino_folder), []
    reward.model.register_forward_pre_hook(lambda module, args: seen.append(tuple(args[0].shape)))
    assert torch.isfinite(reward(clips(1, 2, 40, 60), [""]).score).all() and seen == [(2, 3, 224, 336)]


def levels(*values, size=8):
    """A clip whose frames are of one colour each, in levels of 8 bits."""
    return torch.tensor(values, dtype=torch.uint8)[None, :, None, None, None].expand(1, -1, 3, size, size)


def score(reward, frames, fps=16.0):
    return reward(frames, [""] * len(frames), fps).score.item()


def test_temporal_flicker_is_vbenchs_formula():
    # Differences of 10 and 40 levels: (255 - 25) / 255.
    assert score(TemporalFlickerReward(), levels(100, 110, 70)) == pytest.approx(230 / 255)
    assert score(TemporalFlickerReward(), levels(100)) == 1.0


@pytest.mark.parametrize("height, width", SIZES)
def test_temporal_flicker_is_vbenchs_on_any_size(height, width):
    frames = clips(1, 4, height, width)
    pairs = zip(frames[0, :-1].numpy().astype(np.float32), frames[0, 1:].numpy().astype(np.float32), strict=True)
    expected = (255.0 - np.mean([np.mean(np.abs(before - after)) for before, after in pairs])) / 255.0
    assert score(TemporalFlickerReward(), frames) == pytest.approx(expected, abs=1e-6)
    assert score(TemporalFlickerReward(), (frames + 0.3) / 255) == pytest.approx(expected, abs=1e-6)  # as 8 bits


def test_sharpness_is_the_variance_of_the_laplacian():
    frames = torch.zeros(1, 1, 3, 5, 5, dtype=torch.uint8)
    frames[..., 2, 2] = 255
    # Of the nine inner pixels one has the Laplacian -4, its four neighbours 1: mean 0, mean square 20 / 9.
    assert score(SharpnessReward(), frames) == pytest.approx(20 / 9, rel=1e-5)
    assert score(SharpnessReward(), levels(128)) == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="3x3 is the least"):
        score(SharpnessReward(), levels(128, size=2))


def test_exposure_counts_pixels_that_are_neither_black_nor_white():
    output = ExposureReward()(levels(0, 128, 255, 255), [""])
    assert output.score.item() == pytest.approx(0.25)
    assert output.parts["dark"].item() == pytest.approx(0.25) and output.parts["bright"].item() == pytest.approx(0.5)


def texture(side=128):
    return torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(2)).mul(255).byte()


def test_dynamic_degree_is_the_speed_of_what_moves():
    # 3 and 4 pixels per frame pair of 2 frames at 16 fps: 5 pixels of 128 in an eighth of a second.
    frames = torch.stack([texture().roll((3 * step // 2, 4 * step // 2), (2, 3)) for step in range(0, 9, 2)], dim=1)
    frames = frames.repeat_interleave(2, dim=1)  # every second frame is the one before again
    assert score(DynamicDegreeReward(), frames) == pytest.approx(5 / 128 * 8, rel=1e-4)


def test_what_stands_still_has_no_dynamic_degree_noise_or_not():
    still = texture()[:, None].expand(1, 9, -1, -1, -1)
    assert score(DynamicDegreeReward(), still) == 0.0
    assert score(DynamicDegreeReward(), levels(100, 101, 100, 102, size=64)) == 0.0
    assert score(DynamicDegreeReward(), still[:, :1]) == 0.0


def test_a_small_part_that_moves_makes_a_clip_dynamic():
    frames = texture()[:, None].repeat(1, 9, 1, 1, 1)
    for step in range(9):
        frames[0, step, :, :48, :48] = frames[0, 0, :, :48, :48].roll(3 * step, 2)
    assert score(DynamicDegreeReward(), frames) == pytest.approx(6 / 128 * 8, rel=1e-4)


def test_a_seam_is_the_difference_at_borders_over_that_elsewhere():
    # Chunks of 3 frames, the first of 2: the borders are after frame 2 and after frame 5. They jump by 51 levels, the
    # other steps are 5.1 on average.
    output = ChunkSeamReward(frames_per_chunk=3)(levels(0, 5, 56, 61, 66, 117, 122, 128), [""])
    elsewhere, half_level = (5 + 5 + 5 + 5 + 6) / 5, 0.5
    ratio = (51 + half_level) / (elsewhere + half_level)
    assert output.parts["ratio"].item() == pytest.approx(ratio, rel=1e-4)
    assert output.score.item() == pytest.approx(-math.log(ratio), rel=1e-4)


def test_a_halt_at_a_border_is_a_seam_as_a_jump_is_and_one_chunk_has_none():
    halt = levels(0, 10, 20, 20, 30, 40)
    assert score(ChunkSeamReward(frames_per_chunk=3), halt) == pytest.approx(-math.log(10.5 / 0.5), rel=1e-4)
    assert score(ChunkSeamReward(frames_per_chunk=12), halt) == 0.0
    assert score(ChunkSeamReward(frames_per_chunk=3), levels(0, 10, 20, 30, 40, 50)) == pytest.approx(0.0, abs=1e-6)
    assert score(ChunkSeamReward(), levels(7)) == 0.0
