"""Stage 2 of the demo's training: a small stock `WanTransformer3DModel` and its text encoder, by flow matching.

Teacher forcing over whole clips of latents: every chunk is denoised from the clean chunks that a stream would remember
(`teacher_forcing.py`). Half of the noise levels of the first part, and all of the last, are the four at which the
few-step sampler calls the model. Muon trains the matrices, AdamW the rest; what is kept is a moving average of both.

Axes: B clips, G groups, N chunks, C channels, F latent frames.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import nn
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

from .clips import ATTRIBUTES, BACKGROUNDS, COLORS, MOTIONS, SHAPES, Caption, drop_attributes
from .teacher_forcing import CHUNK_FRAMES, TEXT_LENGTH, TextMemory, context_mask, forward_chunks, text_memory
from .train_vae import LATENT_CHANNELS, save_state, warmup_cosine

SIGMAS = (1.0, 0.9375, 0.83333, 0.625)  # four steps at shift 5
SIGMA_SHARES = (0.2, 0.25, 0.275, 0.275)
SHIFT = 5.0
ROPE_FRAMES = 1024
LONGEST_GAP = 600


@dataclass(frozen=True)
class TransformerSettings:
    """How long and on what the transformer is trained."""

    num_steps: int = 3900
    batch_clips: int = 5
    extra_first_chunks: int = 40  # of other clips, since the first chunk has the most to learn
    noisy_groups: int = 2  # noisy copies that share one clean pass
    few_step_share: float = 0.4  # of the training, after which all noise levels are the sampler's
    matrix_learning_rate: float = 3e-3  # Muon
    learning_rate: float = 1.5e-3  # AdamW
    keep_attribute: float = 0.97  # probability that a caption says an attribute
    older_sink_share: float = 0.3  # of the steps in which an older chunk stays in the context
    gap_share: float = 0.3  # of the clips with a jump in position after the first chunk
    context_noise: float = 0.1  # largest sigma of the clean latents
    average_decay: float = 0.998


@dataclass(frozen=True, eq=False)
class LatentClips:
    """The training set: normalised latents and their captions."""

    latents: torch.Tensor  # (clips, C, F, h, w) float16
    captions: Sequence[Caption]  # one per clip


class TextToVideo(nn.Module):
    """The two parts that are trained together, and the tokenizer they read with."""

    def __init__(self, transformer: WanTransformer3DModel, text_encoder: UMT5EncoderModel, tokenizer) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer

    def read(self, texts: Sequence[str]) -> TextMemory:
        """The prompts as the transformer reads them."""
        device = self.transformer.device
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(device)
        embeds = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return text_memory(embeds, tokens.attention_mask)


def build_tokenizer() -> T5TokenizerFast:
    """A Unigram tokenizer of whole words: those of the captions and a few more letters' case."""
    words = ["a", "A", *COLORS, *BACKGROUNDS, *SHAPES, "shape", "moving", "diagonally", "on", "background"]
    words += [word for motion in MOTIONS for word in motion.split()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    vocabulary += [(f"▁{word}", -3.0) for word in dict.fromkeys(words)]
    return T5TokenizerFast(vocab=[*vocabulary, ("▁", -10.0)], extra_ids=0, model_max_length=TEXT_LENGTH)


def build_text_to_video(*, heads: int = 4, num_layers: int = 6, text_width: int = 64) -> TextToVideo:
    """The untrained model: text encoder of one layer, transformer of `num_layers`."""
    tokenizer = build_tokenizer()
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(tokenizer),
            d_model=text_width,
            d_kv=16,
            d_ff=2 * text_width,
            num_layers=1,
            num_heads=4,
            dropout_rate=0.0,
            initializer_factor=1.0,
        )
    )
    width = 32 * heads
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        text_dim=text_width,
        freq_dim=64,
        ffn_dim=3 * width,
        num_layers=num_layers,
        rope_max_seq_len=ROPE_FRAMES,
    )
    for module in transformer.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
    nn.init.zeros_(transformer.proj_out.weight)
    return TextToVideo(transformer, text_encoder, tokenizer)


def train_transformer(
    data: LatentClips,
    held_out: LatentClips,
    settings: TransformerSettings,
    *,
    model: TextToVideo,
    device: torch.device,
    seed: int,
    state_path: Path,
    log: Callable[[int, dict[str, float]], None],
    save_every: int = 200,
    gap_every: int = 100,
) -> TextToVideo:
    """The averaged model after `settings.num_steps`; resumes from `state_path`."""
    torch.manual_seed(seed)
    model = model.to(device).train()
    optimizers = _optimizers(model, settings)
    average = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    first_step = 0
    if state_path.exists():
        state = torch.load(state_path, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        average = state["average"]
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        first_step = state["step"]
    for step in range(first_step, settings.num_steps):
        generator = random.Random(seed * 1_000_003 + step)
        torch.manual_seed(generator.getrandbits(40))
        few_steps_only = step >= settings.few_step_share * settings.num_steps
        measures = _train_step(model, data, settings, generator, few_steps_only)
        measures["gradient"] = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        _optimize(optimizers, warmup_cosine(step, settings.num_steps))
        model.zero_grad(set_to_none=True)
        _update_average(average, model, min(settings.average_decay, (step + 1) / (step + 10)))
        if (step + 1) % gap_every == 0:
            measures |= caption_gaps(model, held_out)
        log(step, measures)
        if (step + 1) % save_every == 0 or step + 1 == settings.num_steps:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "average": average,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            save_state(state, state_path)
    model.load_state_dict(average, strict=False)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def caption_gaps(model: TextToVideo, held_out: LatentClips, *, sigma: float = 0.83333) -> dict[str, float]:
    """Loss with one wrong attribute minus loss with the right caption, per attribute, on first and later chunks.

    The early signal of whether an attribute is learnt: it stays near 0, then takes off.
    """
    generator = torch.Generator().manual_seed(0)
    device = model.transformer.device
    latents = _chunks(held_out.latents[:, :, : 2 * CHUNK_FRAMES].float()).to(device)  # (B, 2, C, 3, h, w)
    noise = torch.randn(latents.shape, generator=generator).to(device)
    losses = {}
    for name in (None, *ATTRIBUTES):
        captions = held_out.captions if name is None else [_wrong(c, name, i) for i, c in enumerate(held_out.captions)]
        text = model.read([caption.text for caption in captions])
        chunks = torch.stack([latents, (1 - sigma) * latents + sigma * noise], dim=1)
        timesteps = torch.zeros(chunks.shape[:3], device=device)
        timesteps[:, 1] = 1000 * sigma
        positions = CHUNK_FRAMES * torch.arange(2, device=device).expand(len(latents), 2)
        velocity = forward_chunks(model.transformer, chunks, timesteps, positions, text, context_mask(2, device))[:, 1]
        losses[name] = (velocity - (noise - latents)).square().mean(dim=(0, 2, 3, 4, 5))
    gaps = {f"gap_{name}": (losses[name] - losses[None])[0].item() for name in ATTRIBUTES}
    return {**gaps, "gap_motion_later": (losses["motion"] - losses[None])[1].item()}


def _train_step(
    model: TextToVideo,
    data: LatentClips,
    settings: TransformerSettings,
    generator: random.Random,
    few_steps_only: bool,
) -> dict[str, float]:
    """Gradients of one batch of whole clips and one of first chunks."""
    device = model.transformer.device
    picked = generator.choices(range(len(data.captions)), k=settings.batch_clips + settings.extra_first_chunks)
    texts = [
        drop_attributes(data.captions[i], keep_probability=settings.keep_attribute, generator=generator).text
        for i in picked
    ]
    whole, first = picked[: settings.batch_clips], picked[settings.batch_clips :]
    clips_loss = _clips_loss(
        model,
        _chunks(data.latents[whole].float()).to(device),
        texts[: settings.batch_clips],
        settings,
        generator,
        few_steps_only,
    )
    measures = {"loss": clips_loss.item()}
    if first:
        latents = _chunks(data.latents[first][:, :, :CHUNK_FRAMES].float()).to(device)
        first_loss = _clips_loss(model, latents, texts[settings.batch_clips :], settings, generator, few_steps_only)
        measures["first_loss"] = first_loss.item()
        chunks = settings.batch_clips * data.latents.shape[2] / CHUNK_FRAMES
        share = settings.extra_first_chunks / (settings.extra_first_chunks + chunks)
        clips_loss = (1 - share) * clips_loss + share * first_loss
    clips_loss.backward()
    return measures


def _clips_loss(
    model: TextToVideo,
    latents: torch.Tensor,
    texts: list[str],
    settings: TransformerSettings,
    generator: random.Random,
    few_steps_only: bool,
) -> torch.Tensor:
    """Mean squared error of the velocity over all noisy chunks.

    latents: (B, N, C, chunk_frames, h, w)
    """
    batch, num_chunks = latents.shape[:2]
    device = latents.device
    groups = settings.noisy_groups
    positions, counted = _positions(batch, num_chunks, settings.gap_share, generator)
    level = settings.context_noise * torch.rand(batch, num_chunks, device=device) ** 2
    clean = _add_noise(latents, torch.randn_like(latents), level)
    targets = latents[:, None].expand(-1, groups, -1, -1, -1, -1, -1)
    noise = torch.randn(targets.shape, device=device)
    sigma = _draw_sigmas((batch, groups, num_chunks), few_steps_only).to(device)
    chunks, timesteps = _add_noise(targets, noise, sigma), 1000 * sigma
    if num_chunks > 1:
        chunks = torch.cat([clean[:, None], chunks], dim=1)
        timesteps = torch.cat([torch.zeros(batch, 1, num_chunks, device=device), timesteps], dim=1)
    older = None
    if num_chunks > 4 and generator.random() < settings.older_sink_share:
        older = torch.tensor([generator.randint(1, n - 3) if n >= 4 else -1 for n in range(num_chunks)], device=device)
    mask = context_mask(num_chunks, device, older=older)
    with torch.autocast(device.type, torch.bfloat16):
        text = model.read(texts)
        velocity = forward_chunks(model.transformer, chunks, timesteps, positions.to(device), text, mask)
    error = (velocity[:, -groups:].float() - (noise - targets)).square().mean(dim=(3, 4, 5, 6))  # (B, G, N)
    counted = counted.to(device)[:, None].expand_as(error)
    return (error * counted).sum() / counted.sum()


def _positions(
    batch: int, num_chunks: int, gap_share: float, generator: random.Random
) -> tuple[torch.Tensor, torch.Tensor]:
    """RoPE positions (B, N) and which chunks count (B, N).

    A jump after the first chunk stands for the middle of a long video; its second chunk, which would have to continue
    a chunk that is far away, does not count.
    """
    positions = CHUNK_FRAMES * torch.arange(num_chunks).repeat(batch, 1)
    counted = torch.ones(batch, num_chunks)
    for i in range(batch):
        if num_chunks > 1 and generator.random() < gap_share:
            positions[i, 1:] += round(math.exp(generator.uniform(0, math.log(LONGEST_GAP))))
            counted[i, 1] = 0
    return positions, counted


def _draw_sigmas(shape: tuple[int, ...], few_steps_only: bool) -> torch.Tensor:
    """Noise levels: the sampler's four, or for half of them any level at shift 5."""
    index = torch.multinomial(torch.tensor(SIGMA_SHARES), math.prod(shape), replacement=True)
    sigmas = torch.tensor(SIGMAS)[index].reshape(shape)
    if few_steps_only:
        return sigmas
    uniform = torch.rand(shape)
    anywhere = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    return torch.where(torch.rand(shape) < 0.5, sigmas, anywhere)


def _add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(1 - sigma) * clean + sigma * noise, one level per chunk: sigma has all axes of `clean` up to the chunks."""
    level = sigma[(..., None, None, None, None)]
    return (1 - level) * clean + level * noise


def _chunks(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, F, h, w) to (B, N, C, chunk_frames, h, w)."""
    return latents.unflatten(2, (-1, CHUNK_FRAMES)).permute(0, 2, 1, 3, 4, 5)


def _wrong(caption: Caption, name: str, index: int) -> Caption:
    """The caption with another value of one attribute, never the colour of the background for the shape."""
    values = {"shape": SHAPES, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "motion": MOTIONS}[name]
    clash = {"color": caption.background, "background": caption.color}.get(name)
    others = [value for value in values if value not in (getattr(caption, name), clash)]
    return replace(caption, **{name: others[index % len(others)]})


def _optimizers(model: TextToVideo, settings: TransformerSettings) -> list[torch.optim.Optimizer]:
    blocks = [w for n, w in model.named_parameters() if w.ndim == 2 and ("blocks." in n or "condition_embedder" in n)]
    blocks = [w for w in blocks if min(w.shape) >= 16]
    chosen = {id(weight) for weight in blocks}
    others = [weight for weight in model.parameters() if id(weight) not in chosen]
    optimizers = [
        torch.optim.Muon(blocks, lr=settings.matrix_learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=settings.learning_rate, weight_decay=0.0, betas=(0.9, 0.98)),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return optimizers


def _optimize(optimizers: list[torch.optim.Optimizer], share: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak"]
        optimizer.step()


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    weights = dict(model.named_parameters())
    torch._foreach_lerp_(list(average.values()), [weights[name].detach() for name in average], 1 - decay)
