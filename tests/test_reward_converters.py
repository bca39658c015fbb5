"""From the originals' files to a score: tiny models in the original layouts, templates of the test's own.

The file is long because it makes the original files of both models.
"""

import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_rewards import (
    NORMALIZATION,
    REWARD_TOKENS,
    TEMPLATES,
    byte_tokenizer,
    clips,
    qwen_config,
    random_model,
    videoalign_reward,
)

from stream_t1.checkpoints import convert_hpsv3, convert_videoalign
from stream_t1.checkpoints.hpsv3 import TEMPLATE as HPSV3_TEMPLATE
from stream_t1.checkpoints.templates import read_template
from stream_t1.checkpoints.videoalign import TEMPLATE as VIDEOALIGN_TEMPLATE
from stream_t1.rewards import CLIPScoreReward, HPSv3Reward, Reward, VideoAlignReward
from stream_t1.rewards.loading import Template, open_folder

HPSV3_SOURCE = f'''
import a_module_that_is_not_there
raise SystemExit("this file must not be run")
INSTRUCTION = """{TEMPLATES["hpsv3"].before}{{text_prompt}}\\n"""
prompt_with_special_token = """{TEMPLATES["hpsv3"].after[1:]}"""
'''
VIDEOALIGN_AFTER = TEMPLATES["videoalign"].after
VIDEOALIGN_SOURCE = f"""
raise SystemExit("this file must not be run")
DETAILED_PROMPT_WITH_SPECIAL_TOKEN = {"{text_prompt}".join((TEMPLATES["videoalign"].before, VIDEOALIGN_AFTER))!r}
"""
MODEL_CONFIG = {
    "data_config": {
        "max_frame_pixels": 200704,
        "fps": 2.0,
        "num_frames": None,
        "eval_dim": ["VQ", "MQ", "TA"],
        "prompt_template_type": "detailed_special",
        "sample_type": "uniform",
        "meta_data": "/somewhere/else.csv",
    },
    "model_config": {"output_dim": 1, "use_special_tokens": True, "reward_token": "special"},
    "peft_lora_config": {"lora_enable": True, "lora_r": 4, "lora_alpha": 8, "use_rslora": False},
    "inference_config": {
        f"{name}_{kind}": number
        for name, pair in NORMALIZATION.items()
        for kind, number in zip(("mean", "std"), pair, strict=True)
    },
}


def original_key(name: str) -> str:
    return name.replace("language_model.", "model.")


def save_base(folder):
    """A Qwen2-VL folder: config, and a tokenizer without reward tokens."""
    folder.mkdir()
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(qwen_config(tokenizer) | {"_name_or_path": "/a/path"}))
    return folder


@pytest.fixture
def hpsv3_files(tmp_path):
    """The original file, the file with the template, the base, and the model that is in them."""
    model = random_model("hpsv3", byte_tokenizer(REWARD_TOKENS["hpsv3"]))
    tensors = {original_key(name): tensor.clone() for name, tensor in model.state_dict().items()}
    tensors["lm_head.weight"] = torch.zeros(1, 32)
    save_file(tensors, tmp_path / "HPSv3.safetensors")
    (tmp_path / "data_collator_qwen.py").write_text(HPSV3_SOURCE)
    return (
        tmp_path / "HPSv3.safetensors",
        tmp_path / "data_collator_qwen.py",
        save_base(tmp_path / "base"),
        model,
    )


@pytest.fixture
def videoalign_files(tmp_path):
    """The original folder with a whole model, the template's file, the base, and the merged model."""
    torch.manual_seed(8)
    model = random_model("videoalign", byte_tokenizer(REWARD_TOKENS["videoalign"]))
    merged, original = dict(model.state_dict()), {}
    for name, tensor in merged.items():
        key = "base_model.model." + original_key(name)
        if "layers" in name and name.endswith("proj.weight"):
            down, up = torch.randn(4, tensor.shape[1]) / 8, torch.randn(tensor.shape[0], 4) / 8
            module = key.removesuffix(".weight")
            original[f"{module}.lora_A.default.weight"], original[f"{module}.lora_B.default.weight"] = down, up
            original[f"{module}.base_layer.weight"] = tensor.clone()
            merged[name] = tensor + 8 / 4 * (up @ down)
        else:
            original[key.replace("proj.bias", "proj.base_layer.bias") if "layers" in key else key] = tensor.clone()
    original["base_model.model.lm_head.weight"] = merged["language_model.embed_tokens.weight"]
    folder = tmp_path / "VideoReward"
    for step in ("checkpoint-9", "checkpoint-10"):
        (folder / step).mkdir(parents=True)
    torch.save(original, folder / "checkpoint-10" / "model.pth")
    (folder / "checkpoint-9" / "model.pth").write_bytes(b"an earlier one")
    (folder / "model_config.json").write_text(json.dumps(MODEL_CONFIG))
    (tmp_path / "prompt_template.py").write_text(VIDEOALIGN_SOURCE)
    model.load_state_dict(merged)
    return folder, tmp_path / "prompt_template.py", save_base(tmp_path / "base_2b"), model


def convert(converter, files, output, **options):
    checkpoint, template, base, _ = files
    return converter(checkpoint, template, output, **{"base": base, "accept_changed_template": True} | options)


def test_hpsv3_from_the_original_file_to_a_score(hpsv3_files, tmp_path):
    convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")
    reward = Reward.from_pretrained(tmp_path / "reward")
    frames, words = clips(2, 2), ["a dog", "two cats"]
    scored = HPSv3Reward(hpsv3_files[3], reward.chat)(frames, words)
    output = reward(frames, words)
    assert isinstance(reward, HPSv3Reward) and torch.equal(output.score, scored.score)
    assert reward.chat.template == TEMPLATES["hpsv3"] and reward.num_pixels == 200704


def test_videoalign_from_the_original_folder_to_a_score(videoalign_files, tmp_path):
    convert(convert_videoalign, videoalign_files, tmp_path / "reward")
    reward = VideoAlignReward.from_pretrained(tmp_path / "reward", score=("VQ", "TA"))
    frames, words = clips(2, 5), ["a dog", "two cats"]
    expected = videoalign_reward(score=("VQ", "TA"))
    expected.model, expected.min_pixels, expected.max_pixels = videoalign_files[3], 100352, 200704
    assert torch.allclose(reward(frames, words, 16.0).score, expected(frames, words, 16.0).score, atol=1e-5)
    assert reward.normalization == NORMALIZATION and reward.max_pixels == 200704


def test_videoalign_from_an_adapter_over_its_base(videoalign_files, tmp_path):
    folder, _, base, model = videoalign_files
    whole = torch.load(folder / "checkpoint-10" / "model.pth", weights_only=True)
    (folder / "checkpoint-10" / "model.pth").unlink()
    adapter = {key.replace(".default", ""): tensor for key, tensor in whole.items() if "lora_" in key}
    others = {key: t for key, t in whole.items() if "visual" in key or "rm_head" in key or "embed_tokens" in key}
    below = {key.removeprefix("base_model.model.").replace(".base_layer", ""): t for key, t in whole.items()}
    below = {key: t.clone() for key, t in below.items() if "lora_" not in key and "rm_head" not in key}
    below["model.embed_tokens.weight"] = torch.zeros(300, 32)  # before it was cut and tuned
    save_file(below, base / "model.safetensors")
    save_file(adapter, folder / "checkpoint-10" / "adapter_model.safetensors")
    torch.save(others, folder / "checkpoint-10" / "non_lora_state_dict.pth")
    convert(convert_videoalign, videoalign_files, tmp_path / "reward")
    written = open_folder(tmp_path / "reward").tensors()
    assert all(torch.allclose(written[name], tensor, atol=1e-6) for name, tensor in model.state_dict().items())
    save_file(below, folder / "checkpoint-10" / "adapter_model.safetensors")
    with pytest.raises(ValueError, match="checkpoint-10/adapter_model.safetensors holds no LoRA"):
        convert(convert_videoalign, videoalign_files, tmp_path / "other")
    torch.save({"model": others}, folder / "checkpoint-10" / "non_lora_state_dict.pth")
    with pytest.raises(ValueError, match="non_lora_state_dict.pth has no embeddings"):
        convert(convert_videoalign, videoalign_files, tmp_path / "other")


def test_a_folder_says_what_it_was_converted_from_and_no_path_of_this_machine(hpsv3_files, tmp_path):
    conversion = convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")
    config = json.loads((tmp_path / "reward" / "reward_config.json").read_text())
    assert [(origin["role"], origin["name"]) for origin in config["converted_from"]] == [
        ("weights", "HPSv3.safetensors"),
        ("config and tokenizer", "base"),
        ("prompt template", "data_collator_qwen.py"),
    ]
    assert all(len(sha256) == 64 for sha256 in config["converted_from"][0]["hashes"].values())
    texts = [path.read_text() for path in (tmp_path / "reward").glob("*.json")]
    assert not any(str(tmp_path) in text or "/a/path" in text for text in texts)
    assert conversion.weights.num_parameters == sum(p.numel() for p in hpsv3_files[3].parameters())


def test_types_of_the_file_are_kept_but_the_head_of_hpsv3_is_float32(hpsv3_files, tmp_path):
    model = hpsv3_files[3]
    save_file({original_key(k): t.bfloat16() for k, t in model.state_dict().items()}, hpsv3_files[0])
    convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")
    reward = Reward.from_pretrained(tmp_path / "reward")
    assert reward.dtype == torch.bfloat16 and reward.model.rm_head[0].weight.dtype == torch.float32
    assert Reward.from_pretrained(tmp_path / "reward", dtype=torch.float32).dtype == torch.float32


@pytest.mark.parametrize("kind", ["hpsv3", "videoalign"])
def test_new_style_keys_are_the_same_model(kind, hpsv3_files, videoalign_files, tmp_path):
    """transformers has saved `model.visual.*` and `model.language_model.*` since 4.52."""

    def new_style(key):
        for old, new in (("visual.", "model.visual."), ("model.", "model.language_model.")):
            bare = key.removeprefix("base_model.model.")
            if bare.startswith(old):
                return key.removesuffix(bare) + new + bare.removeprefix(old)
        return key

    files = hpsv3_files if kind == "hpsv3" else videoalign_files
    path = files[0] if kind == "hpsv3" else files[0] / "checkpoint-10/model.pth"
    converter = convert_hpsv3 if kind == "hpsv3" else convert_videoalign
    convert(converter, files, tmp_path / "old")
    state = load_file(path) if kind == "hpsv3" else torch.load(path)
    state = {new_style(key): tensor for key, tensor in state.items()}
    assert any("model.language_model." in key for key in state) and any("model.visual." in key for key in state)
    save_file(state, path) if kind == "hpsv3" else torch.save(state, path)
    convert(converter, files, tmp_path / "new")
    old, new = (open_folder(tmp_path / name).tensors() for name in ("old", "new"))
    torch.testing.assert_close(new, old, rtol=0, atol=0)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"lora_alpha": 9}, "has alpha 9, and model_config.json 8"),
        ({"use_rslora": True}, "sets use_rslora"),
        ({"use_dora": True}, "sets use_dora"),
    ],
)
def test_a_config_of_peft_that_contradicts_videoaligns_is_refused(config, message, videoalign_files, tmp_path):
    (videoalign_files[0] / "checkpoint-10/adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        convert(convert_videoalign, videoalign_files, tmp_path / "reward")


def test_shards_are_loaded_as_one_file_is(hpsv3_files, tmp_path, monkeypatch):
    from stream_t1.checkpoints import writing

    monkeypatch.setitem(writing.write_shards.__kwdefaults__, "shard_bytes", 20_000)
    convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")
    assert len(list((tmp_path / "reward").glob("model-*-of-*.safetensors"))) > 3
    tensors = open_folder(tmp_path / "reward").tensors()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in hpsv3_files[3].state_dict().items())


@pytest.mark.parametrize("kind", ["file", "folder", "wheel"])
def test_the_template_is_found_in_a_file_a_folder_and_a_wheel_and_never_run(kind, tmp_path):
    folder = tmp_path / "copy" / "hpsv3" / "dataset"
    folder.mkdir(parents=True)
    (folder / "data_collator_qwen.py").write_text(HPSV3_SOURCE)
    wheel = tmp_path / "hpsv3-1.0.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("hpsv3/dataset/data_collator_qwen.py", HPSV3_SOURCE)
    source = {"file": folder / "data_collator_qwen.py", "folder": tmp_path / "copy", "wheel": wheel}[kind]
    assert read_template(source, HPSV3_TEMPLATE, accept_changed=True).template == TEMPLATES["hpsv3"]


def test_braces_of_the_template_are_read_as_the_original_formats_them(tmp_path):
    source = tmp_path / "prompt_template.py"
    source.write_text('DETAILED_PROMPT_WITH_SPECIAL_TOKEN = "a {{b}} {text_prompt} {{c}}"')
    found = read_template(source, VIDEOALIGN_TEMPLATE, accept_changed=True)
    assert found.template == Template("a {b} ", " {c}")


@pytest.mark.parametrize(
    "code, message",
    [
        ("OTHER = 'words'", "has no text INSTRUCTION and no prompt_with_special_token"),
        ("INSTRUCTION = 'x' + 'y'\nprompt_with_special_token = ''", "has no text INSTRUCTION:"),
        ("INSTRUCTION = '{prompt}'\nprompt_with_special_token = ''", r"has the place \{prompt\}"),
        ("INSTRUCTION = 'no place'\nprompt_with_special_token = ''", "has 0 places for the prompt"),
        ("INSTRUCTION = 'a { b'\nprompt_with_special_token = ''", "INSTRUCTION of data_collator_qwen.py"),
        ("def broken(:", "is not a Python file"),
    ],
)
def test_a_copy_without_the_template_says_so(tmp_path, code, message):
    (tmp_path / "data_collator_qwen.py").write_text(code)
    with pytest.raises(ValueError, match=message):
        read_template(tmp_path / "data_collator_qwen.py", HPSV3_TEMPLATE, accept_changed=True)


def broken_wheel(path):
    """The bytes of a wheel with the template, one letter of which is not that of its checksum."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("hpsv3/dataset/data_collator_qwen.py", HPSV3_SOURCE)
    return path.read_bytes().replace(b"INSTRUCTION", b"INSTRUCTIOM")


@pytest.mark.parametrize(
    "content",
    [broken_wheel, lambda path: broken_wheel(path)[:-30], lambda path: b"\xff\xfe", lambda path: b"A = 1\0"],
)
def test_a_damaged_copy_of_the_template_is_refused(tmp_path, content):
    wheel = tmp_path / "hpsv3.whl"
    wheel.write_bytes(content(wheel))
    with pytest.raises(ValueError, match=r"hpsv3.whl is (neither Python code nor a whole zip file|not a Python file)"):
        read_template(wheel, HPSV3_TEMPLATE, accept_changed=True)


def test_a_missing_or_changed_template_says_where_to_get_it(hpsv3_files, videoalign_files, tmp_path):
    with pytest.raises(FileNotFoundError, match="pip download hpsv3==1.0.0 --no-deps"):
        convert_hpsv3(hpsv3_files[0], tmp_path / "nowhere", tmp_path / "reward")
    with pytest.raises(
        ValueError, match=r"pip download hpsv3.*accept_changed_template=True.*--accept-changed-template"
    ):
        convert_hpsv3(hpsv3_files[0], hpsv3_files[1], tmp_path / "reward")
    with pytest.raises(ValueError, match="git clone https://github.com/KlingTeam/VideoAlign"):
        convert_videoalign(videoalign_files[0], videoalign_files[1], tmp_path / "reward")
    with pytest.raises(ValueError, match=r"0 files prompt_template.py, and one is needed. Get it with"):
        convert_videoalign(videoalign_files[0], videoalign_files[2], tmp_path / "reward")
    assert not (tmp_path / "reward").exists()


def test_weights_of_the_other_model_are_named(hpsv3_files, videoalign_files, tmp_path):
    whole = videoalign_files[0] / "checkpoint-10" / "model.pth"
    with pytest.raises(ValueError, match="is a VideoAlign reward; convert it as `videoalign`"):
        convert(convert_hpsv3, (whole, *hpsv3_files[1:]), tmp_path / "reward")
    torch.save({original_key(k): t for k, t in hpsv3_files[3].state_dict().items()}, whole)
    with pytest.raises(ValueError, match="is an HPSv3 reward; convert it as `hpsv3`"):
        convert(convert_videoalign, videoalign_files, tmp_path / "reward")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="other.safetensors is no HPSv3 reward"):
        convert(convert_hpsv3, (tmp_path / "other.safetensors", *hpsv3_files[1:]), tmp_path / "reward")


def test_every_key_is_accounted_for(hpsv3_files, tmp_path):
    tensors = {original_key(k): t for k, t in hpsv3_files[3].state_dict().items()}
    del tensors["model.norm.weight"]
    save_file(tensors | {"model.extra.weight": torch.zeros(3)}, hpsv3_files[0])
    with pytest.raises(
        ValueError, match=r"1 missing \(language_model.norm.weight\); 1 unknown \(language_model.extra"
    ):
        convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")


def test_a_tokenizer_that_is_not_the_models_is_refused(hpsv3_files, tmp_path):
    tokenizer = byte_tokenizer(["<|one|>", "<|two|>", "<|more|>"])
    tokenizer.save_pretrained(hpsv3_files[2])
    with pytest.raises(ValueError, match=r"reward tokens at \[266\], and the weights know 264 tokens"):
        convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")


@pytest.mark.parametrize(
    "section, name, value",
    [
        ("data_config", "prompt_template_type", "simple"),
        ("data_config", "num_frames", 16),
        ("model_config", "output_dim", 3),
        ("peft_lora_config", "use_rslora", True),
    ],
)
def test_a_videoalign_with_other_input_is_refused(videoalign_files, tmp_path, section, name, value):
    config = json.loads(json.dumps(MODEL_CONFIG))
    config[section][name] = value
    (videoalign_files[0] / "model_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"{name} = {value!r} in {section}; only"):
        convert(convert_videoalign, videoalign_files, tmp_path / "reward")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data_config": None}, "says no max_frame_pixels in data_config"),
        ({"data_config": []}, r"\[\] as data_config; it must be an object"),
        ({"inference_config": [1.0]}, r"\[1.0\] as inference_config"),
        ({"inference_config": {"VQ_mean": 1.0}}, "says no VQ_std in inference_config"),
        (
            {"inference_config": MODEL_CONFIG["inference_config"] | {"VQ_std": 0}},
            "VQ_std = 0 in inference_config; .*above 0",
        ),
        (
            {"inference_config": MODEL_CONFIG["inference_config"] | {"VQ_mean": None}},
            "VQ_mean = None .* must be a number",
        ),
        ({"data_config": MODEL_CONFIG["data_config"] | {"fps": -1}}, "fps = -1 in data_config; .* above 0"),
        ({"data_config": MODEL_CONFIG["data_config"] | {"fps": "2"}}, "fps = '2' in data_config; .* above 0"),
        ({"peft_lora_config": {"lora_alpha": float("nan")}}, "lora_alpha = nan in peft_lora_config"),
    ],
)
def test_an_invalid_videoalign_config_is_refused(videoalign_files, tmp_path, changes, message):
    (videoalign_files[0] / "model_config.json").write_text(json.dumps(MODEL_CONFIG | changes))
    with pytest.raises(ValueError, match=f"VideoReward/model_config.json .*{message}"):
        convert(convert_videoalign, videoalign_files, tmp_path / "reward")


@pytest.mark.parametrize(
    "content", ["{", "[]", '{"hidden_size": "three"}', '{"text_config": {"num_hidden_layers": []}}']
)
def test_a_base_with_an_invalid_config_is_refused(hpsv3_files, tmp_path, content):
    (hpsv3_files[2] / "config.json").write_text(content)
    with pytest.raises(ValueError, match="base has no config.json of Qwen2-VL"):
        convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")


def test_a_base_with_a_damaged_tokenizer_is_refused(hpsv3_files, tmp_path):
    (hpsv3_files[2] / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match="base has no tokenizer that can be read"):
        convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")


def test_a_pickle_with_code_is_not_loaded(videoalign_files, tmp_path):
    class Runs:
        def __reduce__(self):
            return print, ("this ran",)

    torch.save({"weight": Runs()}, videoalign_files[0] / "checkpoint-10" / "model.pth")
    with pytest.raises(ValueError, match="could run code, so it was not loaded"):
        convert(convert_videoalign, videoalign_files, tmp_path / "reward")


def test_a_reward_that_is_there_is_replaced_only_on_request(hpsv3_files, tmp_path):
    convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")
    with pytest.raises(FileExistsError, match="exists"):
        convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")
    convert(convert_hpsv3, hpsv3_files, tmp_path / "reward", overwrite=True)


def test_a_folder_of_another_reward_or_of_none_is_refused(hpsv3_files, tmp_path, monkeypatch):
    convert(convert_hpsv3, hpsv3_files, tmp_path / "reward")
    with pytest.raises(ValueError, match="holds a reward of kind 'hpsv3'; VideoAlignReward loads videoalign"):
        VideoAlignReward.from_pretrained(tmp_path / "reward")
    with pytest.raises(ValueError, match="base is no converted reward: it has no reward_config.json"):
        Reward.from_pretrained(tmp_path / "base")
    (tmp_path / "reward" / "template.json").unlink()
    with pytest.raises(ValueError, match="is not whole: it has no template.json"):
        HPSv3Reward.from_pretrained(tmp_path / "reward")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match="is no folder here, and no repository"):
        Reward.from_pretrained("nobody/no-such-reward-here")
    assert CLIPScoreReward.kind is None
