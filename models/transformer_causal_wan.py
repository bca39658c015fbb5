"""The causal Wan transformer, which makes a video chunk by chunk.

Weights, blocks and everything that diffusers attaches to them are those of `WanTransformer3DModel`. It adds an
attention processor that reads a memory, and a forward that passes each block its layer of that memory. Without a
memory the model *is* the stock one.

Axes: B batch, C channels, F latent frames, H and W latent height and width, L tokens, N heads, D head dim.
"""

import functools
import json

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.attention_dispatch import dispatch_attention_fn
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.transformers.transformer_wan import WanAttnProcessor, _get_qkv_projections
from diffusers.utils.peft_utils import apply_lora_scale

from . import memory as chunk_memory
from . import rotary, second_module


class CausalWanAttnProcessor(WanAttnProcessor):
    """Attention over memory and chunk.

    The stock block passes `rotary_emb` to its self-attention and `encoder_hidden_states` to its cross-attention
    untouched; a `LayerContext` and a `LayerPrompt` travel there. Any other input goes to the stock processor.
    """

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: torch.Tensor,
        encoder_hidden_states: "torch.Tensor | chunk_memory.LayerPrompt | None" = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: "tuple[torch.Tensor, torch.Tensor] | chunk_memory.LayerContext | None" = None,
    ) -> torch.Tensor:
        if isinstance(rotary_emb, chunk_memory.LayerContext):
            query, key, value = self._self_attention_heads(attn, hidden_states, rotary_emb)
        elif isinstance(encoder_hidden_states, chunk_memory.LayerPrompt):
            query, key, value = self._cross_attention_heads(attn, hidden_states, encoder_hidden_states)
        else:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb)
        attended = dispatch_attention_fn(query, key, value, backend=self._attention_backend)
        attended = attended.flatten(2, 3).type_as(query)  # (B, L, N * D)
        return attn.to_out[1](attn.to_out[0](attended))

    def _self_attention_heads(
        self, attn: torch.nn.Module, hidden_states: torch.Tensor, context: chunk_memory.LayerContext
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = _get_qkv_projections(attn, hidden_states, None)
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))  # (B, L, N, D)
        key = attn.norm_k(key).unflatten(2, (attn.heads, -1))
        value = value.unflatten(2, (attn.heads, -1))
        if context.recorded_key is not None:
            context.recorded_key.copy_(key[0])
            context.recorded_value.copy_(value[0])
        table = context.table.to(query.device)
        query, key = rotary.rotate(query, table), rotary.rotate(key, table)
        if context.key is not None:
            rows = (key.shape[0], -1, -1, -1)
            key = torch.cat((context.key.to(key.device).expand(rows), key), dim=1)
            value = torch.cat((context.value.to(value.device).expand(rows), value), dim=1)
        return query, key, value

    def _cross_attention_heads(
        self, attn: torch.nn.Module, hidden_states: torch.Tensor, prompt: chunk_memory.LayerPrompt
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if prompt.hidden_states is None:
            query = attn.to_q(hidden_states)
        else:
            query, key, value = _get_qkv_projections(attn, hidden_states, prompt.hidden_states)
            prompt.key.copy_(attn.norm_k(key).unflatten(2, (attn.heads, -1)))
            prompt.value.copy_(value.unflatten(2, (attn.heads, -1)))
        query = attn.norm_q(query).unflatten(2, (attn.heads, -1))
        rows = (query.shape[0], -1, -1, -1)
        return query, prompt.key.to(query.device).expand(rows), prompt.value.to(query.device).expand(rows)


class CausalWanTransformer3DModel(WanTransformer3DModel):
    """`WanTransformer3DModel` that can attend to a memory of earlier chunks.

    State dict, config and, without `context`, outputs are those of the stock class.
    """

    _skip_keys = ["context"]  # offload hooks must not rebuild it

    @functools.wraps(WanTransformer3DModel.__init__)  # diffusers reads a model's config keys off this signature
    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self._install_processors()

    def _install_processors(self) -> None:
        for block in self.blocks:
            for attention in (block.attn1, block.attn2):
                stock, processor = attention.processor, CausalWanAttnProcessor()
                for name in ("_attention_backend", "_parallel_config"):
                    setattr(processor, name, getattr(stock, name, None))  # a user's processor may lack them
                attention.set_processor(processor)

    def to_json_string(self) -> str:
        """The config under the stock class's name, so that a saved model loads wherever diffusers is installed."""
        stock = {"_class_name": WanTransformer3DModel.__name__}
        return json.dumps({**json.loads(super().to_json_string()), **stock}, indent=2, sort_keys=True) + "\n"

    @classmethod
    def adopt(cls, transformer: WanTransformer3DModel) -> "CausalWanTransformer3DModel":
        """A causal transformer over the weights of a stock one, which stays what it is and goes on serving others.

        Modules that are quantised, compiled, hooked or carry a LoRA are so in both: see `second_module`. One that is
        causal already is returned as it is.

        Raises:
            TypeError: `transformer` is neither a stock Wan transformer nor a causal one.
            ValueError: it is conditioned on an image, or under group offload or a step cache already.
        """
        module = getattr(transformer, "_orig_mod", transformer)  # what `torch.compile(model)` wraps
        if not isinstance(module, WanTransformer3DModel):
            raise TypeError(
                f"`transformer` is a {type(module).__name__}; streaming needs a diffusers `WanTransformer3DModel` "
                "(Wan 2.1 text-to-video), or a `CausalWanTransformer3DModel`."
            )
        if module.config.image_dim is not None or module.config.added_kv_proj_dim is not None:
            raise ValueError(
                "`transformer` is conditioned on an image; streaming needs a text-to-video model, such as that of "
                "Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
            )
        if isinstance(module, cls):
            return transformer
        adopted = second_module.second_module(transformer, cls)
        getattr(adopted, "_orig_mod", adopted)._install_processors()
        return adopted

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_image: torch.Tensor | None = None,
        return_dict: bool = True,
        attention_kwargs: dict[str, float] | None = None,
        context: chunk_memory.ChunkContext | None = None,
    ) -> Transformer2DModelOutput | tuple[torch.Tensor]:
        """Predicts the velocity of noisy latents, given a memory of earlier chunks.

        Args:
            hidden_states: (B, C, F, H, W) latents; with `context`, one chunk of B candidates of the same beam.
            timestep: (B,) floats in [0, 1000], `1000 * sigma`; 0 for the clean pass. Or (B, L), one per token.
            encoder_hidden_states: (B, text tokens, text dim); with `context` (1, ...), the candidates' one prompt.
            context: made by `ChunkMemory.context`. If it records, this pass writes its keys and values there.

        Returns:
            `sample` (B, C, F, H, W).
        """
        if context is None:
            return super().forward(
                hidden_states,
                timestep,
                encoder_hidden_states,
                encoder_hidden_states_image,
                return_dict=return_dict,
                attention_kwargs=attention_kwargs,
            )
        if encoder_hidden_states_image is not None or self.config.added_kv_proj_dim is not None:
            raise ValueError("`context` needs a text-to-video model; this one is conditioned on an image.")
        if self._parallel_config is not None or self.is_cache_enabled:
            raise ValueError(
                "`context` needs whole chunks and all of their steps: context parallelism splits chunks, and a step "
                "cache (`enable_cache`) skips steps. Disable it."
            )
        if encoder_hidden_states.shape[0] != 1:
            raise ValueError(
                f"`encoder_hidden_states` has {encoder_hidden_states.shape[0]} rows; with `context` all candidates "
                "share one prompt, so it must have 1."
            )
        sample = self._forward_chunk(
            hidden_states, timestep, encoder_hidden_states, context, attention_kwargs=attention_kwargs
        )
        return Transformer2DModelOutput(sample=sample) if return_dict else (sample,)

    @apply_lora_scale("attention_kwargs")
    def _forward_chunk(
        self,
        latents: torch.Tensor,
        timestep: torch.Tensor,
        prompt_embeds: torch.Tensor,
        context: chunk_memory.ChunkContext,
        attention_kwargs: dict[str, float] | None = None,
    ) -> torch.Tensor:
        """Runs the stock forward and passes each block its layer of the memory: (B, C, F, H, W) in and out."""
        grid = tuple(size // patch for size, patch in zip(latents.shape[2:], self.config.patch_size, strict=True))
        hidden_states = self.patch_embedding(latents).flatten(2).transpose(1, 2).contiguous()  # (B, L, dim)
        heads = (self.config.num_attention_heads, self.config.attention_head_dim)
        prompt = context.prompt
        if prompt.is_filled:
            prompt_embeds = prompt_embeds[:, :1]  # the text is not read again; do not embed all of it
        else:
            prompt.allocate(len(self.blocks), prompt_embeds.shape[1], heads, hidden_states)
        if context.record is not None:
            context.record.allocate(len(self.blocks), heads, hidden_states)

        num_times = timestep.shape[1] if timestep.ndim == 2 else None
        time, time_modulation, text, _ = self.condition_embedder(
            timestep.flatten(), prompt_embeds, None, timestep_seq_len=num_times
        )
        time_modulation = time_modulation.unflatten(-1, (6, -1))  # (B, 6, dim) or (B, L, 6, dim)
        for index, block in enumerate(self.blocks):
            hidden_states = block(hidden_states, prompt.layer(index, text), time_modulation, context.layer(index))
        prompt.is_filled = True

        ends = self.scale_shift_table.to(time.device) + time.unsqueeze(-2)  # (B, 2, dim) or (B, L, 2, dim)
        shift, scale = ends.unbind(-2) if timestep.ndim == 2 else ends.chunk(2, dim=1)  # (B, L, dim) or (B, 1, dim)
        shift, scale = shift.to(hidden_states.device), scale.to(hidden_states.device)
        hidden_states = (self.norm_out(hidden_states.float()) * (1 + scale) + shift).type_as(hidden_states)
        patches = self.proj_out(hidden_states).unflatten(2, (*self.config.patch_size, -1)).unflatten(1, grid)
        patches = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)  # (B, C, F, patch, rows, patch, columns, patch)
        return patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)
