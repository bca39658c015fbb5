"""The Qwen2-VL regression model against the original classes, and what must not change a score."""

import pytest
import torch
from tiny_rewards import byte_tokenizer, clips, hpsv3_reward, random_model, reference_case, videoalign_reward
from transformers import Qwen2VLConfig, Qwen2VLModel

from stream_t1.rewards import Qwen2VLRewardModel
from stream_t1.rewards.qwen2_vl import read_config

TOLERANCE = 1e-4  # the originals' class ran on another transformers and another torch; 8e-6 was reached
PROMPTS = ["a red circle", "two dogs that run along a beach at dusk", "x"]


def reference_model(name):
    config, state_dict, case, golden = reference_case(name)
    alpha = None if config["lora"] is None else config["lora"]["alpha"]
    model = Qwen2VLRewardModel.from_original(
        state_dict, config, config["reward_token_ids"], config["modality"], lora_alpha=alpha
    )
    return model, case, golden


@pytest.mark.parametrize("name", ["hpsv3", "videoalign"])
def test_the_head_says_what_the_original_class_says(name):
    model, case, golden = reference_model(name)
    assert torch.allclose(model(**case), golden, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["hpsv3", "videoalign"])
def test_with_mrope_positions_the_reference_case_fails(name, monkeypatch):
    model, case, golden = reference_model(name)

    def mrope(self, input_ids, grid_thw):
        kinds = (input_ids == self.pixel_token_id).int() * (1 if name == "hpsv3" else 2)
        grids = {"image_grid_thw" if name == "hpsv3" else "video_grid_thw": grid_thw}
        return Qwen2VLModel(read_config(reference_case(name)[0])).get_rope_index(input_ids, kinds, **grids)[0]

    monkeypatch.setattr(Qwen2VLRewardModel, "positions", mrope)
    assert (model(**case) - golden).abs().max() > 100 * TOLERANCE


@pytest.mark.parametrize("name", ["hpsv3", "videoalign"])
def test_more_padding_on_the_right_leaves_the_scores(name):
    model, case, golden = reference_model(name)
    padded = case | {
        "input_ids": torch.nn.functional.pad(case["input_ids"], (0, 9), value=7),
        "attention_mask": torch.nn.functional.pad(case["attention_mask"], (0, 9)),
    }
    assert torch.allclose(model(**padded), model(**case), atol=1e-5, rtol=0)


def test_padding_on_the_left_is_refused():
    model, case, _ = reference_model("hpsv3")
    case["attention_mask"] = torch.ones_like(case["attention_mask"])
    case["attention_mask"][0, 0] = 0
    with pytest.raises(ValueError, match="padded on the right"):
        model(**case)


@pytest.mark.parametrize("reward", [hpsv3_reward, videoalign_reward])
def test_batch_order_and_micro_batches_leave_the_scores(reward):
    reward, frames = reward(), clips(3, 9)
    together = reward(frames, PROMPTS, 16.0).score
    order = [2, 0, 1]
    shuffled = reward(frames[order], [PROMPTS[i] for i in order], 16.0).score
    reward.micro_batch_size = 1
    single = reward(frames, PROMPTS, 16.0).score
    assert together.std() > 1e-2  # the clips can be told apart
    assert torch.allclose(shuffled, together[order], atol=1e-5, rtol=0)
    assert torch.allclose(single, together, atol=1e-5, rtol=0)


@pytest.mark.parametrize("reward", [hpsv3_reward, videoalign_reward])
def test_bytes_and_floats_of_the_same_frames_score_the_same(reward):
    reward, frames = reward(), clips(2, 5)
    assert torch.equal(reward(frames, PROMPTS[:2], 16.0).score, reward(frames.float() / 255, PROMPTS[:2], 16.0).score)


def test_a_micro_batch_is_one_forward():
    reward, frames, sizes = hpsv3_reward(micro_batch_size=4), clips(2, 5), []
    reward.model.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    reward(frames, PROMPTS[:2], 16.0)
    assert sizes == [4, 4, 2]


def test_frame_stride_scores_every_nth_frame():
    frames = clips(2, 7)
    every_third = hpsv3_reward()(frames[:, [0, 3, 6]], PROMPTS[:2], 16.0).score
    assert torch.allclose(hpsv3_reward(frame_stride=3)(frames, PROMPTS[:2], 16.0).score, every_third, atol=1e-6)


def test_sigma_makes_a_lower_confidence_bound():
    frames = clips(2, 3)
    output = hpsv3_reward()(frames, PROMPTS[:2], 16.0)
    bound = hpsv3_reward(confidence=1.5)(frames, PROMPTS[:2], 16.0)
    assert torch.equal(output.score, output.parts["mu"]) and bool((output.parts["sigma"] > 0).all())
    assert torch.allclose(bound.score, output.parts["mu"] - 1.5 * output.parts["sigma"], atol=1e-6)


def test_videoalign_sums_the_parts_that_were_asked_for():
    frames = clips(2, 9)
    parts = videoalign_reward()(frames, PROMPTS[:2], 16.0).parts
    assert torch.allclose(parts["VQ"], (parts["VQ_raw"] - 3.0) / 2.0)
    chosen = videoalign_reward(score=("MQ", "TA_raw"))(frames, PROMPTS[:2], 16.0).score
    assert torch.allclose(chosen, parts["MQ"] + parts["TA_raw"], atol=1e-6)
    with pytest.raises(ValueError, match="VQ, MQ, TA, VQ_raw"):
        videoalign_reward(score=("quality",))


def test_visual_and_motion_quality_do_not_read_the_prompt():
    reward, frames = videoalign_reward(score=("VQ", "MQ")), clips(1, 9)
    assert not reward.reads_prompt and videoalign_reward().reads_prompt
    assert torch.allclose(reward(frames, [""], 16.0).score, reward(frames, ["a dog"], 16.0).score, atol=1e-6)


def test_the_head_of_hpsv3_stays_float32_and_that_of_videoalign_is_cast():
    hpsv3, videoalign = hpsv3_reward().to(torch.bfloat16), videoalign_reward().to(torch.bfloat16)
    assert {p.dtype for p in hpsv3.model.rm_head.parameters()} == {torch.float32}
    assert videoalign.model.rm_head.weight.dtype == hpsv3.dtype == torch.bfloat16
    for reward in (hpsv3, videoalign):
        assert torch.isfinite(reward(clips(1, 5), ["x"], 16.0).score).all()


def test_rotary_frequencies_are_rounded_to_the_type_in_which_the_model_runs():
    model = random_model("hpsv3", byte_tokenizer(("<|Reward|>",)))
    rotary, positions = model.language_model.rotary_emb, torch.arange(40).expand(3, 1, 40)
    exact = rotary(torch.zeros(1, dtype=torch.float32), positions)[0]
    model.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(rotary(torch.zeros(1, dtype=torch.float32), positions)[0], exact)  # a cast leaves no trace
    rounded = rotary.frequencies.bfloat16().float()
    expected = (39 * rounded[1]).cos().bfloat16()
    assert rotary(torch.zeros(1, dtype=torch.bfloat16), positions)[0][0, 39, 1] == expected
    assert expected != (39 * rotary.frequencies[1]).cos().bfloat16()


def test_a_sequence_without_its_reward_tokens_is_refused():
    model, case, _ = reference_model("videoalign")
    case["input_ids"][0, case["input_ids"][0] == 298] = 5
    with pytest.raises(ValueError, match=r"\(297, 298, 299\) once, in this order"):
        model(**case)


def test_more_or_fewer_placeholders_than_patches_are_refused():
    model, case, _ = reference_model("hpsv3")
    case["input_ids"][0, case["input_ids"][0] == 290] = 5
    with pytest.raises(ValueError, match="4 placeholder tokens for 10 merged patches"):
        model(**case)


def test_in_bfloat16_vision_angles_are_those_of_the_originals_arithmetic():
    """There an angle is the product of a position and a rounded frequency, rounded, and so are its cosine and sine."""
    rotary = random_model("hpsv3", byte_tokenizer(("<|Reward|>",))).visual.rotary_pos_emb
    positions = torch.tensor([[41, 17], [3, 40]])  # row and column of two patches
    cos, sin = rotary(torch.zeros(2, 32, dtype=torch.bfloat16), positions)
    table = torch.outer(torch.arange(42, dtype=torch.bfloat16), rotary.frequencies.bfloat16())
    angles = torch.cat([table[positions[:, 0]], table[positions[:, 1]]], dim=1)  # (2, head dim / 2)
    assert torch.equal(cos, angles.cos().float().repeat(1, 2)) and torch.equal(sin, angles.sin().float().repeat(1, 2))
    exact = rotary(torch.zeros(2, 32), positions)[0]
    assert (cos - exact).abs().max() > 1e-3


def test_weights_that_do_not_fit_name_the_keys():
    config, state_dict, _, _ = reference_case("hpsv3")
    without = {key: tensor for key, tensor in state_dict.items() if key != "model.norm.weight"}
    with pytest.raises(ValueError, match="language_model.norm.weight is missing"):
        Qwen2VLRewardModel.from_original(without, config, [297], "image")
    headless = {key: tensor for key, tensor in state_dict.items() if not key.startswith("rm_head")}
    with pytest.raises(ValueError, match="no key begins with rm_head"):
        Qwen2VLRewardModel.from_original(headless, config, [297], "image")


def test_a_lora_is_merged_in_float32_and_needs_its_alpha():
    config, state_dict, _, _ = reference_case("videoalign")
    with pytest.raises(ValueError, match="lora_alpha"):
        Qwen2VLRewardModel.from_original(state_dict, config, [297, 298, 299], "video")
    model, _, _ = reference_model("videoalign")
    layer = "base_model.model.model.layers.1.mlp.up_proj"
    down, up = (state_dict[f"{layer}.lora_{half}.default.weight"] for half in "AB")
    merged = state_dict[f"{layer}.base_layer.weight"] + 8 / 4 * (up @ down)
    assert torch.allclose(model.state_dict()["language_model.layers.1.mlp.up_proj.weight"], merged, atol=1e-6)


def test_a_flat_config_of_an_old_folder_is_read():
    flat = {
        "model_type": "qwen2_vl",
        "hidden_size": 64,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "rope_theta": 500.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "vision_config": {"depth": 2, "embed_dim": 32, "hidden_size": 64},
    }
    config = read_config(flat)
    assert isinstance(config, Qwen2VLConfig) and config.text_config.hidden_size == 64
    assert config.text_config.rope_parameters["rope_theta"] == 500.0
    assert config.text_config.rope_parameters["mrope_section"] == [2, 3, 3]
