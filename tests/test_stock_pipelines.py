"""A user's own `WanPipeline` beside a `StreamT1Pipeline` over the same models goes on as if nothing had happened."""

import json

import pytest
import torch
import torchao.quantization as quantization
from accelerate import cpu_offload, cpu_offload_with_hook
from conftest import toy_transformer, toy_vae
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel, WanVideoToVideoPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from peft import LoraConfig

from stream_t1 import CausalWanTransformer3DModel, FewStepFlowMatchScheduler, StreamT1Pipeline

SIZE = {"height": 16, "width": 16, "num_frames": 9}
CPU = torch.device("cpu")


class OwnProcessor(WanAttnProcessor):
    """Of a user."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        return 2 * super().__call__(attn, hidden_states, *args, **kwargs)


def stock_transformer() -> WanTransformer3DModel:
    causal = toy_transformer()
    stock = WanTransformer3DModel.from_config(causal.config).eval()
    stock.load_state_dict(causal.state_dict())
    return stock


@pytest.fixture
def wan(tmp_path):
    """A `WanPipeline` loaded from a folder, so that its weights lie where they lay in their files."""
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    WanPipeline(
        tokenizer=None, text_encoder=None, transformer=stock_transformer(), vae=toy_vae(z_dim=4), scheduler=scheduler
    ).save_pretrained(tmp_path / "wan")
    return WanPipeline.from_pretrained(tmp_path / "wan", tokenizer=None, text_encoder=None)


@pytest.fixture
def stock_video(embeds):
    def make(wan: WanPipeline) -> torch.Tensor:
        wan.set_progress_bar_config(disable=True)
        generator, steps = torch.Generator().manual_seed(0), {"num_inference_steps": 2, "guidance_scale": 1.0}
        embedded = embeds.to(wan.transformer.dtype)
        return wan(prompt_embeds=embedded, generator=generator, output_type="pt", **steps, **SIZE).frames

    return make


@pytest.fixture
def latents(embeds):
    def make(pipe: StreamT1Pipeline) -> torch.Tensor:
        pipe.set_progress_bar_config(disable=True)
        arguments = {"num_frames": 21, "num_beams": 1, "num_candidates": 1, "output_type": "latent"}
        generator = torch.Generator().manual_seed(0)
        embedded = embeds.to(pipe.transformer.dtype)
        return pipe(prompt_embeds=embedded, generator=generator, height=16, width=16, **arguments).frames

    return make


def around(transformer: WanTransformer3DModel) -> StreamT1Pipeline:
    return StreamT1Pipeline(None, None, transformer, None, FewStepFlowMatchScheduler())


def assigned(wan: WanPipeline) -> StreamT1Pipeline:
    pipe = StreamT1Pipeline(None, None, None, wan.vae, None)
    pipe.transformer, pipe.scheduler = wan.transformer, wan.scheduler
    return pipe


TAKEN = {
    "from_pipe": StreamT1Pipeline.from_pipe,
    "constructor": lambda wan: StreamT1Pipeline(None, None, wan.transformer, wan.vae, wan.scheduler),
    "assignment": assigned,
}


@pytest.mark.parametrize("take", TAKEN.values(), ids=TAKEN)
def test_a_stock_pipeline_makes_the_bits_of_before_shares_and_saves(wan, stock_video, latents, tmp_path, take):
    transformer, scheduler, before = wan.transformer, wan.scheduler, stock_video(wan)
    classes = [type(module) for module in transformer.modules()]
    latents(take(wan))
    assert torch.equal(stock_video(wan), before)
    assert (wan.transformer, wan.scheduler) == (transformer, scheduler)
    assert [type(module) for module in transformer.modules()] == classes
    assert {type(each) for each in transformer.attn_processors.values()} == {WanAttnProcessor}
    assert WanPipeline.from_pipe(wan).transformer is transformer
    assert WanVideoToVideoPipeline.from_pipe(wan).transformer is transformer
    wan.save_pretrained(tmp_path / "saved")
    index = json.loads((tmp_path / "saved" / "model_index.json").read_text())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"]
    assert index["scheduler"] == ["diffusers", "UniPCMultistepScheduler"]
    config = json.loads((tmp_path / "saved" / "transformer" / "config.json").read_text())
    assert config["_class_name"] == "WanTransformer3DModel"


def test_the_users_scheduler_is_not_changed(wan):
    before = {name: repr(value) for name, value in vars(wan.scheduler).items()}
    pipe = StreamT1Pipeline.from_pipe(wan)
    assert pipe.scheduler is not wan.scheduler
    assert {name: repr(value) for name, value in vars(wan.scheduler).items()} == before


def test_from_pipe_casts_shared_models_only_when_it_is_told_to(wan, stock_video):
    wan.transformer.to(torch.bfloat16)
    before = stock_video(wan)
    pipe = StreamT1Pipeline.from_pipe(wan)
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    assert torch.equal(stock_video(wan), before)
    assert StreamT1Pipeline.from_pipe(wan, dtype=torch.float64).transformer.dtype == torch.float64
    assert wan.transformer.dtype == torch.float64


def add_lora(transformer: torch.nn.Module) -> None:
    torch.manual_seed(4)
    config = LoraConfig(r=2, target_modules=["to_q", "to_out.0", "proj_out", "net.2"], init_lora_weights=False)
    transformer.add_adapter(config)


def quantise(transformer: torch.nn.Module) -> None:
    in_blocks = lambda module, name: isinstance(module, torch.nn.Linear) and "blocks" in name  # noqa: E731
    quantization.quantize_(transformer, quantization.Int8WeightOnlyConfig(), filter_fn=in_blocks)


HUNG = {
    "adapter": add_lora,
    "model offload": lambda model: cpu_offload_with_hook(model, CPU),
    "sequential offload": lambda model: cpu_offload(model, CPU, offload_buffers=True),
    "quantised": quantise,
    "casting": lambda model: model.enable_layerwise_casting(torch.float64, torch.float32),
    "casting under an adapter": lambda model: (
        add_lora(model),
        model.enable_layerwise_casting(torch.float64, torch.float32),
    ),
    "fused projections": lambda model: model.fuse_qkv_projections(),
    "block hook": lambda model: model.blocks[0].register_forward_hook(lambda module, args, output: output * 1.5),
    "compiled attention": lambda model: model.blocks[0].attn1.compile(backend="eager"),
    "compiled part": lambda model: setattr(
        model.blocks[1], "ffn", torch.compile(model.blocks[1].ffn, backend="eager")
    ),
}


@pytest.mark.parametrize("hang", HUNG.values(), ids=HUNG)
def test_what_hangs_on_a_transformer_that_is_given_serves_both(embeds, latents, hang):
    """As it does on a causal one that carries it by itself."""
    torch.compiler.reset()
    causal, stock = toy_transformer(), stock_transformer()
    hang(causal)
    hang(stock)
    inputs = (torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(2)), torch.tensor([625.0]), embeds)
    with torch.no_grad():
        before = stock(*inputs).sample
        pipe = around(stock)
        torch.testing.assert_close(latents(pipe), latents(around(causal)), rtol=1e-5, atol=1e-5)
        assert torch.equal(stock(*inputs).sample, before)
    assert type(getattr(pipe.transformer, "_orig_mod", pipe.transformer)) is CausalWanTransformer3DModel
    assert type(stock) is WanTransformer3DModel


def test_a_compiled_transformer_stays_compiled_in_both(latents):
    torch.compiler.reset()
    compiled = []
    stock = torch.compile(stock_transformer(), backend=lambda graph, _: compiled.append(graph) or graph.forward)
    pipe = around(stock)
    assert type(pipe.transformer) is type(stock) and type(stock._orig_mod) is WanTransformer3DModel
    with torch.compiler.set_stance("force_eager"):  # what a graph computes, test_compile.py tries
        assert torch.equal(latents(pipe), latents(around(toy_transformer())))
    inputs = (torch.randn(1, 4, 1, 2, 2), torch.tensor([625.0]), torch.randn(1, 6, 8))
    with torch.no_grad():
        pipe.transformer(*inputs)
    assert compiled


def test_a_users_own_attention_processor_stays_in_the_stock_model_alone(latents):
    stock = stock_transformer()
    stock.set_attn_processor(OwnProcessor())
    pipe = around(stock)
    assert {type(each) for each in stock.attn_processors.values()} == {OwnProcessor}
    assert torch.equal(latents(pipe), latents(around(toy_transformer())))


def state_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight.clone() for name, weight in model.state_dict().items()}


@pytest.mark.parametrize("added_to", ["stock", "causal"])
def test_an_adapter_that_is_loaded_later_is_of_one_model_and_fused_of_both(embeds, added_to):
    stock = stock_transformer()
    causal = CausalWanTransformer3DModel.adopt(stock)
    one, other = (stock, causal) if added_to == "stock" else (causal, stock)
    inputs = (torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(2)), torch.tensor([625.0]), embeds)
    with torch.no_grad():
        before = other(*inputs).sample
        add_lora(one)
        adapted = one(*inputs).sample
        assert not torch.equal(adapted, before) and torch.equal(other(*inputs).sample, before)
        assert not getattr(other, "peft_config", None)
        one.fuse_lora()
        torch.testing.assert_close(other(*inputs).sample, adapted, rtol=1e-4, atol=1e-4)


def test_a_fused_adapter_that_both_carry_is_not_added_twice(embeds):
    stock = stock_transformer()
    add_lora(stock)
    causal = CausalWanTransformer3DModel.adopt(stock)
    inputs = (torch.randn(1, 4, 3, 2, 2, generator=torch.Generator().manual_seed(2)), torch.tensor([625.0]), embeds)
    with torch.no_grad():
        adapted = stock(*inputs).sample
        causal.fuse_lora()
        torch.testing.assert_close(stock(*inputs).sample, adapted, rtol=1e-4, atol=1e-4)


def test_moving_casting_and_loading_is_of_both():
    stock = stock_transformer()
    causal = CausalWanTransformer3DModel.adopt(stock)
    causal.to(torch.float64)
    assert {weight.dtype for weight in stock.parameters()} == {torch.float64}
    stock.load_state_dict({name: torch.zeros_like(weight) for name, weight in stock.state_dict().items()})
    assert not any(weight.any() for weight in causal.parameters())
    stock.to("meta")
    assert {weight.device.type for weight in causal.parameters()} == {"meta"}


def test_flags_and_hooks_that_are_set_later_are_each_models_own():
    stock = stock_transformer()
    causal = CausalWanTransformer3DModel.adopt(stock)
    causal.enable_gradient_checkpointing()
    causal.register_to_config(note="of the causal one")
    cpu_offload_with_hook(causal, CPU)
    assert not stock.is_gradient_checkpointing and "note" not in stock.config and not hasattr(stock, "_hf_hook")
    assert stock.forward.__func__ is WanTransformer3DModel.forward


def test_weights_that_two_calls_moved_lie_where_they_did_when_both_are_done(wan, embeds):
    pipe = StreamT1Pipeline.from_pipe(wan, default_height=16, default_width=16)
    before = [weight.data_ptr() for weight in wan.transformer.parameters()]
    assert any(place % 64 for place in before)
    arguments = {"prompt_embeds": embeds, "num_frames": 21, "num_beams": 1, "num_candidates": 1}
    streams = [pipe.stream(**arguments) for _ in range(2)]
    for stream in streams:
        next(stream)
    assert not any(weight.data_ptr() % 64 for weight in wan.transformer.parameters())
    streams.pop(0).close()
    stream = None
    assert not any(weight.data_ptr() % 64 for weight in wan.transformer.parameters())
    with torch.no_grad():
        wan.transformer.proj_out.bias.add_(1.0)
    changed = wan.transformer.proj_out.bias.clone()
    streams.pop().close()
    assert [weight.data_ptr() for weight in wan.transformer.parameters()] == before
    assert torch.equal(wan.transformer.proj_out.bias, changed)
