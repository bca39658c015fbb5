"""`stream-t1 resume`: goes on with a run that `stream-t1 generate --save-to` kept."""

import argparse
import time
from pathlib import Path

from .generate import add_model, add_output, add_rewards, check_output, decision, load_pipeline, write_output

PLAIN = {"output_type": "np", "return_dict": True}  # whatever the call of the run asked for


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Goes on with a run that was stopped, from the file that `--save-to` kept, and gives the video that it would "
        "have given; or makes a finished one longer. The file is kept up to date."
    )
    parser.add_argument("file", type=Path, metavar="FILE", help="that `--save-to` wrote")
    add_model(parser)
    add_rewards(parser)
    add_output(parser)
    parser.add_argument("--num-frames", type=int, help="of a longer video, 12 k - 3")
    parser.add_argument(
        "--from-chunk", type=int, metavar="N", help="searches again from chunk N on, of 0, 1, ...; FILE stays as it is"
    )
    parser.set_defaults(run=resume)


def resume(arguments: argparse.Namespace) -> None:
    """Writes the video, and the trace of its search as JSON beside it."""
    check_output(arguments)
    if not arguments.file.is_file():
        raise ValueError(f"{arguments.file}: there is no such file; `stream-t1 generate --save-to` writes one.")
    from ..pipeline_stream_t1 import __version__
    from ..search.saved_run import read_run

    num_prompts = len(read_run(arguments.file, __version__).prompts)
    if num_prompts > 1:
        raise ValueError(
            f"{arguments.file} is a run of {num_prompts} prompts; `pipe.resume` in Python gives them all."
        )
    pipe = load_pipeline(arguments)
    begin = time.perf_counter()
    output = pipe.resume(arguments.file, num_frames=arguments.num_frames, from_chunk=arguments.from_chunk, **PLAIN)
    write_output(
        output, arguments, f"{decision(pipe, output.trace)}, gone on with in {time.perf_counter() - begin:.1f} s"
    )
