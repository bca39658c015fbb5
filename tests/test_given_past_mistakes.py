"""Mistakes about a given past are told before any work: the argument, the frame, what was given, what is allowed."""

import numpy as np
import PIL.Image
import pytest
import torch
from conftest import nothing_done, toy_transformer, toy_vae

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.commands.video import write_video

CLIP = torch.zeros(9, 3, 16, 16)
LATENTS = torch.zeros(1, 4, 3, 2, 2)
NAN = float("nan")


def picture(mode="RGB", size=(16, 16)):
    return PIL.Image.new(mode, size)


def clip(**changed):
    """Nine pictures, some of them others."""
    return [changed.get(f"at_{index}", picture()) for index in range(9)]


def with_nan(shape, place):
    values = torch.zeros(shape)
    values[place] = NAN
    return values


CASES = {
    "both": ({"image": picture(), "video": CLIP}, ValueError, "both `image` and `video`"),
    "both forms": ({"video": CLIP, "video_latents": LATENTS}, ValueError, "both `video` and `video_latents`"),
    "image and latents": ({"image_latents": LATENTS[:, :, :1], "video_latents": LATENTS}, ValueError, "both"),
    "no image": ({"image": 3}, TypeError, "`image` is a int; it must be a PIL image"),
    "many images": ({"image": [picture(), picture()]}, TypeError, "`image` is a list"),
    "a clip as an image": ({"image": CLIP}, ValueError, r"`image` is of shape \(9, 3, 16, 16\)"),
    "a missing image": ({"image": "no/such.png"}, ValueError, "`image` is no/such.png; there is no such file"),
    "alpha": ({"image": picture("RGBA")}, ValueError, "`image` is of the mode RGBA; it must be RGB"),
    "grey": ({"image": picture("L")}, ValueError, "`image` is of the mode L"),
    "integers": ({"image": np.zeros((16, 16, 3), dtype=np.int64)}, ValueError, "`image` is of int64; .*uint8"),
    "words": ({"image": np.full((16, 16, 3), "a")}, ValueError, "`image` is of <U1"),
    "channels last": (
        {"image": torch.zeros(16, 16, 3)},
        ValueError,
        r"`image` is of shape \(16, 16, 3\).*\(3, H, W\)",
    ),
    "channels first": ({"image": np.zeros((3, 16, 16))}, ValueError, r"`image` is of shape.*array is \(H, W, 3\)"),
    "range": ({"image": torch.full((3, 16, 16), -1.0)}, ValueError, r"`image` has floats from -1 to -1; .*\[0, 1\]"),
    "255": ({"image": torch.full((3, 16, 16), 255.0)}, ValueError, "`image` has floats from 255 to 255"),
    "nan": ({"image": with_nan((3, 16, 16), (0, 3, 3))}, ValueError, "`image` has numbers that are not finite"),
    "size": ({"image": picture(size=(40, 16))}, ValueError, "`image` is of 40x16 pixels.*Give one of 32x16.*crop"),
    "other size": (
        {"image": picture(), "height": 32},
        ValueError,
        "`image` is of 16x16 pixels, and the video of 16x32.*crop",
    ),
    "crop to no size": (
        {"image": picture(size=(40, 40)), "resize": "crop", "width": 24},
        ValueError,
        "`width` is 24.*Use 16 or 32",
    ),
    "a way to resize": ({"image": picture(), "resize": "pad"}, ValueError, "`resize` is 'pad'.*'crop'"),
    "nothing to resize": ({"resize": "crop"}, ValueError, "`resize` is 'crop', and there is no `image`"),
    "latents to resize": ({"video_latents": LATENTS, "resize": "crop"}, ValueError, "`resize` is 'crop'"),
    "a video of words": ({"video": ["a"] * 9}, TypeError, r"`video\[0\]` is a str"),
    "no video": ({"video": 3.5}, TypeError, "`video` is a float"),
    "flat": ({"video": torch.zeros(3, 16, 16)}, TypeError, r"`video` is a Tensor of shape \(3, 16, 16\)"),
    "two videos": ({"video": torch.zeros(2, 9, 3, 16, 16)}, TypeError, r"`video` is a Tensor of shape \(2, 9"),
    "empty": ({"video": []}, ValueError, "`video` has no frames"),
    "short": ({"video": CLIP[:5]}, ValueError, "`video` has 5 frames; .*12 k - 3. Cut it to 9"),
    "between": ({"video": torch.zeros(30, 3, 16, 16)}, ValueError, "`video` has 30 frames.*Cut it to 21 or 33"),
    "all": ({"video": torch.zeros(45, 3, 16, 16)}, ValueError, "`video` has 45 frames, and `num_frames`, 45.*57"),
    "a frame's mode": ({"video": clip(at_4=picture("RGBA"))}, ValueError, r"`video\[4\]` is of the mode RGBA"),
    "a frame's size": ({"video": clip(at_7=picture(size=(32, 16)))}, ValueError, r"`video\[7\]` is 32x16.*16x16"),
    "a frame's kind": ({"video": clip(at_2=None)}, TypeError, r"`video\[2\]` is a NoneType"),
    "a frame's numbers": (
        {"video": with_nan((9, 3, 16, 16), 6)},
        ValueError,
        r"`video\[6\]` has numbers that are not",
    ),
    "video size": ({"video": torch.zeros(9, 3, 20, 16)}, ValueError, "`video` is of 16x20 pixels.*Give one of 16x16"),
    "a missing video": ({"video": "no/such.mp4"}, ValueError, "`video` is no/such.mp4; there is no such file"),
    "channels": ({"video_latents": torch.zeros(1, 16, 3, 2, 2)}, ValueError, "16 channels.*latents have 4: .*another"),
    "many latents": ({"video_latents": torch.zeros(2, 4, 3, 2, 2)}, ValueError, r"shape \(2, 4, 3, 2, 2\).*\(1, 4, F"),
    "latent frames": ({"video_latents": torch.zeros(1, 4, 4, 2, 2)}, ValueError, "has 4 latent frames.*Use 3 or 6"),
    "few latents": ({"video_latents": torch.zeros(1, 4, 1, 2, 2)}, ValueError, "has 1 latent frames.*Use 3"),
    "latent size": ({"video_latents": torch.zeros(1, 4, 3, 3, 2)}, ValueError, "is of 16x24 pixels.*Give one of 16x"),
    "other latent size": ({"video_latents": LATENTS, "width": 32}, ValueError, "16x16 pixels, and the video of 32x16"),
    "latents not finite": ({"video_latents": LATENTS * NAN}, ValueError, "`video_latents` has numbers that are not"),
    "latents' kind": ({"video_latents": np.zeros((1, 4, 3, 2, 2))}, TypeError, "`video_latents` is a ndarray"),
    "image latents": ({"image_latents": LATENTS}, ValueError, r"`image_latents` has shape .*\(1, 4, 1, h, w\)"),
}


@pytest.fixture(scope="module")
def pipe():
    pipe = StreamT1Pipeline(
        None,
        None,
        toy_transformer(),
        toy_vae(z_dim=4),
        FewStepFlowMatchScheduler(),
        default_height=16,
        default_width=16,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def refused(pipe, embeds):
    """Calls, and expects a refusal before any work."""

    def call(error, match, pipe=pipe, **arguments):
        generator = torch.Generator()
        with nothing_done(pipe, generator), pytest.raises(error, match=match):
            pipe(prompt_embeds=embeds, num_frames=45, num_beams=1, num_candidates=1, generator=generator, **arguments)

    return call


@pytest.mark.parametrize("arguments, error, match", CASES.values(), ids=CASES)
def test_a_wrong_past_is_refused_before_any_work(refused, arguments, error, match):
    refused(error, match, **arguments)


def written(path, num_frames=9, fps=16):
    y, x = np.mgrid[0:64, 0:64]
    frames = [np.stack([(x * 3 + 5 * t) % 256, y * 3, (x + 3 * t) % 256], axis=-1) for t in range(num_frames)]
    write_video(np.stack(frames).astype(np.uint8), path, fps, ".mp4")
    return path


def test_a_video_file_of_another_frame_rate_is_refused(refused, tmp_path):
    refused(
        ValueError, "which has 24 frames a second, and this model makes 16", video=written(tmp_path / "a.mp4", fps=24)
    )


def test_a_damaged_video_file_is_refused_with_the_frame(refused, tmp_path):
    path = written(tmp_path / "a.mp4", 45)
    content = bytearray(path.read_bytes())
    middle = content.find(b"moov") // 2
    content[middle : middle + 60] = bytes(byte ^ 0x5A for byte in content[middle : middle + 60])
    path.write_bytes(content)
    refused(ValueError, r"a.mp4, and frame (1\d|2\d), or one just after it, cannot be read", video=path)


@pytest.mark.parametrize("name", ["image", "video"])
def test_a_file_that_is_none_is_refused(refused, tmp_path, name):
    path = tmp_path / "a.bin"
    path.write_bytes(b"no picture and no video" * 40)
    refused(ValueError, f"`{name}` is .*a.bin.* cannot be read", **{name: str(path)})


def test_pixels_need_a_vae_and_latents_do_not(pipe, embeds, refused):
    blind = StreamT1Pipeline(None, None, toy_transformer(), None, FewStepFlowMatchScheduler())
    refused(
        ValueError, "`video` is to be encoded, and this pipeline has no VAE; give `video_latents`", blind, video=CLIP
    )
    blind.set_progress_bar_config(disable=True)
    arguments = {"prompt_embeds": embeds, "num_frames": 21, "output_type": "latent"}
    assert blind(video_latents=LATENTS, **arguments).frames.shape == (1, 4, 6, 2, 2)


def test_an_estimate_refuses_the_same_past(pipe):
    with pytest.raises(ValueError, match="`video` has 5 frames"):
        pipe.estimate(video=CLIP[:5])
