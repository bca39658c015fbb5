"""Stage 2 of the demo's training: a small stock `WanTransformer3DModel` and its text encoder, by flow matching.

First chunks alone come first: they cost little, and there the model learns what the words mean. Then teacher forcing
over whole clips of latents, with many first chunks mixed in: every chunk is denoised given the clean chunks that a
stream would remember (`teacher_forcing.py`). Most noise levels are the four at which the few-step sampler calls the
model. Muon trains the matrices, AdamW the rest; what is kept is a moving average of both.

Axes: B clips, G groups, N chunks, C channels, F latent frames.
"""

import copy
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
from .train_vae import LATENT_CHANNELS, LATENT_SIDE, save_state, warmup_cosine

SHIFT = 2.5  # half of Wan's: of so few latents noise hides more, at 5 even a perfect denoiser blurs at the last step
SIGMAS = tuple(SHIFT * u / (1 + (SHIFT - 1) * u) for u in (1.0, 0.75, 0.5, 0.25))  # of the four steps
SIGMA_SHARES = (0.13, 0.29, 0.29, 0.29)  # at sigma 1 the best answer is a mean, which is soon learned
ROPE_FRAMES = 1024
LONGEST_GAP = 600


@dataclass(frozen=True)
class TransformerSettings:
    """Length and data of the transformer's training."""

    num_steps: int = 4400
    first_stage_steps: int = 1700  # of first chunks alone
    first_stage_batch: int = 64
    batch_clips: int = 4
    extra_first_chunks: int = 32  # of other clips, beside the whole clips of the second stage
    noisy_groups: int = 2  # noisy copies of whole clips that share one clean pass
    other_sigmas: float = 0.1  # share of the noise levels that are not the sampler's
    matrix_learning_rate: float = 3e-3  # Muon
    learning_rate: float = 1.5e-3  # AdamW
    keep_attribute: float = 0.97  # probability that a caption says an attribute
    older_sink_share: float = 0.3  # of the steps in which an older chunk stays in the context
    gap_share: float = 0.3  # of the clips with a jump in position after the first chunk
    context_noise: float = 0.1  # largest sigma of the clean latents
    average_decay: float = 0.998


@dataclass(frozen=True, eq=False)
class LatentClips:
    """Normalised latents and their captions."""

    latents: torch.Tensor  # (clips, C, F, h, w) float16
    captions: Sequence[Caption]  # one per clip

    def draw(
        self, num_clips: int, settings: TransformerSettings, generator: random.Random
    ) -> tuple[torch.Tensor, list[str]]:
        """A batch of chunks (B, N, C, chunk_frames, h, w) and its texts, some attributes left unsaid."""
        picked = generator.choices(range(len(self.captions)), k=num_clips)
        captions = [
            drop_attributes(self.captions[i], keep_probability=settings.keep_attribute, generator=generator)
            for i in picked
        ]
        return _chunks(self.latents[picked].float()), [caption.text for caption in captions]


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Training data of the transformer."""

    clips: LatentClips  # of the usual length
    first_chunks: LatentClips  # F is one chunk; many more than clips, since they are cheap


class TextToVideo(nn.Module):
    """The two parts that are trained together, and their tokenizer."""

    def __init__(self, transformer: WanTransformer3DModel, text_encoder: UMT5EncoderModel, tokenizer) -> None:
        super().__init__()
        self.transformer = transformer
        self.text_encoder = text_encoder
        self.tokenizer = tokenizer

    def read(self, texts: Sequence[str]) -> TextMemory:
        """Encodes prompts as the transformer reads them."""
        device = self.transformer.device
        tokens = self.tokenizer(list(texts), padding=True, return_tensors="pt").to(device)
        embeds = self.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        return text_memory(embeds, tokens.attention_mask)


def build_tokenizer() -> T5TokenizerFast:
    """Builds a Unigram tokenizer of whole words: those of the captions, and a capital "A"."""
    words = ["a", "A", *COLORS, *BACKGROUNDS, *SHAPES, "shape", "moving", "diagonally", "on", "background"]
    words += [word for motion in MOTIONS for word in motion.split()]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -20.0)]
    vocabulary += [(f"▁{word}", -3.0) for word in dict.fromkeys(words)]
    return T5TokenizerFast(vocab=[*vocabulary, ("▁", -10.0)], extra_ids=0, model_max_length=TEXT_LENGTH)


def build_text_to_video(*, heads: int = 4, num_layers: int = 6, text_width: int = 64) -> TextToVideo:
    """Builds the untrained model: text encoder of one layer, transformer of `num_layers`."""
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
    data: TrainingSet,
    held_out: LatentClips,
    settings: TransformerSettings,
    *,
    model: TextToVideo,
    device: torch.device,
    seed: int,
    state_path: Path,
    log: Callable[[int, dict[str, float]], None],
    probe: Callable[[TextToVideo], dict[str, float]] | None = None,
    save_every: int = 200,
    gap_every: int = 100,
    probe_every: int = 500,
) -> TextToVideo:
    """Trains for `settings.num_steps` and returns the averaged model; resumes from `state_path`.

    probe: measures the averaged model from time to time, for the log
    """
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
        whole_clips = step >= settings.first_stage_steps
        measures = _train_step(model, data, settings, generator, whole_clips=whole_clips)
        measures["gradient"] = nn.utils.clip_grad_norm_(model.parameters(), 1.0).item()
        _optimize(optimizers, warmup_cosine(step, settings.num_steps))
        model.zero_grad(set_to_none=True)
        _update_average(average, model, min(settings.average_decay, (step + 1) / (step + 10)))
        if (step + 1) % gap_every == 0:
            measures |= caption_gaps(model, held_out)
        if probe is not None and (step + 1) % probe_every == 0:
            measures |= probe(_averaged(model, average))
        log(step, measures)
        if (step + 1) % save_every == 0 or step + 1 == settings.num_steps:
            state = {
                "step": step + 1,
                "model": model.state_dict(),
                "average": average,
                "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            }
            save_state(state, state_path)
    return _averaged(model, average)


@torch.no_grad()
def caption_gaps(model: TextToVideo, held_out: LatentClips, *, sigma: float = 0.83333) -> dict[str, float]:
    """Loss with one wrong attribute minus loss with the right caption, per attribute, on first and later chunks.

    The early signal that an attribute is learned: it stays near 0, then takes off.
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


@torch.no_grad()
def sample_first_chunks(model: TextToVideo, captions: Sequence[Caption], seed: int) -> torch.Tensor:
    """Normalised latents (B, C, chunk_frames, 8, 8) of one plain few-step sample per caption, first chunks alone."""
    generator = torch.Generator().manual_seed(seed)
    device = model.transformer.device
    text = model.read([caption.text for caption in captions])
    shape = (len(captions), 1, 1, LATENT_CHANNELS, CHUNK_FRAMES, LATENT_SIDE, LATENT_SIDE)
    positions, mask = torch.zeros(shape[0], 1, dtype=torch.long, device=device), context_mask(1, device)
    clean = torch.zeros(shape, device=device)
    for sigma in SIGMAS:
        level = torch.full(shape[:3], sigma, device=device)
        noisy = _add_noise(clean, torch.randn(shape, generator=generator).to(device), level)
        clean = noisy - sigma * forward_chunks(model.transformer, noisy, 1000 * level, positions, text, mask)
    return clean[:, 0, 0]


def _train_step(
    model: TextToVideo,
    data: TrainingSet,
    settings: TransformerSettings,
    generator: random.Random,
    *,
    whole_clips: bool,
) -> dict[str, float]:
    """Computes gradients of a batch of first chunks and, in stage two, of whole clips; every chunk weighs the same."""
    num_first = settings.extra_first_chunks if whole_clips else settings.first_stage_batch
    loss = _clips_loss(model, *data.first_chunks.draw(num_first, settings, generator), settings, generator)
    measures = {"first_loss": loss.item()}
    if whole_clips:
        latents, texts = data.clips.draw(settings.batch_clips, settings, generator)
        clips_loss = _clips_loss(model, latents, texts, settings, generator)
        measures["loss"] = clips_loss.item()
        share = num_first / (num_first + latents.shape[0] * latents.shape[1])
        loss = share * loss + (1 - share) * clips_loss
    loss.backward()
    return measures


def _clips_loss(
    model: TextToVideo,
    latents: torch.Tensor,
    texts: list[str],
    settings: TransformerSettings,
    generator: random.Random,
) -> torch.Tensor:
    """Mean squared error of the velocity over all noisy chunks.

    latents: (B, N, C, chunk_frames, h, w)
    """
    device = model.transformer.device
    latents = latents.to(device)
    batch, num_chunks = latents.shape[:2]
    groups = 1 if num_chunks == 1 else settings.noisy_groups
    positions, counted = _positions(batch, num_chunks, settings.gap_share, generator)
    level = settings.context_noise * torch.rand(batch, num_chunks, device=device) ** 2
    clean = _add_noise(latents, torch.randn_like(latents), level)
    targets = latents[:, None].expand(-1, groups, -1, -1, -1, -1, -1)
    noise = torch.randn(targets.shape, device=device)
    sigma = _draw_sigmas((batch, groups, num_chunks), settings.other_sigmas).to(device)
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


def _draw_sigmas(shape: tuple[int, ...], other_sigmas: float) -> torch.Tensor:
    """Noise levels: the sampler's four, or for this share of them any level at the same shift."""
    index = torch.multinomial(torch.tensor(SIGMA_SHARES), math.prod(shape), replacement=True)
    sigmas = torch.tensor(SIGMAS)[index].reshape(shape)
    uniform = torch.rand(shape)
    anywhere = SHIFT * uniform / (1 + (SHIFT - 1) * uniform)
    return torch.where(torch.rand(shape) < other_sigmas, anywhere, sigmas)


def _add_noise(clean: torch.Tensor, noise: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """(1 - sigma) * clean + sigma * noise, one level per chunk: sigma has all axes of `clean` up to the chunks."""
    level = sigma[(..., None, None, None, None)]
    return (1 - level) * clean + level * noise


def _chunks(latents: torch.Tensor) -> torch.Tensor:
    """(B, C, F, h, w) to (B, N, C, chunk_frames, h, w)."""
    return latents.unflatten(2, (-1, CHUNK_FRAMES)).permute(0, 2, 1, 3, 4, 5)


def _wrong(caption: Caption, name: str, index: int) -> Caption:
    """The caption with another value of one attribute."""
    values = {"shape": SHAPES, "color": tuple(COLORS), "background": tuple(BACKGROUNDS), "motion": MOTIONS}[name]
    others = [value for value in values if value != getattr(caption, name)]
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


def _averaged(model: TextToVideo, average: dict[str, torch.Tensor]) -> TextToVideo:
    """A copy of the model with the averaged weights, for use."""
    averaged = copy.deepcopy(model)
    averaged.load_state_dict(average, strict=False)
    return averaged.eval().requires_grad_(False)


@torch.no_grad()
def _update_average(average: dict[str, torch.Tensor], model: nn.Module, decay: float) -> None:
    weights = dict(model.named_parameters())
    torch._foreach_lerp_(list(average.values()), [weights[name].detach() for name in average], 1 - decay)
