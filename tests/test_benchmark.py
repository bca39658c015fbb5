"""What the benchmark reports, at toy size."""

import itertools
import json
import socket
import sys
from dataclasses import replace
from pathlib import Path
from statistics import median

import pytest
import torch
from conftest import toy_transformer
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stream_t1.models.cost import ForwardShape
from stream_t1.models.memory import ChunkMemory, ChunkRecord, PromptMemory

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import chunk_cost  # noqa: E402
import metering  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _short_products(monkeypatch):
    """One small product for the machine's matrix rate, whose value no test reads."""
    monkeypatch.setattr(metering, "MATRIX_SIDES", {"cpu": (64,)})
    monkeypatch.setattr(metering, "MATRIX_SECONDS", 0.01)


def remembered_chunk(transformer, memory, prompt, embeds):
    """A memory with one more chunk of 18 tokens."""
    record = ChunkRecord()
    forward(transformer, context_of(memory, prompt).recording(record), embeds, batch_size=1)
    return memory.append(record.chunk(0, memory.num_frames, 3), 3)


def context_of(memory, prompt):
    return memory.context(
        (3, 4, 6), patch_size=(1, 2, 2), head_dim=12, positions="absolute", prompt=prompt, device=CPU
    )


@torch.no_grad()
def forward(transformer, context, embeds, batch_size):
    latents = torch.zeros(batch_size, 4, 3, 4, 6)
    transformer(latents, torch.zeros(batch_size), embeds, context=context)


@pytest.mark.parametrize("batch_size", [1, 3])
@pytest.mark.parametrize("num_past_chunks", [0, 2])
@pytest.mark.parametrize("fills_prompt", [True, False])
def test_counted_operations_are_those_that_torch_counts(batch_size, num_past_chunks, fills_prompt, embeds):
    transformer, prompt, memory = toy_transformer(), PromptMemory(), ChunkMemory()
    for _ in range(num_past_chunks):
        memory = remembered_chunk(transformer, memory, prompt, embeds)
    if not fills_prompt:
        forward(transformer, context_of(memory, prompt), embeds, batch_size)
    reads = context_of(memory, PromptMemory() if fills_prompt else prompt)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch counts no fused CPU kernel
        forward(transformer, reads, embeds, batch_size)
    call = ForwardShape(
        batch_size=batch_size,
        chunk_tokens=18,
        context_tokens=18 * num_past_chunks,
        text_tokens=6,
        fills_prompt=fills_prompt,
    )
    assert sum(call.flops(transformer.config)) == counter.get_total_flops()


def test_the_full_size_forward_is_what_the_design_says():
    """11.7 TFLOP linear; attention 16.1 at 12 frames of context, and 0.4 for the text."""
    model = chunk_cost.RANDOM_MODELS["wan-1.3b"]
    with torch.device("meta"):
        config = chunk_cost.CausalWanTransformer3DModel(**model.transformer).config
    call = ForwardShape(1, chunk_tokens=4680, context_tokens=14040, text_tokens=512, fills_prompt=False)
    linear, attention = call.flops(config)
    assert linear / 1e12 == pytest.approx(11.7, abs=0.05)
    assert attention / 1e12 == pytest.approx(16.1 + 0.44, abs=0.05)


def test_rows_hold_the_work_of_every_chunk(capsys):
    results = chunk_cost.main(["--model", "toy", "--chunks", "3", "--warmup", "0", "--num-candidates", "3"])
    rows, tried = results["rows"], 2 * 3
    assert [row["forwards"] for row in rows] == [4 * tried] * 3
    assert [row["clean_passes"] for row in rows] == [2, 2, 0]
    assert [row["latents_decoded"] for row in rows] == [3 * tried] * 3
    assert [row["frames_scored"] for row in rows] == [tried * (9 + 9), tried * (12 + 21), tried * (12 + 33)]
    assert [row["context_frames"] for row in rows] == [3, 6, 9]
    assert [set(row["floor_seconds"]) for row in rows] == [{"denoise", "clean_pass", "decode"}] * 2 + [
        {"denoise", "decode"}
    ]
    rate = results["matrix_flops_per_second"]
    for row in rows:
        assert row["share_of_matrix_rate"]["denoise"] == pytest.approx(
            row["flops"]["denoise"] / rate / row["seconds"]["denoise"]
        )
        assert row["peak_bytes"] > results["weights_bytes"] and row["state_bytes"] > 0
    assert "share of the matrix rate" in capsys.readouterr().out


def test_the_operations_of_all_rows_are_those_of_the_whole_run():
    bench = chunk_cost.Bench(chunk_cost.parse_arguments(["--model", "toy"]), CPU)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run = bench.run(3)
    counted = [sum(cost.flops.values()) for cost in bench.costs(run, rate=1.0)]
    assert sum(counted) == counter.get_total_flops()


def test_the_code_of_the_full_size_runs_without_a_gpu_and_names_no_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    file = tmp_path / "results.json"
    arguments = ["--chunks", "2", "--warmup", "1", "--vae-slicing", "--policy", "full", "--output", str(file)]
    results = chunk_cost.main(["--model", "wan-small", *arguments])
    text = file.read_text()
    assert json.loads(text) == results and len(results["rows"]) == 2
    assert str(ROOT) not in text and str(tmp_path) not in text and f'"{socket.gethostname()}"' not in text


def test_a_random_model_in_half_precision_runs_and_keeps_in_float32_what_a_loaded_one_keeps(monkeypatch):
    toy, shape = chunk_cost.RANDOM_MODELS["toy"], {"num_layers": 1, "ffn_dim": 32}
    tiny = replace(toy, transformer=toy.transformer | shape, size=(16, 16), dtype=torch.bfloat16)
    monkeypatch.setitem(chunk_cost.RANDOM_MODELS, "toy", tiny)
    bench = chunk_cost.Bench(chunk_cost.parse_arguments(["--model", "toy", "--num-beams", "1"]), CPU)
    transformer = bench.pipe.transformer
    assert transformer.dtype == bench.pipe.vae.dtype == torch.bfloat16
    assert transformer.condition_embedder.time_embedder.linear_1.weight.dtype == torch.float32
    assert len(bench.run(1).trace.chunks) == 1


def test_the_full_size_says_that_it_needs_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="needs a GPU"):
        chunk_cost.main(["--model", "wan-1.3b"])


def test_flatness_compares_the_medians_of_early_and_late_chunks(monkeypatch):
    monkeypatch.setattr(chunk_cost, "SPANS", (range(1, 3), range(3, 5)))
    monkeypatch.setattr(chunk_cost, "FLATNESS_RUNS", 2)
    results = chunk_cost.main(["--model", "toy", "--flatness", "--num-beams", "1", "--warmup", "0"])
    seconds = results["seconds"]
    assert len(seconds) == 6 and results["settings"]["policy"] == "static"
    for stage, medians in results["median_seconds"].items():
        early, late = ([seconds[index][stage] for index in span] for span in ((1, 2), (3, 4)))
        assert medians == [median(early), median(late)] and min(medians) > 0


def test_overhead_is_the_share_of_time_outside_the_forwards(monkeypatch):
    """Uses a clock that advances by a second at every reading: a forward takes one, from beginning to end."""
    monkeypatch.setattr(chunk_cost.time, "perf_counter", itertools.count().__next__)
    results = chunk_cost.main(["--model", "toy", "--overhead", "--chunks", "2", "--warmup", "1"])
    inside, outside = results["seconds_in_forwards"], results["seconds_outside"]
    assert inside == [2 * 4 + 1] * chunk_cost.OVERHEAD_RUNS  # the steps of two chunks, and the clean pass between them
    assert outside == [outside[0]] * len(inside) and outside[0] > inside[0]  # the two readings around each forward
    assert results["share_outside"] == [b / (a + b) for a, b in zip(inside, outside, strict=True)]


def test_existing_results_are_refused_before_anything_is_measured(tmp_path):
    (tmp_path / "results.json").write_text("mine")
    with pytest.raises(SystemExit, match="`--output`: .*results.json exists. Name another file"):
        chunk_cost.main(["--model", "toy", "--output", str(tmp_path / "results.json")])
    assert (tmp_path / "results.json").read_text() == "mine"
