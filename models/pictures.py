"""Pictures and clips that a caller gives, in whatever form, as frames to encode.

What is in none of the right forms is refused, by the argument's name and the frame's number. Nothing is converted, or
resized unless it was asked for.

Axes: F frames, H and W height and width.
"""

import importlib
import math
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path

import numpy as np
import PIL.Image
import PIL.ImageOps
import torch

RATE_TOLERANCE = 1e-3  # relative: containers round a rate

Picture = PIL.Image.Image | np.ndarray | torch.Tensor
PICTURE_FORMS = "a PIL image, an array (H, W, 3), a tensor (3, H, W), or the path of a picture"
CLIP_FORMS = (
    "a list of PIL images, an array (F, H, W, 3), a tensor (F, 3, H, W), a list of such pictures, or the path of a "
    "video file"
)


def read_picture(name: str, given: Picture | str | PathLike) -> torch.Tensor:
    """Reads one picture: (1, 3, H, W), uint8, or floats in [0, 1].

    Args:
        name: of the argument, for messages.

    Raises:
        TypeError: it is none of the forms.
        ValueError: it is not RGB, not in [0, 1], not finite, or its file cannot be read.
    """
    if isinstance(given, str | PathLike):
        given = _opened(name, Path(given))
    if isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 4 and len(given) == 1:
        given = given[0]
    if not isinstance(given, Picture):
        raise TypeError(f"`{name}` is a {type(given).__name__}; it must be {PICTURE_FORMS}.")
    return _frame(name, given)[None]


def read_clip(
    name: str, given: Sequence[Picture] | np.ndarray | torch.Tensor | str | PathLike, fps: float
) -> torch.Tensor:
    """Reads a clip: (F, 3, H, W), uint8, or floats in [0, 1].

    Args:
        name: of the argument, for messages.
        fps: frames per second that a file must have.

    Raises:
        TypeError: it is none of the forms.
        ValueError: a frame is not RGB, of another size than the first, not in [0, 1], not finite or not readable; or
            the file has another frame rate.
        ImportError: imageio-ffmpeg, which reads files, is not installed.
    """
    if isinstance(given, str | PathLike):
        return _decoded(name, Path(given), fps)
    if isinstance(given, np.ndarray | torch.Tensor) and given.ndim == 5 and len(given) == 1:
        given = given[0]  # the form in which a pipeline returns one video
    is_stacked = isinstance(given, np.ndarray | torch.Tensor)
    if (is_stacked and given.ndim != 4) or not (is_stacked or isinstance(given, list | tuple)):
        shape = f" of shape {tuple(given.shape)}" if is_stacked else ""
        raise TypeError(f"`{name}` is a {type(given).__name__}{shape}; it must be {CLIP_FORMS}.")
    if len(given) == 0:
        raise ValueError(f"`{name}` has no frames.")
    frames = []
    for index, picture in enumerate(given):
        if not isinstance(picture, Picture):
            raise TypeError(f"`{name}[{index}]` is a {type(picture).__name__}; `{name}` must be {CLIP_FORMS}.")
        frames.append(_frame(f"{name}[{index}]", picture))
        for what in ("shape", "dtype"):
            first, other = (getattr(frame, what) for frame in (frames[0], frames[-1]))
            if first != other:
                if what == "shape":
                    first, other = (f"{shape[2]}x{shape[1]} pixels" for shape in (first, other))
                raise ValueError(f"`{name}[{index}]` is {other} and `{name}[0]` {first}; all frames must be alike.")
    return torch.stack(frames)


def fitted(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scales frames (F, 3, H, W) until they cover `size`, height and width, and cuts out the middle.

    Returns:
        Floats in [0, 1]; the frames' own numbers where they have that size already.
    """
    frames = frames.float() / 255.0 if frames.dtype == torch.uint8 else frames
    height, width = frames.shape[-2:]
    if (height, width) == size:
        return frames
    scale = max(size[0] / height, size[1] / width)
    covering = [max(math.ceil(side * scale - 1e-6), least) for side, least in zip((height, width), size, strict=True)]
    options = {"mode": "bicubic", "antialias": True, "align_corners": False}
    frames = torch.nn.functional.interpolate(frames.float(), covering, **options).clamp(0.0, 1.0)
    top, left = ((side - wanted) // 2 for side, wanted in zip(covering, size, strict=True))
    return frames[..., top : top + size[0], left : left + size[1]]


def _frame(name: str, picture: Picture) -> torch.Tensor:
    """(3, H, W)"""
    if isinstance(picture, PIL.Image.Image):
        if picture.mode != "RGB":
            raise ValueError(f'`{name}` is of the mode {picture.mode}; it must be RGB: use `picture.convert("RGB")`.')
        picture = np.asarray(picture)
    axes, channels = ("(H, W, 3)", -1) if isinstance(picture, np.ndarray) else ("(3, H, W)", 0)
    if picture.ndim != 3 or picture.shape[channels] != 3 or 0 in picture.shape:
        kind = "array" if isinstance(picture, np.ndarray) else "tensor"
        raise ValueError(f"`{name}` is of shape {tuple(picture.shape)}; a picture's {kind} is {axes}.")
    if isinstance(picture, np.ndarray):
        if picture.dtype.kind not in "uif":
            raise ValueError(f"`{name}` is of {picture.dtype}; a picture is uint8, or floats in [0, 1].")
        picture = torch.from_numpy(np.array(picture.transpose(2, 0, 1)))  # a copy: torch warns of read-only arrays
    return _checked_numbers(name, picture.detach().to("cpu"))


def _checked_numbers(name: str, frame: torch.Tensor) -> torch.Tensor:
    if frame.dtype == torch.uint8:
        return frame
    if not frame.is_floating_point():
        kind = f"{frame.dtype}".removeprefix("torch.")
        raise ValueError(f"`{name}` is of {kind}; a picture is uint8, or floats in [0, 1].")
    frame = frame.float()
    if not bool(torch.isfinite(frame).all()):
        raise ValueError(f"`{name}` has numbers that are not finite.")
    least, most = float(frame.min()), float(frame.max())
    if least < 0.0 or most > 1.0:
        raise ValueError(
            f"`{name}` has floats from {least:.4g} to {most:.4g}; they must lie in [0, 1]. Use `(x + 1) / 2` for "
            "those of [-1, 1], and uint8 for those up to 255."
        )
    return frame


def _opened(name: str, path: Path) -> PIL.Image.Image:
    """A picture's file, turned as it is to be seen."""
    if not path.is_file():
        raise ValueError(f"`{name}` is {path}; there is no such file.")
    try:
        with PIL.Image.open(path) as picture:
            return PIL.ImageOps.exif_transpose(picture)
    except (OSError, SyntaxError, ValueError, PIL.Image.DecompressionBombError) as error:
        raise ValueError(f"`{name}` is {path}, which cannot be read as a picture: {error}") from error


def _decoded(name: str, path: Path, fps: float) -> torch.Tensor:
    """(F, 3, H, W) uint8 of a video file."""
    if not path.is_file():
        raise ValueError(f"`{name}` is {path}; there is no such file.")
    try:
        ffmpeg = importlib.import_module("imageio_ffmpeg")
    except ImportError as error:
        raise ImportError("A video file is read by imageio-ffmpeg: `pip install imageio-ffmpeg`.") from error
    frames = []
    try:
        for frame in _reading(ffmpeg, name, path, fps):
            frames.append(frame)
        num_frames, _ = ffmpeg.count_frames_and_secs(f"file:{path.absolute()}")  # of what can be decoded at all
    except (OSError, RuntimeError) as error:
        said = str(error).strip().splitlines()
        place = f"frame {len(frames)}" if frames else "it"
        raise ValueError(f"`{name}` is {path}, and {place} cannot be read: {said[-1] if said else ''}") from error
    if len(frames) < num_frames:
        # Not all that was decoded before it may have come out: frames are stored in another order than they are shown.
        raise ValueError(
            f"`{name}` is {path}, and frame {len(frames)}, or one just after it, cannot be read: the file is damaged."
        )
    if not frames:
        raise ValueError(f"`{name}` is {path}, which has no frames.")
    return torch.stack(frames)


def _reading(ffmpeg: object, name: str, path: Path, fps: float) -> Iterator[torch.Tensor]:
    """Frames (3, H, W) uint8, up to the first that is damaged. The reader takes colours as they are tagged."""
    strict = ["-xerror", "-err_detect", "explode"]
    exact = ["-map", "0:v:0", "-fps_mode", "passthrough", "-sws_flags", "accurate_rnd+full_chroma_int+bicubic"]
    reader = ffmpeg.read_frames(f"file:{path.absolute()}", input_params=strict, output_params=exact)
    about = next(reader)
    try:
        if abs(about["fps"] - fps) > RATE_TOLERANCE * fps:
            raise ValueError(
                f"`{name}` is {path}, which has {about['fps']:g} frames a second, and this model makes {fps:g}. "
                f"Convert it first, for example with `ffmpeg -i {path.name} -r {fps:g} converted.mp4`."
            )
        width, height = about["size"]
        for picture in reader:
            frame = torch.frombuffer(bytearray(picture), dtype=torch.uint8)
            yield frame.unflatten(0, (height, width, 3)).permute(2, 0, 1).contiguous()
    finally:
        reader.close()
