"""A conversion at full size: how long, and in how much memory."""

import json
import re
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from checkpoint_files import save_base
from diffusers import WanTransformer3DModel
from safetensors import safe_open

from stream_t1.checkpoints.reading import open_checkpoint

WAN_1_3B = {
    "num_attention_heads": 12,
    "attention_head_dim": 128,
    "in_channels": 16,
    "out_channels": 16,
    "text_dim": 4096,
    "freq_dim": 256,
    "ffn_dim": 8960,
    "num_layers": 30,
}
RANK = 256


def write_in_pieces(path: Path, shapes: dict[str, tuple[int, ...]], scale: float) -> None:
    """A file of `torch.save` with random float32 tensors, of which one at a time is in memory.

    They are first written as safetensors, whose format needs nothing but offsets, and saved from there while mapped.
    """
    generator, end, header = torch.Generator().manual_seed(0), 0, {}
    for key, shape in shapes.items():
        begin, end = end, end + 4 * torch.Size(shape).numel()
        header[key] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    head = json.dumps(header).encode()
    pieces = path.with_suffix(".safetensors")
    with pieces.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for shape in shapes.values():
            file.write((scale * torch.randn(shape, generator=generator)).numpy().tobytes())
    with safe_open(pieces, "pt") as mapped:
        torch.save({"generator": {key: mapped.get_tensor(key) for key in shapes}}, path)
    pieces.unlink()


def run_measured(arguments: list[str]) -> tuple[int, float]:
    """Peak resident bytes and seconds of the command in a process of its own (Linux).

    What is mapped of files counts while it is resident. `getrusage` would count what the parent held when it forked.
    """
    begin = time.perf_counter()
    code = "import sys; from stream_t1.__main__ import main; assert main(sys.argv[1:]) == 0; "
    code += "print(open('/proc/self/status').read())"
    process = subprocess.run([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    peak = re.search(r"VmHWM:\s+(\d+) kB", process.stdout)
    return int(peak.group(1)) * 1024, time.perf_counter() - begin


@pytest.fixture
def large_files(tmp_path) -> Iterator[Path]:
    yield tmp_path
    for file in tmp_path.rglob("*"):
        if file.is_file() and file.stat().st_size > 10**8:
            file.unlink()  # pytest keeps the folders of its last runs


@pytest.mark.slow
def test_longlives_size_with_its_lora_converts_in_minutes_and_little_memory(large_files, reference_transformer):
    with torch.device("meta"):
        model = WanTransformer3DModel(**WAN_1_3B)
    shapes = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    linears = [key for key, shape in shapes.items() if key.startswith("blocks.") and len(shape) == 2]
    lora = {}
    for key in linears:
        module, (out_features, in_features) = key.removesuffix(".weight"), shapes[key]
        lora[f"base_model.model.{module}.lora_A.weight"] = (RANK, in_features)
        lora[f"base_model.model.{module}.lora_B.weight"] = (out_features, RANK)
    base = save_base(large_files / "base", reference_transformer)
    model.save_config(base / "transformer")  # weights of a base's transformer are not looked at
    write_in_pieces(large_files / "base.pt", {f"model.{key}": shape for key, shape in shapes.items()}, scale=0.02)
    write_in_pieces(large_files / "lora.pt", lora, scale=0.02)

    paths = {name: str(large_files / name) for name in ("base.pt", "lora.pt", "base", "out")}
    arguments = ["convert", "longlive", "--checkpoint", paths["base.pt"], "--lora", paths["lora.pt"]]
    num_bytes, seconds = run_measured([*arguments, "--base", paths["base"], "-o", paths["out"]])
    print(f"{seconds:.0f} s, peak {num_bytes / 1e9:.2f} GB")
    assert len(linears) == 300 and seconds < 600
    assert num_bytes < 2e9  # a shard of 1 GB, what is being merged, and the program itself; the file has 5.7

    out = open_checkpoint(large_files / "out/transformer")
    read = {name: open_checkpoint(large_files / name) for name in ("base.pt", "lora.pt")}
    key = linears[-1]
    pair = [f"base_model.model.{key.removesuffix('.weight')}.lora_{matrix}.weight" for matrix in "AB"]
    down, up = read["lora.pt"].read(pair, dict_name="generator").values()
    weight = read["base.pt"].read([f"model.{key}"], dict_name="generator")[f"model.{key}"]
    torch.testing.assert_close(out.read([key])[key], weight + up @ down)
