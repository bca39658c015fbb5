"""Decoding in pieces is decoding at once, and a state can be continued in several ways."""

import pytest
import torch
from conftest import toy_vae

from stream_t1 import StreamingWanDecoder

PATCHED = {"dim_mult": [1, 2, 2], "temperal_downsample": [True, True], "patch_size": 2}
PATCHED |= {"in_channels": 12, "out_channels": 12, "scale_factor_spatial": 8}
VAES = {
    "wan": {},
    "patched": PATCHED,
    "residual": {"is_residual": True, "decoder_base_dim": 4},
}


def latents(batch_size=1, frames=9, seed=0):
    return torch.randn(batch_size, 4, frames, 2, 3, generator=torch.Generator().manual_seed(seed))


def decode_at_once(vae, latents):
    """Decodes as WanPipeline does."""
    shape = (1, -1, 1, 1, 1)
    mean = torch.tensor(vae.config.latents_mean).view(shape)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(shape)
    return vae.decode(latents / std + mean, return_dict=False)[0]


@pytest.mark.parametrize("layout", VAES)
@pytest.mark.parametrize("pieces", [[3, 3, 3], [2, 4, 3]])
@torch.no_grad()
def test_chunked_decode_equals_one_shot_decode_bit_for_bit(layout, pieces):
    vae = toy_vae(z_dim=4, **VAES[layout])
    decoder, state, frames = StreamingWanDecoder(vae), None, []
    for piece in latents().split(pieces, dim=2):
        video, state = decoder(piece, state)
        frames.append(video)
    assert torch.equal(torch.cat(frames, dim=2), decode_at_once(vae, latents()))


@pytest.fixture
def begun():
    """A decoder, and a state after the first chunk."""
    decoder = StreamingWanDecoder(toy_vae(z_dim=4))
    _, state = decoder(latents(frames=3))
    return decoder, state


def test_a_first_chunk_has_nine_frames_and_a_later_one_twelve(begun):
    decoder, state = begun
    assert decoder(latents(frames=3))[0].shape == (1, 3, 9, 16, 24)
    assert decoder(latents(frames=3), state)[0].shape == (1, 3, 12, 16, 24)


def test_a_fork_leaves_its_parents_state_untouched(begun):
    decoder, state = begun
    before = [feature.clone() if torch.is_tensor(feature) else feature for feature in state.features]
    first, _ = decoder(latents(frames=3, seed=1), state)
    decoder(latents(frames=3, seed=2), state)
    again, _ = decoder(latents(frames=3, seed=1), state)
    assert torch.equal(first, again)
    assert all(
        torch.equal(a, b) if torch.is_tensor(a) else a == b for a, b in zip(before, state.features, strict=True)
    )


@pytest.mark.parametrize("slicing", [False, True])
def test_candidates_from_one_state_are_decoded_as_if_alone(begun, slicing):
    decoder, state = begun
    decoder.vae.use_slicing = slicing
    candidates = latents(batch_size=3, frames=3, seed=1)
    for row, (video, new_state) in enumerate(decoder.continuations(candidates, state)):
        alone, alone_state = decoder(candidates[row : row + 1], state)
        torch.testing.assert_close(video, alone[0], rtol=1e-5, atol=1e-5)
        assert new_state.batch_size == 1 and new_state.num_bytes == alone_state.num_bytes


def test_candidates_states_do_not_share_storage(begun):
    decoder, state = begun
    (_, one), (_, other) = decoder.continuations(latents(batch_size=2, frames=3), state)
    pairs = zip(one.features, other.features, strict=True)
    for a, b in ((a, b) for a, b in pairs if torch.is_tensor(a)):
        assert a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr()
        assert a.untyped_storage().nbytes() == a.numel() * a.element_size()


def test_tiling_is_refused(begun):
    decoder, state = begun
    decoder.vae.enable_tiling()
    with pytest.raises(ValueError, match="disable_tiling"):
        decoder(latents(frames=3), state)


def test_a_state_of_another_batch_is_refused(begun):
    decoder, state = begun
    _, pair = decoder(latents(batch_size=2, frames=3), state)
    with pytest.raises(ValueError, match="2 clips.*3"):
        decoder(latents(batch_size=3, frames=3), pair)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_decodes_in_its_dtype(dtype):
    vae = toy_vae(z_dim=4).to(dtype)
    video, state = StreamingWanDecoder(vae)(latents(frames=3))
    assert video.dtype == dtype and torch.isfinite(video).all()
    assert {feature.dtype for feature in state.features if torch.is_tensor(feature)} == {dtype}


def test_the_vaes_offload_hook_is_called(begun):
    from accelerate.hooks import ModelHook, add_hook_to_module

    class Spy(ModelHook):
        calls = 0

        def pre_forward(self, module, *args, **kwargs):
            Spy.calls += 1
            return args, kwargs

    decoder, state = begun
    add_hook_to_module(decoder.vae, Spy())
    decoder(latents(frames=3), state)
    assert Spy.calls == 1
