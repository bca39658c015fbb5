"""What the benchmark of the reward models reports, at tiny size."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import reward_cost  # noqa: E402


def test_the_code_of_the_real_size_runs_without_a_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "results.json"
    arguments = ["--size", "tiny", "--num-candidates", "1", "--window-frames", "12", "--runs", "1"]
    results = reward_cost.main([*arguments, "--output", str(file)])
    assert json.loads(file.read_text()) == results
    image, video = results["rewards"]["hpsv3"], results["rewards"]["videoalign"]
    assert [batch for batch, _ in image["forwards"]] == [12]  # pictures
    assert [batch for batch, _ in video["forwards"]] == [1]
    for cost in (image, video):
        assert len(cost["seconds"]) == 1 and min(cost["seconds"]) > 0 and cost["peak_bytes"] > cost["weights_bytes"]


def test_the_real_size_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        reward_cost.main([])


@pytest.mark.parametrize("kind, billions", [("hpsv3", 8.29), ("videoalign", 2.21)])
def test_the_real_sizes_have_the_parameters_of_qwen2_vl(kind, billions):
    with torch.device("meta"):
        reward = reward_cost.random_reward(kind, reward_cost.SIZES["real"][kind], torch.device("meta"))
    output_layer = 0 if kind == "videoalign" else reward_cost.VOCABULARY * 3584  # of the 7B model, which has its own
    count = sum(weight.numel() for weight in reward.parameters()) + output_layer
    assert count / 1e9 == pytest.approx(billions, abs=0.02)
