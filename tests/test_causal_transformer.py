"""The causal transformer is the stock one, except for its memory."""

import pytest
import torch
from conftest import toy_transformer
from diffusers import AutoModel, FasterCacheConfig, WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.transformers.transformer_wan import WanAttnProcessor

from stream_t1 import CausalWanTransformer3DModel
from stream_t1.models import ChunkMemory
from stream_t1.models.memory import ChunkRecord, PromptMemory
from stream_t1.models.rotary import rotate

CHUNK = (3, 4, 4)  # latent frames, height, width
TOKENS = 3 * 2 * 2


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def context_of(model, memory, prompt=None, positions="absolute"):
    return memory.context(
        CHUNK,
        patch_size=model.config.patch_size,
        head_dim=model.config.attention_head_dim,
        positions=positions,
        prompt=prompt or PromptMemory(),
        device=torch.device("cpu"),
    )


def remember(model, memory, latents, embeds, first_sink_frames=3):
    record = ChunkRecord()
    model(latents, torch.zeros(1), embeds, context=context_of(model, memory).recording(record))
    return memory.append(record.chunk(memory.num_frames // 3, memory.num_frames, 3), first_sink_frames)


@pytest.fixture
def remembered(toy_models, embeds):
    """A model, the clean latents of two chunks, and the memory of them."""
    model, _ = toy_models
    clean = noise(1, 4, 6, 4, 4, seed=5)
    memory = ChunkMemory()
    with torch.no_grad():
        for chunk in clean.split(3, dim=2):
            memory = remember(model, memory, chunk, embeds)
    return model, clean, memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_without_a_memory_the_output_is_the_stock_models_bit_for_bit(dtype, embeds):
    causal = toy_transformer().to(dtype)
    stock = WanTransformer3DModel.from_config(causal.config).to(dtype)
    stock.load_state_dict(causal.state_dict())
    inputs = (noise(2, 4, 3, 4, 4).to(dtype), torch.tensor([937.5, 625.0]), embeds.expand(2, -1, -1).to(dtype))
    assert torch.equal(causal(*inputs).sample, stock.eval()(*inputs).sample)


def test_state_dict_keys_are_the_stock_models():
    causal = toy_transformer()
    assert causal.state_dict().keys() == WanTransformer3DModel.from_config(causal.config).state_dict().keys()


class BlockMaskProcessor(WanAttnProcessor):
    """Stock attention under a mask and with each token's own position: the uncached forward to compare with."""

    def __init__(self, mask, table):
        super().__init__()
        self.mask, self.table = mask, table

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        query, key, value = (projection(hidden_states) for projection in (attn.to_q, attn.to_k, attn.to_v))
        query, key, value = (
            heads.unflatten(2, (attn.heads, -1)) for heads in (attn.norm_q(query), attn.norm_k(key), value)
        )
        query, key = rotate(query, self.table), rotate(key, self.table)
        attended = dispatch_attention_fn(query, key, value, attn_mask=self.mask)
        return attn.to_out[0](attended.flatten(2, 3))


@torch.no_grad()
def test_cached_step_equals_a_full_forward_over_clean_chunks_and_the_noisy_one(remembered, embeds):
    model, clean, memory = remembered
    noisy, timestep = noise(1, 4, 3, 4, 4, seed=6), 833.3333
    cached = model(noisy, torch.tensor([timestep]), embeds, context=context_of(model, memory)).sample

    chunk_of_token = torch.arange(3).repeat_interleave(TOKENS)
    mask = chunk_of_token[:, None] >= chunk_of_token[None, :]
    stock = WanTransformer3DModel.from_config(model.config).eval()
    stock.load_state_dict(model.state_dict())
    cosines, sines = stock.rope(torch.cat((clean, noisy), dim=2))
    table = torch.stack((cosines[0, :, 0, 0::2], sines[0, :, 0, 1::2]), dim=-1)
    for block in stock.blocks:
        block.attn1.set_processor(BlockMaskProcessor(mask[None, None], table))
    timesteps = torch.cat((torch.zeros(2 * TOKENS), torch.full((TOKENS,), timestep)))[None]
    full = stock(torch.cat((clean, noisy), dim=2), timesteps, embeds).sample[:, :, 6:]
    torch.testing.assert_close(cached, full, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_relative_positions_number_the_context_from_zero(remembered, embeds):
    model, _, memory = remembered
    noisy = noise(1, 4, 3, 4, 4, seed=6)
    absolute, relative = (
        model(noisy, torch.tensor([625.0]), embeds, context=context_of(model, memory, positions=positions)).sample
        for positions in ("absolute", "relative")
    )
    assert torch.equal(absolute, relative)  # nothing has left: both count 0 to 8
    without_second = memory.evict_oldest(lambda sinks, chunk: sinks)
    assert context_of(model, without_second, positions="relative").table.equal(
        context_of(model, remember_first(memory), positions="absolute").table
    )


def remember_first(memory):
    """The memory as it was after its first chunk."""
    return ChunkMemory(sinks=memory.sinks, num_frames=3)


@torch.no_grad()
def test_a_batch_of_candidates_gives_what_each_gives_alone(remembered, embeds):
    model, _, memory = remembered
    latents = noise(3, 4, 3, 4, 4, seed=7)
    together = model(latents, torch.full((3,), 625.0), embeds, context=context_of(model, memory)).sample
    alone = [
        model(row, torch.tensor([625.0]), embeds, context=context_of(model, memory)).sample for row in latents[:, None]
    ]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_text_is_projected_once_per_prompt(remembered, embeds):
    model, _, memory = remembered
    calls = []
    handle = model.blocks[0].attn2.to_k.register_forward_hook(lambda *_: calls.append(1))
    context = context_of(model, memory, PromptMemory())
    first, second = (
        model(noise(1, 4, 3, 4, 4), torch.tensor([625.0]), embeds, context=context).sample for _ in range(2)
    )
    handle.remove()
    assert len(calls) == 1
    assert torch.equal(first, second)


@torch.no_grad()
def test_a_clean_pass_records_one_chunk(toy_models, embeds):
    model, _ = toy_models
    record = ChunkRecord()
    context = context_of(model, ChunkMemory()).recording(record)
    with pytest.raises(ValueError, match="records one chunk; 2 were given"):
        model(noise(2, 4, 3, 4, 4), torch.zeros(2), embeds, context=context)
    model(noise(1, 4, 3, 4, 4), torch.zeros(1), embeds, context=context)
    assert record.chunk(0, 0, 3).key.shape == (2, TOKENS, 2, 12)


@torch.no_grad()
def test_rotary_tables_stay_float32_in_a_bfloat16_model(embeds):
    model = toy_transformer().to(torch.bfloat16)
    context = context_of(model, remember(model, ChunkMemory(), noise(1, 4, 3, 4, 4).bfloat16(), embeds.bfloat16()))
    assert context.table.dtype == torch.float32
    assert context.key.dtype == torch.bfloat16


@torch.no_grad()
def test_a_causal_transformer_is_made_over_the_weights_of_a_stock_one(embeds):
    causal = toy_transformer()
    stock = WanTransformer3DModel.from_config(causal.config).eval()
    stock.load_state_dict(causal.state_dict())
    inputs = (noise(1, 4, 3, 4, 4), torch.tensor([625.0]), embeds)
    before = stock(*inputs).sample
    adopted = CausalWanTransformer3DModel.adopt(stock)
    assert type(stock) is WanTransformer3DModel and CausalWanTransformer3DModel.adopt(adopted) is adopted
    assert all(one is other for one, other in zip(stock.parameters(), adopted.parameters(), strict=True))
    assert torch.equal(adopted(*inputs).sample, before)
    memory_outputs = [model(*inputs, context=context_of(model, ChunkMemory())).sample for model in (adopted, causal)]
    assert torch.equal(*memory_outputs)


def test_adopting_keeps_the_attention_backend():
    stock = WanTransformer3DModel.from_config(toy_transformer().config)
    stock.set_attention_backend("native")
    adopted = CausalWanTransformer3DModel.adopt(stock)
    assert {block.attn1.processor._attention_backend.value for block in adopted.blocks} == {"native"}


def test_only_wan_transformers_are_adopted():
    with pytest.raises(TypeError, match="Linear.*WanTransformer3DModel"):
        CausalWanTransformer3DModel.adopt(torch.nn.Linear(2, 2))


def test_candidates_of_different_prompts_are_refused(toy_models, embeds):
    model, _ = toy_models
    with pytest.raises(ValueError, match="share one prompt"):
        context = context_of(model, ChunkMemory())
        model(noise(2, 4, 3, 4, 4), torch.zeros(2), embeds.expand(2, -1, -1), context=context)


def test_an_image_conditioned_model_is_refused():
    model = toy_transformer(added_kv_proj_dim=24, image_dim=8)
    with pytest.raises(ValueError, match="conditioned on an image; streaming needs a text-to-video model"):
        CausalWanTransformer3DModel.adopt(model)
    with pytest.raises(ValueError, match="conditioned on an image"):
        model(noise(1, 4, 3, 4, 4), torch.zeros(1), noise(1, 6, 8), context=context_of(model, ChunkMemory()))


@torch.no_grad()
def test_models_are_saved_and_loaded_as_they_are(tmp_path, embeds):
    causal, inputs = toy_transformer(), (noise(1, 4, 3, 4, 4), torch.tensor([625.0]), embeds)
    causal.save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(str(tmp_path))) is WanTransformer3DModel
    for kind in (CausalWanTransformer3DModel, WanTransformer3DModel):
        loaded = kind.from_pretrained(tmp_path)
        assert all(map(torch.equal, loaded.state_dict().values(), causal.state_dict().values()))
        torch.testing.assert_close(loaded(*inputs).sample, causal(*inputs).sample, rtol=1e-6, atol=1e-6)
    assert len(CausalWanTransformer3DModel.from_config(causal.config).blocks) == 2


@torch.no_grad()
def test_a_block_whose_hook_rebuilds_its_inputs_still_records(toy_models, embeds):
    """Accelerate's hooks do so when the blocks of a model are on several devices."""
    from accelerate.utils import recursively_apply

    model, _ = toy_models
    plain = remember(model, ChunkMemory(), noise(1, 4, 3, 4, 4), embeds)
    rebuild = lambda module, args: recursively_apply(lambda tensor: tensor.clone(), args)  # noqa: E731
    handle = model.blocks[1].register_forward_pre_hook(rebuild)
    rebuilt = remember(model, ChunkMemory(), noise(1, 4, 3, 4, 4), embeds)
    handle.remove()
    assert torch.equal(plain.sinks[0].key, rebuilt.sinks[0].key)
    assert torch.equal(plain.sinks[0].value, rebuilt.sinks[0].value)


@torch.no_grad()
def test_a_hook_that_was_there_before_calls_the_causal_forward(embeds):
    from accelerate.hooks import ModelHook, add_hook_to_module

    causal = toy_transformer()
    stock = WanTransformer3DModel.from_config(causal.config).eval()
    stock.load_state_dict(causal.state_dict())
    add_hook_to_module(stock, ModelHook())
    adopted = CausalWanTransformer3DModel.adopt(stock)
    inputs = (noise(1, 4, 3, 4, 4), torch.tensor([625.0]), embeds)
    expected = causal(*inputs, context=context_of(causal, ChunkMemory())).sample
    assert torch.equal(adopted(*inputs, context=context_of(adopted, ChunkMemory())).sample, expected)


@torch.no_grad()
def test_a_hook_that_was_removed_hides_the_causal_forward_no_more(embeds):
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    stock = WanTransformer3DModel.from_config(toy_transformer().config).eval()
    remove_hook_from_module(add_hook_to_module(stock, ModelHook()))
    adopted = CausalWanTransformer3DModel.adopt(stock)
    inputs = (noise(1, 4, 3, 4, 4), torch.tensor([625.0]), embeds)
    assert adopted(*inputs, context=context_of(adopted, ChunkMemory())).sample.shape == inputs[0].shape


def test_a_transformer_under_a_step_cache_is_taken_once_it_is_disabled():
    stock = WanTransformer3DModel.from_config(toy_transformer().config)
    stock.enable_cache(FasterCacheConfig(current_timestep_callback=lambda: 0, is_guidance_distilled=True))
    with pytest.raises(ValueError, match="faster_cache.*disable_cache"):
        CausalWanTransformer3DModel.adopt(stock)
    stock.disable_cache()
    assert CausalWanTransformer3DModel.adopt(stock).forward.__func__ is CausalWanTransformer3DModel.forward


def test_a_transformer_under_group_offload_is_refused():
    from diffusers.hooks import apply_group_offloading

    stock = WanTransformer3DModel.from_config(toy_transformer().config)
    cpu = torch.device("cpu")
    apply_group_offloading(stock, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    with pytest.raises(ValueError, match="already under group offload.*group_offloading.*enable_group_offload"):
        CausalWanTransformer3DModel.adopt(stock)


def test_a_subclass_stays_what_it_is():
    class Mine(CausalWanTransformer3DModel):
        pass

    mine = Mine.from_config(toy_transformer().config)
    assert type(CausalWanTransformer3DModel.adopt(mine)) is Mine


@torch.no_grad()
def test_the_scale_of_a_lora_acts_once_with_and_without_a_memory(embeds):
    from peft import LoraConfig

    model = toy_transformer()
    model.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    inputs = (noise(1, 4, 3, 4, 4), torch.tensor([625.0]), embeds)
    for scale in (0.0, 0.5, 1.0):
        arguments = {"attention_kwargs": {"scale": scale}}
        stock = model(*inputs, **arguments).sample
        remembered = model(*inputs, **arguments, context=context_of(model, ChunkMemory())).sample
        torch.testing.assert_close(stock, remembered, rtol=1e-5, atol=1e-5)
    assert not torch.equal(model(*inputs, attention_kwargs={"scale": 0.0}).sample, model(*inputs).sample)
