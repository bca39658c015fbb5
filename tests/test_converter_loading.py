"""Every route by which diffusers loads a folder, on a converted one, in fresh processes."""

import json
import os
import subprocess
import sys

import pytest
import torch
from checkpoint_files import prefixed, save_base

from stream_t1.checkpoints import convert_reward_forcing

SCRIPT = """
import json, sys, torch
folder, *routes = sys.argv[1:]
if routes != ["installed"]:
    sys.modules["stream_t1"] = None  # only the folder's own code can be run
from diffusers import DiffusionPipeline
CUSTOM = {"class name": {}, "shim": {"custom_pipeline": "stream_t1"}, "folder": {"custom_pipeline": folder}}
for route in routes:
    if route == "installed":
        from stream_t1 import StreamT1Pipeline
        pipe = StreamT1Pipeline.from_pretrained(folder)
    else:
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **CUSTOM[route])
    pipe.set_progress_bar_config(disable=True)
    latents = pipe(
        "a red circle", height=16, width=16, num_frames=9, output_type="latent", max_sequence_length=16,
        num_beams=1, num_candidates=1, generator=torch.Generator().manual_seed(0),
    ).frames
    print(json.dumps([type(pipe).__name__, dict(pipe.config.memory), float(latents.double().sum())]))
"""


@pytest.fixture
def folder(tmp_path, reference_transformer):
    save_base(tmp_path / "base", reference_transformer)
    torch.save(prefixed("model."), tmp_path / "checkpoint.pt")
    convert_reward_forcing(tmp_path / "out", tmp_path / "checkpoint.pt", base=tmp_path / "base")
    return tmp_path / "out"


def load(folder, *routes: str) -> list[list]:
    """Class, memory policy and a checksum of a video, by each route of one process."""
    environment = os.environ | {"HF_MODULES_CACHE": str(folder.parent / "modules"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", SCRIPT, str(folder), *routes]
    process = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr[-2000:]
    return [json.loads(line) for line in process.stdout.splitlines()[-len(routes) :]]


def test_a_converted_folder_loads_by_every_route_and_makes_the_same_video(folder):
    ((name, memory, checksum),) = load(folder, "installed")
    assert name == "StreamT1Pipeline" and memory == {"policy": "EMASink", "positions": "relative", "ema_decay": 0.999}
    assert load(folder, "class name", "shim", "folder") == [[name, memory, pytest.approx(checksum)]] * 3
