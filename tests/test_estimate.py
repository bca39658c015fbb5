"""An estimate says before a run what the run then does."""

import math
from functools import partial

import pytest
import torch
import torchao.quantization as quantization
from conftest import brightness, nothing_done, toy_transformer, toy_vae
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stream_t1 import CausalWanTransformer3DModel, FewStepFlowMatchScheduler, PromptTimeline, StreamT1Pipeline
from stream_t1.demo import load_pipeline
from stream_t1.models.alignment import align_weights
from stream_t1.models.cost import LiveBytes, weight_bytes
from stream_t1.search import EMASink, RewardRoutedSink, SlidingWindow, StaticSink

COUNTERS = ("forwards", "clean_passes", "recached_chunks", "latents_decoded", "frames_scored")
APPENDS = RewardRoutedSink(quality_threshold=-math.inf, transition_threshold=-math.inf)
NO_REWARDS = {"image_reward": False, "video_reward": False}
MANY_BEAMS = {"num_beams": 4, "num_candidates": 1, "num_inference_steps": 1}  # of which none is dropped
TWO_STEPS = {"num_inference_steps": 2}


def first_number(frames, prompt, fps):
    """A reward that needs no memory of its own."""
    return frames[:, -1, 0, 0, 0].clone()


def the_first(pipe, chunk_index, state):
    """Chooses, where there is no reward."""
    return {"kept": [0, 1]}


EARLY, LATE = (PromptTimeline({0: torch.zeros(1, 6, 8), frame: torch.ones(1, 6, 8)}) for frame in (21, 33))

# By name: the stage that needs the most bytes, and the call.
RUNS = {
    "plain": ("output", {"num_beams": 1, "num_candidates": 1, "memory": StaticSink(), **NO_REWARDS}),
    "plain latents": (
        "denoise",
        {"num_beams": 1, "num_candidates": 1, "memory": SlidingWindow(), "output_type": "latent", **NO_REWARDS},
    ),
    "latents of many beams": ("denoise", {"memory": APPENDS, "output_type": "latent", **MANY_BEAMS, **NO_REWARDS}),
    "one beam": (
        "decode",
        {"num_beams": 1, "num_candidates": 3, "memory": EMASink(), "video_reward": False, **TWO_STEPS},
    ),
    "two beams": ("reward", {"memory": APPENDS, **TWO_STEPS}),
    "a short window": (
        "reward",
        {"num_beams": 3, "num_candidates": 1, "memory": APPENDS, "reward_window": 2, **TWO_STEPS},
    ),
    "a monitor": (
        "monitor",
        {"monitors": {"first": first_number}, "memory": SlidingWindow(), "num_frames": 57, **MANY_BEAMS, **NO_REWARDS},
    ),
    "a given video": ("reward", {"video": torch.zeros(21, 3, 16, 16), "memory": APPENDS, **TWO_STEPS}),
    "given latents": ("reward", {"video_latents": torch.zeros(1, 4, 3, 2, 2), "memory": APPENDS, **TWO_STEPS}),
    "an image": ("reward", {"image": torch.zeros(3, 16, 16), "memory": APPENDS, **TWO_STEPS}),
    "whole videos": (
        "final selection",
        {"memory": SlidingWindow(), "reward_window": 1, "num_frames": 81} | MANY_BEAMS,
    ),
    "a changing prompt": (
        "denoise",
        {"prompt": EARLY, "memory": StaticSink(), "output_type": "latent", **MANY_BEAMS, **NO_REWARDS},
    ),
    "a changing prompt that is searched": (
        "decode",
        {"prompt": EARLY, "memory": APPENDS, "recache": "all", **TWO_STEPS},
    ),
    "a flush": (
        "denoise",
        {"prompt": LATE, "memory": APPENDS, "recache": "flush", "output_type": "latent", **MANY_BEAMS, **NO_REWARDS},
    ),
    "thumbnails": (
        "decode",
        {
            "trace_thumbnails": True,
            "memory": StaticSink(),
            "callback_on_chunk_end": the_first,
            "num_beams": 2,
            "num_candidates": 2,
            **TWO_STEPS,
            **NO_REWARDS,
        },
    ),
}


@pytest.fixture(scope="module")
def toy():
    """A pipeline whose window is full after three chunks, and what all its calls are given."""
    rewards = {"image_reward": first_number, "video_reward": first_number}
    pipe = StreamT1Pipeline(
        None, None, toy_transformer(), toy_vae(z_dim=4), FewStepFlowMatchScheduler(), **rewards, window_frames=9
    )
    pipe.set_progress_bar_config(disable=True)
    for model in (pipe.transformer, pipe.vae):
        align_weights(model)  # a first call would, and hold its copies
    prompt_embeds = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))
    sizes = {"height": 16, "width": 16, "num_frames": 45, "output_type": "pt", "prompt_embeds": prompt_embeds}
    return pipe, sizes


@pytest.fixture(scope="module")
def short_beginning(toy):
    """The same with a first chunk of one frame."""
    pipe, sizes = toy
    models, rewards = (pipe.transformer, pipe.vae), (pipe.image_reward, pipe.video_reward)
    pipe = StreamT1Pipeline(
        None, None, *models, FewStepFlowMatchScheduler(), *rewards, window_frames=9, first_chunk_frames=1
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe, {**sizes, "num_frames": 49}


@pytest.fixture(scope="module", params=RUNS.values(), ids=RUNS)
def run(toy, request):
    """A call, its estimate, and the stage that should need the most bytes."""
    pipe, sizes = toy
    stage, arguments = request.param
    arguments = sizes | arguments
    if "prompt" in arguments:
        del arguments["prompt_embeds"]
    return partial(pipe, **arguments), pipe.estimate(**arguments), stage


def test_the_work_is_what_the_run_counts_and_the_operations_are_those_that_torch_counts(run):
    call, estimate, _ = run
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch counts no fused CPU kernel
        trace = call().trace
    done = {name: sum(getattr(chunk.work, name) for chunk in trace.chunks) for name in COUNTERS}
    assert {name: getattr(estimate, name) for name in COUNTERS} == done
    assert estimate.num_chunks == len(trace.chunks)
    assert estimate.total_flops == counter.get_total_flops()


@pytest.mark.parametrize("past", [{}, {"image": torch.zeros(3, 16, 16)}, {"video": torch.zeros(13, 3, 16, 16)}])
def test_the_work_and_operations_are_exact_where_the_first_chunk_is_another(short_beginning, past):
    pipe, sizes = short_beginning
    arguments = {**sizes, **past, "memory": APPENDS, **TWO_STEPS}
    estimate = pipe.estimate(**arguments)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        trace = pipe(**arguments).trace
    done = {name: sum(getattr(chunk.work, name) for chunk in trace.chunks) for name in COUNTERS}
    assert {name: getattr(estimate, name) for name in COUNTERS} == done
    assert estimate.total_flops == counter.get_total_flops()


def test_the_bytes_are_hardly_more_than_were_alive(run):
    call, estimate, stage = run
    weights = sum(size for part, size in estimate.always_bytes.items() if part.startswith("weights"))
    with LiveBytes() as live:
        call()
    assert (
        live.peak <= estimate.peak_bytes - weights < 1.4 * live.peak
    )  # beams share more than in the most expensive case
    assert max(estimate.stage_bytes, key=estimate.stage_bytes.get) == stage


@pytest.fixture(scope="module")
def demo():
    pipe = load_pipeline()
    pipe.image_reward = pipe.video_reward = first_number
    return pipe


def test_weights_and_modules_among_the_rewards_are_counted(demo):
    parts = demo.estimate(image_reward=torch.nn.Linear(10, 5), monitors={"bright": brightness}).always_bytes
    assert parts["weights of image_reward"] == 4 * 55 and "weights of monitors['bright']" not in parts
    assert parts["weights of vae"] == sum(weight.nbytes for weight in demo.vae.parameters())


def test_quantised_weights_count_as_they_are_stored_and_a_module_once(demo):
    linear = torch.nn.Linear(64, 64, bias=False)
    both = demo.estimate(image_reward=linear, video_reward=linear).always_bytes
    assert both["weights of image_reward"] == 4 * 64 * 64 and "weights of video_reward" not in both
    quantization.quantize_(linear, quantization.Int8WeightOnlyConfig())
    assert 64 * 64 < weight_bytes(linear) < 1.2 * 64 * 64


def test_the_full_size_is_estimated_without_its_weights():
    """DESIGN's figures of a chunk: 27.8 TFLOP a forward, 0.86 GB of keys and values, 1.9 GB of decoder state."""
    with torch.device("meta"):
        transformer = CausalWanTransformer3DModel(num_attention_heads=12, ffn_dim=8960, num_layers=30)
        models = (transformer.to(torch.bfloat16), AutoencoderKLWan().to(torch.bfloat16))
    pipe = StreamT1Pipeline(None, None, *models, FlowMatchEulerDiscreteScheduler(shift=5.0))
    plain = {"num_beams": 1, "num_candidates": 1, "memory": StaticSink(), **NO_REWARDS}
    two, three = (pipe.estimate(num_frames=frames, **plain) for frames in (141, 153))
    one_chunk = (three.flops["denoise"] - two.flops["denoise"]) / 4
    assert one_chunk / 1e12 == pytest.approx(11.7 + 16.1 + 0.44, abs=0.1)
    assert two.always_bytes["memory"] / 1e9 == pytest.approx(4 * 0.8626 + 0.094, abs=0.01)  # and the prompt's
    two_beams = {"num_frames": 141, "num_beams": 2, "num_candidates": 1}
    seen = pipe.estimate(image_reward=first_number, video_reward=first_number, **two_beams).stage_bytes
    unseen = pipe.estimate(output_type="latent", **two_beams, **NO_REWARDS).stage_bytes
    assert (seen["denoise"] - unseen["denoise"]) / 1e9 == pytest.approx(2 * 1.9, rel=0.1)


def test_an_estimate_is_printed_as_a_table(demo):
    lines = str(demo.estimate(64, 64, 33)).splitlines()
    assert lines[0] == "3 chunks: 48 forwards, 4 clean passes, 36 latents decoded, 384 frames scored"
    assert any(line.startswith("  while decode: ") for line in lines)


def test_an_estimate_computes_and_changes_nothing(reading_pipeline):
    """What a call refuses, an estimate refuses: tests/test_pipeline_bad_input.py."""
    generator = torch.Generator().manual_seed(0)
    rewards = {"image_reward": torch.nn.Linear(2, 2), "monitors": {"first": first_number}}
    with nothing_done(reading_pipeline, generator):
        reading_pipeline.estimate(prompt="a circle", num_inference_steps=2, generator=generator, **rewards)


def test_an_estimate_loads_no_reward_that_it_names(reading_pipeline, named_reward):
    folder, loads = named_reward
    named = {"image_reward": folder, "video_reward": folder, "monitors": {"watched": folder}}
    given = {"image_reward": first_number, "video_reward": first_number, "monitors": {"watched": first_number}}
    work, expected = (reading_pipeline.estimate(num_frames=45, **rewards) for rewards in (named, given))
    assert loads == [] and str(work).splitlines()[0] == str(expected).splitlines()[0]


def test_an_estimate_in_the_middle_of_a_stream_is_not_seen_by_it(toy_pipeline, embeds):
    arguments = {"prompt_embeds": embeds, "num_frames": 33, "num_beams": 1, "num_candidates": 1, "output_type": "pt"}
    seeded = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    expected = toy_pipeline(generator=seeded(), **arguments).frames[0]
    stream = toy_pipeline.stream(generator=seeded(), **arguments)
    chunks = [next(stream).frames]
    with nothing_done(toy_pipeline):
        toy_pipeline.estimate(num_frames=45, num_inference_steps=2)
    chunks += [chunk.frames for chunk in stream]
    assert torch.equal(torch.cat(chunks), expected)


def test_without_a_transformer_there_is_nothing_to_estimate():
    with pytest.raises(ValueError, match="no transformer"):
        StreamT1Pipeline(None, None, None, None, FewStepFlowMatchScheduler()).estimate()
