"""Conversion of what the Hub holds, in fresh processes, against a Hub on this machine; every route that loads it."""

import pytest
import torch
from checkpoint_files import save_base
from conftest import toy_transformer
from fresh_process import filmed
from huggingface_hub import ModelCard

from stream_t1 import StreamT1Pipeline
from stream_t1.checkpoints.layouts import GENERATORS, WAN_BASE

PAGE = "---\nlicense: cc-by-4.0\n---\n\nA page of its authors.\n"


@pytest.fixture(scope="module")
def hub(hub_server):
    """Holds LongLive, its LoRA and Wan's base under the names under which they are published, at toy size."""
    root, longlive = hub_server.root, GENERATORS["longlive"]
    transformer = toy_transformer()
    save_base(root / WAN_BASE, transformer)
    (root / longlive.hub_id / "models").mkdir(parents=True)
    (root / longlive.hub_id / "README.md").write_text(PAGE)
    state = {f"model.{key}": tensor for key, tensor in transformer.state_dict().items()}
    torch.save({"generator": state}, root / longlive.hub_id / longlive.file)
    lora = {}
    for key in ("blocks.0.attn1.to_q", "blocks.1.ffn.net.2"):
        out_features, in_features = transformer.get_submodule(key).weight.shape
        lora[f"base_model.model.{key}.lora_A.weight"] = torch.full((2, in_features), 0.1)
        lora[f"base_model.model.{key}.lora_B.weight"] = torch.full((out_features, 2), 0.2)
    torch.save({"generator_lora": lora}, root / longlive.lora.replace(":", "/"))
    return hub_server


@pytest.fixture(scope="module")
def converted(hub, processes, tmp_path_factory):
    """A folder made by the command with no argument but `-o`, and pushed; and the hash of its video."""
    lines = """
from stream_t1 import StreamT1Pipeline
from huggingface_hub import HfApi
from stream_t1.__main__ import main
status = main(["convert", "longlive", "-o", "longlive"])
HfApi().create_repo("org/longlive")
HfApi().upload_folder(repo_id="org/longlive", folder_path="longlive")
pipe = StreamT1Pipeline.from_pretrained("longlive")
pipe.push_to_hub("org/longlive")
print(status, filmed(pipe))
"""
    folder = tmp_path_factory.mktemp("converted")
    status, video = processes[True].run(lines, folder)[-1].split()
    assert status == "0"
    return folder / "longlive", video


def test_the_command_alone_fetches_all_it_needs_and_merges_the_lora(hub, converted):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the fresh process
    plain = toy_transformer()
    pipe = StreamT1Pipeline.from_pretrained(converted[0])
    assert filmed(pipe) == converted[1]
    changed = [k for k, v in pipe.transformer.state_dict().items() if not torch.equal(v, plain.state_dict()[k])]
    assert sorted(changed) == ["blocks.0.attn1.to_q.weight", "blocks.1.ffn.net.2.weight"]
    torch.set_num_threads(threads)


def test_a_converted_folder_loads_by_every_route_and_makes_the_same_video(converted, processes, tmp_path):
    folder, video = converted
    lines = f"""
from diffusers import DiffusionPipeline
def film(place, **options):
    print(filmed(DiffusionPipeline.from_pretrained(place, trust_remote_code=True, **options)))
film("{folder}")
film("{folder}", custom_pipeline="stream_t1")
film("{folder}", custom_pipeline="{folder}")
film("org/longlive")
film("org/longlive", custom_pipeline="stream_t1")
film("org/longlive", custom_pipeline="org/longlive")
"""
    assert processes[False].run(lines, tmp_path) == [video] * 6


def test_the_card_has_the_licence_of_the_weights_page_and_outlives_a_push(hub, converted):
    pushed = (hub.root / "org/longlive/README.md").read_text()
    card = ModelCard(pushed)
    assert card.data.license == "cc-by-4.0" and "is what the page of the weights" in card.text
    assert card.data.base_model == [GENERATORS["longlive"].hub_id, WAN_BASE]
    for name in ("longlive_base.pt", "lora.pt"):
        assert f"`Efficient-Large-Model/LongLive-1.3B:models/{name}`" in card.text
    assert card.text == ModelCard.load(converted[0] / "README.md").text
    assert "merged in float32: rank 2" in card.text and str(hub.root) not in pushed


def test_what_the_hub_lacks_is_one_line_and_leaves_nothing(hub, processes, tmp_path):
    lines = """
import sys
from stream_t1.__main__ import main
sys.stderr = sys.stdout
print(main(["convert", "self-forcing", "-o", "out"]))
print(main(["convert", "longlive", "--base", "org/nothing", "-o", "out"]))
print(main(["convert", "longlive", "--checkpoint", "Efficient-Large-Model/LongLive-1.3B:x.pt", "-o", "out"]))
"""
    said = [line for line in processes[True].run(lines, tmp_path) if line == "2" or "stream-t1: " in line]
    assert said[1::2] == ["2"] * 3
    for line, name in zip(said[::2], ("gdhe17/Self-Forcing", "org/nothing", "LongLive-1.3B:x.pt"), strict=True):
        assert name in line and "is not on this disk, and could not be downloaded from the Hub: " in line
    assert not (tmp_path / "out").exists()
