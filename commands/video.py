"""Video files: H.264 whose colours are tagged, and that is decoded again before anybody sees it."""

import subprocess
from pathlib import Path

FORMATS = {".mp4": "mp4", ".mkv": "matroska", ".mov": "mov"}  # the encoder's names of them
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
    tag = ("-metadata", "comment=stream-t1")
    _run(*given, *encoded, *tag, "-f", FORMATS[suffix], "-y", _url(path), pixels=frames.tobytes())
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


def _url(path: Path) -> str:
    """A name that the encoder takes for no option and no protocol."""
    return f"file:{path.absolute()}"


def _run(*arguments: str, pixels: bytes = b"") -> bytes:
    import imageio_ffmpeg

    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", *arguments]
    # In a session of its own, it does not get the terminal's Ctrl-C, at which it would finish a shorter video.
    done = subprocess.run(command, input=pixels, capture_output=True, start_new_session=True)
    if done.returncode != 0:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"it ended with {done.returncode}"]
        raise OSError(f"The video could not be written; the encoder says: {said[0]}")
    return done.stdout
