"""Converted reward folders that are incomplete, or whose files are damaged."""

import json
import shutil

import pytest
from tiny_rewards import hpsv3_reward, save_reward, videoalign_reward

from stream_t1.rewards import Reward


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rewards")
    return {reward.kind: save_reward(reward, root / reward.kind) for reward in (hpsv3_reward(), videoalign_reward())}


@pytest.fixture
def folder(folders, tmp_path):
    return shutil.copytree(folders["hpsv3"], tmp_path / "reward")


def test_a_folder_that_is_whole_loads(folder):
    assert Reward.from_pretrained(folder).kind == "hpsv3"


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("reward_config.json", "{", "Expecting"),
        ("reward_config.json", "[]", "it holds a list"),
        ("reward_config.json", "{}", "it has no kind, model, reward_tokens"),
        ("template.json", "{", "Expecting"),
        ("template.json", '{"before": "a"}', "it has no after"),
        ("template.json", '{"before": "a", "after": 3}', "its words are no text"),
        ("model.safetensors.index.json", "{}", "it has no weight_map"),
        ("model.safetensors.index.json", '{"weight_map": ["model.safetensors"]}', "its weight_map names no files"),
        (
            "model.safetensors.index.json",
            '{"weight_map": {"a": "../model.safetensors"}}',
            "its weight_map names ../model.safetensors, out",
        ),
        ("reward_config.json", "[" * 100_000, "maximum recursion"),
        ("model.safetensors", "", ".*header too small"),
    ],
)
def test_a_damaged_file_is_named_with_what_to_do(folder, name, content, message):
    (folder / name).write_text(content)
    with pytest.raises(ValueError, match=f"{name} is damaged: {message}.*Convert it again, or download all of it"):
        Reward.from_pretrained(folder)


def test_weights_that_end_too_early_are_damaged(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    with pytest.raises(ValueError, match="model.safetensors is damaged: .*Convert it again, or download all of it"):
        Reward.from_pretrained(folder)


@pytest.mark.parametrize("kind, name", [("hpsv3", "num_pixels"), ("videoalign", "normalization")])
def test_a_config_without_a_constant_of_its_kind_is_damaged(folders, tmp_path, kind, name):
    folder = shutil.copytree(folders[kind], tmp_path / "reward")
    config = json.loads((folder / "reward_config.json").read_text())
    del config[name]
    (folder / "reward_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=f"reward_config.json is damaged: it has no {name}"):
        Reward.from_pretrained(folder)
