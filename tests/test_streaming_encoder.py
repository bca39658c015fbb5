"""Encoding in pieces is encoding at once, and a state can be continued in several ways."""

import pytest
import torch
from conftest import toy_vae
from test_streaming_decoder import VAES

from stream_t1.models.cost import LiveBytes, encode_cost
from stream_t1.models.streaming_encoder import StreamingWanEncoder


def clip(num_frames=17, seed=0):
    """(1, 3, F, H, W) in [-1, 1]"""
    return torch.rand(1, 3, num_frames, 16, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def encoded_at_once(vae, video):
    """Encodes as WanImageToVideoPipeline does."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape)
    inverse_std = 1.0 / torch.tensor(vae.config.latents_std).view(shape)
    return (vae.encode(video).latent_dist.mode() - mean) * inverse_std


@pytest.mark.parametrize("layout", VAES)
@pytest.mark.parametrize("pieces", [[17], [9, 8], [1, 4, 4, 4, 4]])
@torch.no_grad()
def test_chunked_encode_equals_one_shot_encode(layout, pieces):
    vae = toy_vae(z_dim=4, **VAES[layout])
    encoder, state, latents = StreamingWanEncoder(vae), None, []
    for piece in clip().split(pieces, dim=2):
        encoded, state = encoder(piece, state)
        latents.append(encoded)
    # The convolution after the encoder rounds a single latent frame differently from several.
    torch.testing.assert_close(torch.cat(latents, dim=2), encoded_at_once(vae, clip()), atol=1e-6, rtol=0)
    assert min(pieces) == 1 or torch.equal(torch.cat(latents, dim=2), encoded_at_once(vae, clip()))


@pytest.mark.parametrize("layout", VAES)
@torch.no_grad()
def test_a_whole_clip_is_encoded_piece_by_piece_to_the_bits_of_a_one_shot_encode(layout):
    vae = toy_vae(z_dim=4, **VAES[layout])
    frames = (clip()[0].transpose(0, 1) + 1) / 2
    expected = encoded_at_once(vae, frames.transpose(0, 1)[None] * 2 - 1)
    assert torch.equal(StreamingWanEncoder(vae).encode(frames, (16, 32))[None], expected)


@torch.no_grad()
def test_a_clip_of_8_bits_and_its_floats_are_encoded_alike():
    vae = toy_vae(z_dim=4)
    pixels = (clip()[0].transpose(0, 1) * 127.5 + 127.5).round().to(torch.uint8)
    latents = StreamingWanEncoder(vae).encode(pixels, (16, 32))
    assert torch.equal(latents, StreamingWanEncoder(vae).encode(pixels.float() / 255.0, (16, 32)))
    assert torch.equal(latents[None], encoded_at_once(vae, (pixels.float() / 255.0).transpose(0, 1)[None] * 2 - 1))


@torch.no_grad()
def test_one_state_can_be_continued_twice():
    encoder = StreamingWanEncoder(toy_vae(z_dim=4))
    _, state = encoder(clip(5))
    first, _ = encoder(clip(4, seed=1), state)
    encoder(clip(4, seed=2), state)
    assert torch.equal(encoder(clip(4, seed=1), state)[0], first)


def test_a_long_clip_needs_no_more_room_than_a_short_one():
    encoder, peaks = StreamingWanEncoder(toy_vae(z_dim=4)), []
    for num_frames in (17, 81):
        frames = torch.zeros(num_frames, 3, 16, 32, dtype=torch.uint8)
        with LiveBytes() as live:
            encoder.encode(frames, (16, 32))
        peaks.append(live.peak)
    assert peaks[1] < 1.05 * peaks[0]
    assert peaks[1] < encode_cost(encoder.vae, (16, 32)).bytes < 2 * peaks[1]


def test_frames_that_make_no_whole_latents_are_refused():
    encoder = StreamingWanEncoder(toy_vae(z_dim=4))
    with pytest.raises(ValueError, match=r"has 4 frames; it must have 4 n \+ 1 here"):
        encoder(clip(4))
    _, state = encoder(clip(1))
    with pytest.raises(ValueError, match="has 5 frames; it must have 4 n here"):
        encoder(clip(5), state)


def test_tiling_is_refused_not_ignored():
    vae = toy_vae(z_dim=4)
    vae.enable_tiling()
    with pytest.raises(ValueError, match="tiling is on"):
        StreamingWanEncoder(vae)(clip(1))
