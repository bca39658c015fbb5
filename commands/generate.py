"""`stream-t1 generate`: a prompt becomes a video, with the trace of its search beside it."""

import argparse
import sys
import time
from pathlib import Path

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov")
LARGEST_SEED = 2**53 - 1  # seeds stand in JSON, whose readers keep whole numbers exactly up to here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turns a prompt into a video, by beam search, with the demo model that comes with the package or with another."
    )
    parser.add_argument("prompt", help='for example "a red circle moving left on a white background"')
    parser.add_argument("--model", help="folder or Hub id that StreamT1Pipeline loads; default: the demo")
    parser.add_argument("--image-reward", help="folder or Hub id of a converted reward; the demo has its own")
    parser.add_argument("--video-reward", help="likewise")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.mp4"), help="default: %(default)s")
    parser.add_argument("--num-frames", type=int, default=81, help="12 k - 3; default: %(default)s, 5 seconds")
    parser.add_argument("--num-beams", type=int, default=2, help="kept after each chunk; default: %(default)s")
    parser.add_argument("--num-candidates", type=int, default=2, help="tried per beam; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.set_defaults(run=generate)


def generate(arguments: argparse.Namespace) -> None:
    """Writes the video, and the trace of its search as JSON beside it."""
    if arguments.output.suffix not in VIDEO_SUFFIXES:
        raise ValueError(f"`--output` is {arguments.output}; a video's name ends in {' or '.join(VIDEO_SUFFIXES)}.")
    if not arguments.output.parent.is_dir():
        raise ValueError(f"`--output` is {arguments.output}; there is no folder {arguments.output.parent}.")
    if not 0 <= arguments.seed <= LARGEST_SEED:
        raise ValueError(f"`--seed` is {arguments.seed}; it must lie between 0 and {LARGEST_SEED}, 2^53 - 1.")
    import torch

    pipe = load_demo(arguments.prompt) if arguments.model is None else load_model(arguments.model)
    for name in ("image_reward", "video_reward"):
        if getattr(arguments, name) is not None:
            setattr(pipe, name, getattr(arguments, name))
    if torch.accelerator.is_available():
        pipe.to(torch.accelerator.current_accelerator())
    begin = time.perf_counter()
    output = pipe(
        arguments.prompt,
        num_frames=arguments.num_frames,
        num_beams=arguments.num_beams,
        num_candidates=arguments.num_candidates,
        generator=torch.Generator().manual_seed(arguments.seed),
    )
    seconds = time.perf_counter() - begin
    frames, trace = output.frames[0], output.trace
    trace_path = arguments.output.with_suffix(".json")
    write_video((frames * 255).round().astype("uint8"), arguments.output, trace.fps)
    trace.save(trace_path)
    tried = sum(len(chunk.candidates) for chunk in trace.chunks)
    print(f"{arguments.output}: {len(frames)} frames, the best of {tried} candidates, found in {seconds:.1f} s")
    print(f"{trace_path}: the trace of the search")


def load_demo(prompt: str) -> "StreamT1Pipeline":  # noqa: F821 - loaded on use
    """The demo, and a word to those whose prompt it can't read."""
    from ..demo import load_pipeline, vocabulary_note

    note = vocabulary_note(prompt)
    if note is not None:
        print(note, file=sys.stderr)
    return load_pipeline()


def load_model(name_or_folder: str) -> "StreamT1Pipeline":  # noqa: F821 - loaded on use
    """In bfloat16 where there is an accelerator, in float32 elsewhere.

    Raises:
        ValueError: it is a path at which there is no folder.
    """
    path = Path(name_or_folder)
    is_path = path.is_absolute() or name_or_folder.startswith((".", "~")) or len(path.parts) != 2 or path.exists()
    if is_path and not path.is_dir():
        is_file = "a file" if path.is_file() else "no folder here, and no Hub id, which is of the form org/name"
        raise ValueError(
            f"`--model` is {name_or_folder}, {is_file}. Give a folder that StreamT1Pipeline loads; `stream-t1 convert` "
            "makes one from the files that authors published."
        )
    import torch

    from ..pipeline_stream_t1 import StreamT1Pipeline

    dtype = torch.bfloat16 if torch.accelerator.is_available() else torch.float32
    return StreamT1Pipeline.from_pretrained(name_or_folder, dtype=dtype)


def write_video(frames: "numpy.ndarray", path: Path, fps: float) -> None:  # noqa: F821 - numpy is slow to import
    """Writes frames (F, H, W, 3) uint8 as H.264."""
    import imageio_ffmpeg

    height, width = frames.shape[1:3]
    writer = imageio_ffmpeg.write_frames(str(path), (width, height), fps=fps, quality=8, macro_block_size=2)
    writer.send(None)  # starts the encoder
    for frame in frames:
        writer.send(frame.tobytes())
    writer.close()
    if not path.is_file():
        raise OSError(f"{path} could not be written; what the encoder said is above.")
