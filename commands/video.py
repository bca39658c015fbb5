"""Video files: H.264 whose colours are tagged, and that is decoded again before anybody sees it."""

import os
import signal
import subprocess
from pathlib import Path
from typing import BinaryIO

FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # the encoder's names of them
TAG = "comment=stream-t1"
RATE_FACTOR = 10  # of H.264: nothing lost that the eye sees
COLORS = (  # converted, then tagged; players that find no tag take HD and SD for different ones
    "scale=out_color_matrix=bt709:out_range=tv:flags=accurate_rnd+full_chroma_int,"
    "setparams=colorspace=bt709:color_primaries=bt709:color_trc=bt709:range=tv"
)


def write_video(frames: "numpy.ndarray", path: Path, fps: float, suffix: str) -> None:  # noqa: F821 - slow to import
    """Writes frames (F, H, W, 3) uint8 as H.264 in BT.709, at every size, and reads them back.

    Args:
        path: a file of any name.
        suffix: of `FORMATS`.

    Raises:
        OSError: the encoder failed, or not all frames can be decoded.
    """
    num_frames, height, width, _ = frames.shape
    given = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(fps), "-i", "pipe:0")
    encoded = ("-vf", COLORS, "-c:v", "libx264", "-crf", str(RATE_FACTOR), "-pix_fmt", "yuv420p")
    tag = ("-metadata", TAG)
    # By its descriptor: an encoder that an interruption left behind can't make the file again once it is deleted.
    output = "file:/dev/fd/1" if os.name == "posix" else _url(path)
    with open(path, "wb") as file:
        _run(*given, *encoded, *tag, "-f", FORMATS[suffix], "-y", output, pixels=frames.tobytes(), output=file)
    num_decoded = count_frames(path)
    if num_decoded != num_frames:
        raise OSError(f"The video could not be written: {num_decoded} of its {num_frames} frames can be decoded.")


def count_frames(path: Path) -> int:
    """The frames of a video, every one decoded.

    Raises:
        OSError: it can't be read, or is damaged.
    """
    decoded = ("-xerror", "-i", _url(path), "-map", "0:v:0", "-fps_mode", "passthrough", "-f", "framecrc", "pipe:1")
    return sum(not line.startswith(b"#") for line in _run(*decoded).splitlines())


def read_tag(path: Path) -> tuple[tuple[int, int], float, int, bool]:
    """Of a video: width and height, frames per second, how many frames, and whether this project wrote it.

    Raises:
        ValueError: it can't be decoded.
    """
    import imageio_ffmpeg

    try:
        num_frames = count_frames(path)
        tags = _run("-i", _url(path), "-f", "ffmetadata", "pipe:1").decode(errors="replace").splitlines()
    except OSError as error:
        raise ValueError(f"{path} is no video, or a damaged one: {error}") from error
    reader = imageio_ffmpeg.read_frames(_url(path))
    about = next(reader)
    reader.close()
    return about["size"], about["fps"], num_frames, any(tag.lower() == TAG for tag in tags)


def _url(path: Path) -> str:
    """A name that the encoder takes for no option and no protocol."""
    return f"file:{path.absolute()}"


def _run(*arguments: str, pixels: bytes = b"", output: BinaryIO | int = subprocess.PIPE) -> bytes:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments]
    # In a session of its own, it does not get the terminal's Ctrl-C, at which it would finish a shorter video.
    done = subprocess.run(command, input=pixels, stdout=output, stderr=subprocess.PIPE, start_new_session=True)
    if done.returncode != 0:
        ended = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"The video could not be written; the encoder ended with {ended}: {said[0] if said else ''}")
    return done.stdout
