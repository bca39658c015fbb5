"""Hooks of diffusers and accelerate: each gives the video of the bare pipeline, sinks being appended.

Two beams and two candidates throughout. Where there is no accelerator, accelerate's own hooks stand for what
`enable_model_cpu_offload` and `enable_sequential_cpu_offload` install, with the CPU to run on; group offload goes to
the disk, so that weights really leave.
"""

import functools
import itertools
import math

import accelerate
import pytest
import torch
import torchao.quantization as quantization
from conftest import nothing_done
from diffusers import WanTransformer3DModel
from diffusers.hooks import FirstBlockCacheConfig
from diffusers.models.attention_dispatch import attention_backend
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.demo import load_pipeline
from stream_t1.models.rotary import rotary_table, rotate
from stream_t1.search import RewardRoutedSink

CPU = torch.device("cpu")
APPENDS = RewardRoutedSink(quality_threshold=-math.inf, transition_threshold=-math.inf, max_sink_frames=9)
PROMPT = "a red circle moving left on a white background"


def video(pipe: StreamT1Pipeline, **arguments) -> torch.Tensor:
    """Six chunks; two become sinks, the next is averaged in."""
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    sizes = {"height": 32, "width": 32, "num_frames": 69, "output_type": "latent"}
    output = pipe(PROMPT, memory=APPENDS, generator=generator, **sizes, **arguments)
    assert len(output.trace.chunks[-1].sinks[0]) == 3
    return output.frames


@pytest.fixture(autouse=True)
def _backend_of_before():
    """`set_attention_backend` of one model sets it for every other in the process, too."""
    with attention_backend():
        yield


@pytest.fixture(scope="module")
def bare():
    return video(load_pipeline())


@pytest.fixture
def pipe():
    return load_pipeline()


def offload_models(pipe: StreamT1Pipeline) -> None:
    """Offloads as `enable_model_cpu_offload` does, one after the other in the pipeline's order."""
    hook, pipe._all_hooks = None, []
    for name in pipe.model_cpu_offload_seq.split("->"):
        _, hook = accelerate.cpu_offload_with_hook(getattr(pipe, name), CPU, prev_module_hook=hook)
        pipe._all_hooks.append(hook)
    pipe.maybe_free_model_hooks = lambda: [hook.offload() for hook in pipe._all_hooks]


def offload_submodules(pipe: StreamT1Pipeline) -> None:
    """Offloads as `enable_sequential_cpu_offload` does: weights are on the meta device except while in use."""
    for model in (pipe.text_encoder, pipe.transformer, pipe.vae):
        accelerate.cpu_offload(model, CPU, offload_buffers=len(model._parameters) > 0)
    assert pipe.transformer.blocks[0].attn1.to_q.weight.device.type == "meta"


def offload_groups(pipe: StreamT1Pipeline, tmp_path, **options) -> None:
    pipe.enable_group_offload(CPU, CPU, offload_to_disk_path=str(tmp_path), **options)


HOOKS = {
    "model offload": lambda pipe, _: offload_models(pipe),
    "sequential offload": lambda pipe, _: offload_submodules(pipe),
    "group offload, blocks": lambda pipe, path: offload_groups(pipe, path, num_blocks_per_group=2),
    # On disk, a text encoder's tied weights are lost to leaves that own them twice: diffusers' affair.
    "group offload, leaves": lambda pipe, path: offload_groups(
        pipe, path, offload_type="leaf_level", exclude_modules="text_encoder"
    ),
    "slicing": lambda pipe, _: pipe.vae.enable_slicing(),
    "casting": lambda pipe, _: pipe.transformer.enable_layerwise_casting(torch.float64, torch.float32),
    "attention backend": lambda pipe, _: pipe.transformer.set_attention_backend("_native_math"),
}


def assert_same_video(video: torch.Tensor, expected: torch.Tensor) -> None:
    """Compares up to the order of float32 sums, which a trained model passes on from chunk to chunk."""
    assert (video - expected).norm() < 5e-5 * expected.norm()


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_every_hook_gives_the_bare_pipelines_video_and_does_so_again(pipe, bare, tmp_path, hook):
    hook(pipe, tmp_path)
    assert_same_video(video(pipe), bare)
    assert_same_video(video(pipe), bare)


def test_weights_stored_in_float8_give_the_video_of_the_rounded_weights():
    stored, rounded = load_pipeline(), load_pipeline()
    stored.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    assert stored.transformer.blocks[0].attn1.to_q.weight.dtype == torch.float8_e4m3fn
    weights = {name: weight.float() for name, weight in stored.transformer.state_dict().items()}
    rounded.transformer.load_state_dict(weights)
    assert torch.equal(video(stored), video(rounded))


def test_offloading_moves_the_transformer_once_a_chunk(pipe, monkeypatch):
    """A model comes when it is called; then the one before it in the pipeline's order leaves, and no other does."""
    offload_models(pipe)
    called = []
    for name in ("text_encoder", "transformer", "vae"):
        getattr(pipe, name)._hf_hook.pre_forward = functools.partial(
            lambda name, was, *args, **named: called.append(name) or was(*args, **named),
            name,
            getattr(pipe, name)._hf_hook.pre_forward,
        )
    video(pipe)
    turns = [name for name, _ in itertools.groupby(called)]
    assert turns == ["text_encoder"] + ["transformer", "vae"] * 6


def lora(transformer: WanTransformer3DModel, rank: int = 8, blocks: range = range(6), features: int | None = None):
    """A random adapter of every attention, in the layout that diffusers saves."""
    generator, weights = torch.Generator().manual_seed(1), {}
    for index in blocks:
        for layer in ("attn1.to_q", "attn1.to_v", "attn2.to_k", "attn2.to_out.0"):
            linear, name = transformer.get_submodule(f"blocks.0.{layer}"), f"transformer.blocks.{index}.{layer}"
            shapes = {"A": (rank, features or linear.in_features), "B": (linear.out_features, rank)}
            for side, shape in shapes.items():
                weights[f"{name}.lora_{side}.weight"] = 0.1 * torch.randn(shape, generator=generator)
    return weights


def test_a_lora_acts_is_fused_and_leaves_no_trace(pipe, bare):
    pipe.load_lora_weights(lora(pipe.transformer))
    adapted = video(pipe)
    assert (adapted - bare).norm() > 0.1 * bare.norm()
    assert_same_video(video(pipe, attention_kwargs={"scale": 0.0}), bare)
    pipe.fuse_lora()
    assert_same_video(video(pipe), adapted)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert_same_video(video(pipe), bare)


def test_a_transformer_that_carries_a_lora_keeps_it(pipe):
    stock = WanTransformer3DModel.from_pretrained(pipe.config._name_or_path, subfolder="transformer")
    stock.load_lora_adapter(lora(stock))
    pipe.load_lora_weights(lora(pipe.transformer))
    adapted = video(pipe)
    pipe.transformer = stock
    assert torch.equal(video(pipe), adapted)


def test_a_lora_for_other_modules_is_refused_and_nothing_of_it_is_loaded(pipe):
    transformer = pipe.transformer
    other = {name.replace("transformer.", "unet."): weight for name, weight in lora(transformer).items()}
    for weights, message in (
        (other, "no module for 24 of this LoRA's modules: unet.blocks.0"),
        (
            lora(transformer, blocks=range(8)),
            "no module for 8 of this LoRA's modules: transformer.blocks.6.attn1.to_q",
        ),
        (
            lora(transformer, features=1536),
            r"24 changes .*blocks.0.attn1.to_q.weight is \(96, 96\), its A and B are \(8, 1536\)",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            pipe.load_lora_weights(weights)
    assert pipe.get_list_adapters() == {} and not getattr(transformer, "peft_config", None)


def test_quantised_linears_give_the_video_of_their_rounded_weights(pipe):
    rounded = load_pipeline()
    stock = WanTransformer3DModel.from_pretrained(pipe.config._name_or_path, subfolder="transformer")
    is_large = lambda module, name: isinstance(module, torch.nn.Linear) and "blocks" in name  # noqa: E731
    quantization.quantize_(stock, quantization.Int8WeightOnlyConfig(), filter_fn=is_large)
    for name, module in rounded.transformer.named_modules():
        if is_large(module, name):
            module.weight.data = stock.get_submodule(name).weight.dequantize()
    pipe.transformer = stock
    assert type(stock.blocks[0].attn1.to_q.weight).__name__ == "Int8Tensor"
    assert_same_video(video(pipe), video(rounded))


@pytest.mark.parametrize("method", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_offload_without_an_accelerator_says_so(pipe, method, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(ValueError, match=f"`{method}` moves models between the CPU and an accelerator. This machine"):
        getattr(pipe, method)()
    with pytest.raises(ValueError, match="`enable_group_offload` moves models.*`device` is 'cuda'. This machine has"):
        pipe.enable_group_offload("cuda", num_blocks_per_group=1)


def test_tiling_is_refused_before_any_work_but_for_latents(pipe):
    pipe.vae.enable_tiling()
    with nothing_done(pipe), pytest.raises(ValueError, match="VAE tiling is on.*enable_slicing"):
        pipe(PROMPT, num_frames=9)
    plain = {"num_beams": 1, "num_candidates": 1, "image_reward": False, "video_reward": False}
    assert len(pipe(PROMPT, num_frames=9, output_type="latent", **plain).frames) == 1


def test_a_step_cache_is_refused(pipe):
    pipe.transformer.enable_cache(FirstBlockCacheConfig())
    with pytest.raises(ValueError, match="step cache.*Disable it"):
        pipe(PROMPT, num_frames=9)


class PlainNumbers(TorchDispatchMode):
    """A device like MPS: without float64, and with few kernels for complex numbers."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        assert getattr(output, "dtype", None) not in (torch.float64, torch.complex64)
        return output


def test_a_step_on_mps_needs_no_float64():
    """Runs on tensors that claim to be there and compute nothing."""
    with FakeTensorMode(), PlainNumbers():
        sample = torch.empty((2, 4, 3, 8, 8), device="mps")
        stepped = FewStepFlowMatchScheduler().step_between(sample, sample, 0.9, 0.5, sample)
    assert stepped.shape == sample.shape and stepped.device.type == "mps"


def test_the_rotary_product_is_the_same_in_real_numbers(monkeypatch):
    heads = torch.randn(2, 12, 3, 8, generator=torch.Generator().manual_seed(0))
    table = rotary_table([3, 4, 5], 2, 2, 8)
    expected = rotate(heads, table)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)  # MPS takes the same branch
    with PlainNumbers():
        turned = rotate(heads, table)
    torch.testing.assert_close(turned, expected, rtol=1e-6, atol=1e-6)
