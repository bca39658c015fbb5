"""The demo's training: teacher forcing is streaming, and a kill costs only time."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline
from transformers import T5TokenizerFast

from stream_t1.demo.clips import all_captions, held_out_captions
from stream_t1.demo.teacher_forcing import context_mask, forward_chunks, text_memory
from stream_t1.demo.train import main
from stream_t1.demo.train_transformer import (
    SHIFT,
    SIGMAS,
    LatentClips,
    TextToVideo,
    TrainingSet,
    TransformerSettings,
    build_text_to_video,
    build_tokenizer,
    caption_gaps,
    sample_first_chunks,
    train_transformer,
)
from stream_t1.demo.train_vae import (
    ClipStream,
    VAESettings,
    build_vae,
    decode_piece,
    empty_caches,
    encode_piece,
    train_vae,
)
from stream_t1.schedulers.few_step_flow_match import FewStepFlowMatchScheduler

TEXTS = ["a red circle moving left", "a blue cross moving diagonally on a white background"]


@pytest.fixture
def model() -> TextToVideo:
    torch.manual_seed(0)
    model = build_text_to_video(heads=2, num_layers=2).eval().requires_grad_(False)
    torch.nn.init.normal_(model.transformer.proj_out.weight, std=0.1)
    return model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    main(["--output", str(folder), "--smoke", "--device", "cpu"])
    return folder


def padded_embeds(model: TextToVideo) -> torch.Tensor:
    """Prompts as `WanPipeline` encodes them: zeros up to 512 tokens, no mask."""
    tokens = model.tokenizer(TEXTS, padding="max_length", max_length=512, return_tensors="pt")
    embeds = model.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return embeds * tokens.attention_mask[:, :, None]


def velocities(model: TextToVideo, chunks: torch.Tensor, sigma: float = 0.625) -> torch.Tensor:
    """Velocities of clips (B, N, C, 3, h, w) that are their own noisy copies."""
    batch, num_chunks = chunks.shape[:2]
    timesteps = torch.zeros(batch, 2, num_chunks)
    timesteps[:, 1] = 1000 * sigma
    positions = 3 * torch.arange(num_chunks).expand(batch, -1)
    mask = context_mask(num_chunks, torch.device("cpu"))
    return forward_chunks(
        model.transformer, torch.stack([chunks] * 2, 1), timesteps, positions, model.read(TEXTS), mask
    )


def test_the_first_chunk_gets_what_the_stock_forward_gives(model):
    latents = torch.randn(2, 8, 3, 8, 8)
    stock = model.transformer(latents, torch.full((2,), 625.0), padded_embeds(model), return_dict=False)[0]
    assert torch.allclose(velocities(model, latents[:, None])[:, 1, 0], stock, atol=1e-5)


def test_a_second_chunk_gets_what_the_stock_forward_gives_with_one_timestep_per_token(model):
    latents = torch.randn(2, 2, 8, 3, 8, 8)
    once = velocities(model, latents)
    # the clean first chunk sees itself alone in a stream, but the noisy second one in the stock forward: so only the
    # first layer's context agrees, and the model is cut down to it
    model.transformer.blocks = model.transformer.blocks[:1]
    once = velocities(model, latents)[:, 1, 1]
    timesteps = torch.cat([torch.zeros(2, 48), torch.full((2, 48), 625.0)], dim=1)
    joined = latents.transpose(1, 2).flatten(2, 3)
    stock = model.transformer(joined, timesteps, padded_embeds(model), return_dict=False)[0]
    assert torch.allclose(once, stock[:, :, 3:], atol=1e-5)


def test_a_chunk_never_sees_a_later_one(model):
    chunks = torch.randn(2, 5, 8, 3, 8, 8)
    changed = chunks.clone()
    changed[:, 3:] = torch.randn(2, 2, 8, 3, 8, 8)
    assert torch.equal(velocities(model, chunks)[:, :, :3], velocities(model, changed)[:, :, :3])


def test_context_is_the_first_chunk_the_two_before_and_itself():
    seen = context_mask(6, torch.device("cpu")).bias == 0  # slots: first, two back, one back, itself
    assert seen.tolist() == [
        [False, False, False, True],
        [True, False, False, True],
        [True, False, True, True],
        [True, True, True, True],
        [True, True, True, True],
        [True, True, True, True],
    ]


def test_one_zero_token_stands_for_all_the_padding():
    embeds = torch.randn(1, 4, 8)
    memory = text_memory(embeds, torch.tensor([[1, 1, 1, 0]]))
    assert memory.embeds.shape == (1, 5, 8) and memory.embeds[0, 3:].abs().max() == 0
    assert memory.bias[0, 3] == -torch.inf
    assert memory.bias[0, 4].exp() == pytest.approx(509, rel=1e-5)


def test_no_caption_has_an_unknown_word():
    tokenizer = build_tokenizer()
    tokens = tokenizer([caption.text for caption in all_captions()]).input_ids
    assert all(tokenizer.unk_token_id not in ids for ids in tokens)


def test_the_tokenizer_loads_again_alike(tmp_path):
    build_tokenizer().save_pretrained(tmp_path)
    loaded = T5TokenizerFast.from_pretrained(tmp_path)
    assert loaded(TEXTS).input_ids == build_tokenizer()(TEXTS).input_ids


def test_a_model_that_ignores_the_caption_has_no_gap(model):
    torch.nn.init.zeros_(model.transformer.proj_out.weight)
    held_out = LatentClips(torch.randn(4, 8, 6, 8, 8).half(), held_out_captions(4))
    assert all(gap == 0 for gap in caption_gaps(model, held_out).values())


def test_a_sampled_first_chunk_is_what_the_scheduler_makes_of_the_stock_forward(model):
    captions = held_out_captions(2)
    noise = torch.Generator().manual_seed(7)
    draws = [torch.randn(2, 1, 1, 8, 3, 8, 8, generator=noise)[:, 0, 0] for _ in SIGMAS]
    tokens = model.tokenizer([c.text for c in captions], padding="max_length", max_length=512, return_tensors="pt")
    embeds = model.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    embeds = embeds * tokens.attention_mask[:, :, None]
    scheduler = FewStepFlowMatchScheduler(shift=SHIFT)
    latents = draws[0]
    for i, level in enumerate(scheduler.levels):
        velocity = model.transformer(latents, torch.full((2,), 1000 * level), embeds, return_dict=False)[0]
        following, fresh = (0.0, None) if i == 3 else (scheduler.levels[i + 1], draws[i + 1])
        latents = scheduler.step_between(velocity, latents, level, following, fresh)
    assert torch.allclose(sample_first_chunks(model, captions, seed=7), latents, atol=1e-4)


def test_the_first_stage_trains_on_first_chunks_alone(tmp_path):
    captions = held_out_captions(3)
    first = LatentClips(torch.randn(3, 8, 3, 8, 8).half(), captions)
    data = TrainingSet(LatentClips(torch.full((3, 8, 6, 8, 8), torch.nan).half(), captions), first)
    settings = TransformerSettings(num_steps=2, first_stage_steps=1, first_stage_batch=3, batch_clips=1)
    lines = []
    train_transformer(
        data,
        first,
        settings,
        model=build_text_to_video(heads=1, num_layers=1),
        device=torch.device("cpu"),
        seed=0,
        state_path=tmp_path / "state.pt",
        log=lambda step, measures: lines.append(measures),
    )
    assert lines[0]["first_loss"] > 0 and "loss" not in lines[0]
    assert lines[1]["loss"] != lines[1]["loss"]  # the second stage reads the clips, which are NaN here


def test_streams_start_anew_after_their_pieces_and_weigh_the_first_frame():
    settings = VAESettings(base_dim=4, batch_clips=1, object_weight=1.0, first_frame_weight=3.0)
    stream = ClipStream(settings, seed=0, vae=build_vae(base_dim=4), num_pieces=2)
    weights = [stream.next_piece()[1] for _ in range(3)]
    assert [piece.shape[2] for piece in weights] == [9, 12, 9]
    assert weights[0][0, 0, :2, 0, 0].tolist() == [3.0, 1.0] and (weights[1] == 1).all()


def test_pieces_with_caches_equal_the_whole_clip():
    torch.manual_seed(0)
    vae = build_vae(base_dim=4).eval().requires_grad_(False)
    pixels = torch.rand(1, 3, 21, 64, 64) * 2 - 1
    encoder_cache, decoder_cache = empty_caches(vae)
    latents = torch.cat(
        [encode_piece(vae, part, encoder_cache) for part in (pixels[:, :, :9], pixels[:, :, 9:])], dim=2
    )
    assert torch.allclose(latents.chunk(2, dim=1)[0], vae.encode(pixels).latent_dist.mean, atol=1e-5)
    mean = latents.chunk(2, dim=1)[0]
    frames = torch.cat([decode_piece(vae, part, decoder_cache) for part in (mean[:, :, :3], mean[:, :, 3:])], dim=2)
    assert torch.allclose(frames.clamp(-1, 1), vae.decode(mean).sample, atol=1e-5)


def test_one_command_writes_a_checkpoint_that_loads_and_its_card(checkpoint):
    from stream_t1 import StreamT1Pipeline

    pipeline = StreamT1Pipeline.from_pretrained(checkpoint)
    assert isinstance(pipeline, DiffusionPipeline)
    measurements = json.loads((checkpoint / "measurements.json").read_text())
    assert f"{measurements['parameters']['transformer']:,}" in (checkpoint / "README.md").read_text()
    assert {"loss_curves.png", "contact_sheet.png"} <= {path.name for path in checkpoint.iterdir()}


def test_no_path_of_the_machine_stays_in_the_checkpoint(checkpoint):
    configs = [path.read_text() for path in checkpoint.rglob("*.json")]
    assert not any(str(checkpoint.parent) in text or "_name_or_path" in text for text in configs)


def test_a_finished_training_started_again_gives_the_same_weights(checkpoint):
    weights = checkpoint / "transformer" / "diffusion_pytorch_model.safetensors"
    before = weights.read_bytes()
    main(["--output", str(checkpoint), "--smoke", "--device", "cpu"])
    assert weights.read_bytes() == before


class Killed(Exception):
    pass


def killed_after(num_steps):
    """A log that ends the training after so many steps."""

    def log(step, measures):
        if step + 1 > num_steps:
            raise Killed

    return log


def test_a_killed_transformer_training_goes_on_to_the_same_weights(tmp_path):
    captions = held_out_captions(3)
    clips = LatentClips(torch.randn(3, 8, 21, 8, 8, generator=torch.Generator().manual_seed(0)).half(), captions)
    data = TrainingSet(clips, LatentClips(clips.latents[:, :, :3], captions))
    settings = TransformerSettings(
        num_steps=4, first_stage_steps=1, first_stage_batch=3, batch_clips=2, extra_first_chunks=2
    )

    def train(path, log):
        torch.manual_seed(0)
        model = build_text_to_video(heads=1, num_layers=1)
        arguments = {"device": torch.device("cpu"), "seed": 0, "state_path": path, "log": log, "save_every": 2}
        return train_transformer(data, clips, settings, model=model, **arguments)

    whole = train(tmp_path / "whole.pt", lambda *_: None)
    with pytest.raises(Killed):
        train(tmp_path / "killed.pt", killed_after(3))
    resumed = train(tmp_path / "killed.pt", lambda *_: None)
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_a_killed_vae_training_goes_on_where_its_state_was_saved(tmp_path):
    settings = VAESettings(base_dim=4, num_steps=4, batch_clips=1, num_streams=1, pieces_per_stream=2)
    arguments = {"device": torch.device("cpu"), "seed": 0, "state_path": tmp_path / "vae.pt", "save_every": 2}
    with pytest.raises(Killed):
        train_vae(settings, log=killed_after(3), **arguments)
    steps = []
    train_vae(settings, log=lambda step, measures: steps.append(step), **arguments)
    assert steps == [2, 3]


def test_a_card_that_is_not_of_a_training_is_never_replaced(tmp_path, checkpoint):
    (tmp_path / "README.md").write_text("mine")
    for command in (["--output", str(tmp_path), "--smoke"], ["--output", str(checkpoint), "--smoke"]):
        with pytest.raises(FileExistsError, match="has README.md.* not of a training, or were changed"):
            main([*command, "--device", "cpu"])
        (checkpoint / "README.md").write_text("edited")
    assert [path.name for path in tmp_path.iterdir()] == ["README.md"]
