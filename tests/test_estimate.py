"""An estimate says before a run what the run then does."""

import math

import pytest
import torch
import torchao.quantization as quantization
from conftest import brightness
from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from stream_t1 import CausalWanTransformer3DModel, StreamT1Pipeline
from stream_t1.demo import load_pipeline
from stream_t1.models.alignment import align_weights
from stream_t1.models.cost import LiveBytes, weight_bytes
from stream_t1.search import EMASink, RewardRoutedSink, SlidingWindow, StaticSink

COUNTERS = ("forwards", "clean_passes", "latents_decoded", "frames_scored")
APPENDS = RewardRoutedSink(quality_threshold=-math.inf, transition_threshold=-math.inf)
NO_REWARDS = {"image_reward": False, "video_reward": False}
SMALL_CHUNKS = {"num_frames": 57, "output_type": "pt"}


def first_number(frames, prompt, fps):
    """A reward that needs no memory of its own."""
    return frames[:, -1, 0, 0, 0].clone()


RUNS = {
    "plain": {"num_beams": 1, "num_candidates": 1, "memory": StaticSink(), **NO_REWARDS},
    "plain latents": {
        "num_beams": 1,
        "num_candidates": 1,
        "memory": SlidingWindow(),
        "output_type": "latent",
        **NO_REWARDS,
    },
    "one beam": {"num_beams": 1, "num_candidates": 3, "memory": EMASink(), "video_reward": False},
    "two beams": {"memory": APPENDS},
    "few windows": {
        "num_beams": 3,
        "num_candidates": 1,
        "memory": APPENDS,
        "reward_window": 2,
        "num_inference_steps": 2,
    },
    "a monitor": {"num_beams": 4, "num_candidates": 1, "memory": SlidingWindow(), "num_inference_steps": 1}
    | {"monitors": {"first": first_number}, "num_frames": 129, **NO_REWARDS},
    "long and chosen": {"num_beams": 4, "num_candidates": 1, "memory": SlidingWindow(), "num_inference_steps": 1}
    | {"reward_window": 1, "num_frames": 249},
    "thumbnails": {"trace_thumbnails": True, "memory": StaticSink(), **NO_REWARDS},
}


@pytest.fixture(scope="module")
def demo():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    with torch.no_grad():
        embeds, _ = pipe.encode_prompt("a red circle moving left on a white background")
    pipe.image_reward = pipe.video_reward = first_number
    for model in (pipe.transformer, pipe.vae):
        align_weights(model)  # a first call would, and hold its copies
    return pipe, embeds


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_the_work_is_what_the_run_counts(demo, arguments):
    pipe, embeds = demo
    arguments = SMALL_CHUNKS | arguments
    estimate, trace = pipe.estimate(**arguments), pipe(prompt_embeds=embeds, **arguments).trace
    done = {name: sum(getattr(chunk.work, name) for chunk in trace.chunks) for name in COUNTERS}
    assert {name: getattr(estimate, name) for name in COUNTERS} == done
    assert estimate.num_chunks == len(trace.chunks)


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_the_operations_are_those_that_torch_counts(demo, arguments):
    pipe, embeds = demo
    arguments = SMALL_CHUNKS | arguments
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # torch counts no fused CPU kernel
        pipe(prompt_embeds=embeds, **arguments)
    assert pipe.estimate(**arguments).total_flops == counter.get_total_flops()


@pytest.mark.parametrize("arguments", RUNS.values(), ids=RUNS)
def test_the_bytes_are_hardly_more_than_were_alive(demo, arguments):
    pipe, embeds = demo
    arguments = SMALL_CHUNKS | arguments
    estimate = pipe.estimate(**arguments)
    weights = sum(size for part, size in estimate.always_bytes.items() if part.startswith("weights"))
    with LiveBytes() as live:
        pipe(prompt_embeds=embeds, **arguments)
    assert live.peak <= estimate.peak_bytes - weights < 1.4 * live.peak  # beams share more than in the dearest case


def test_weights_and_modules_among_the_rewards_are_counted(demo):
    pipe, _ = demo
    parts = pipe.estimate(image_reward=torch.nn.Linear(10, 5), monitors={"bright": brightness}).always_bytes
    assert parts["weights of image_reward"] == 4 * 55 and "weights of monitors['bright']" not in parts
    assert parts["weights of vae"] == sum(weight.nbytes for weight in pipe.vae.parameters())


def test_quantised_weights_count_as_they_are_stored_and_a_module_once(demo):
    linear = torch.nn.Linear(64, 64, bias=False)
    both = demo[0].estimate(image_reward=linear, video_reward=linear).always_bytes
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
    searched = pipe.estimate(num_frames=141, image_reward=first_number, video_reward=first_number)
    states = (
        searched.stage_bytes["denoise"]
        - pipe.estimate(num_frames=141, output_type="latent", **NO_REWARDS).stage_bytes["denoise"]
    )
    assert states / 1e9 == pytest.approx(2 * 1.9, rel=0.1)


def test_an_estimate_is_printed_as_a_table(demo):
    pipe, _ = demo
    lines = str(pipe.estimate(64, 64, 33)).splitlines()
    assert lines[0] == "3 chunks: 48 forwards, 4 clean passes, 36 latents decoded, 384 frames scored"
    assert any(line.startswith("  while decode: ") for line in lines)


def test_an_estimate_computes_nothing_and_refuses_what_a_call_refuses(demo):
    pipe, _ = demo
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the transformer was called"))
    try:
        pipe.estimate()
        with pytest.raises(ValueError, match="`num_frames` is 50"):
            pipe.estimate(num_frames=50)
        with pytest.raises(ValueError, match="no transformer"):
            StreamT1Pipeline(None, None, None, None, pipe.scheduler).estimate()
    finally:
        handle.remove()
