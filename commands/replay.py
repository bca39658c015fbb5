"""`stream-t1 replay`: makes the video of a trace again."""

import argparse
import time
from pathlib import Path

from .generate import add_model, add_output, check_output, load_pipeline, write_output


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Makes the best video of a trace again, by its seeds and routes, without rewards and at the cost of a plain "
        "sample. The trace is written beside the video, as it is."
    )
    parser.add_argument("trace", type=Path, metavar="TRACE", help="the JSON beside a video")
    add_model(parser)
    add_output(parser)
    parser.set_defaults(run=replay)


def replay(arguments: argparse.Namespace) -> None:
    """Writes the video, and the trace beside it."""
    check_output(arguments)
    if not arguments.trace.is_file():
        raise ValueError(
            f"{arguments.trace}: there is no such file; `stream-t1 generate` writes a trace beside a video."
        )
    from ..search.trace import SearchTrace

    trace = SearchTrace.load(arguments.trace)
    pipe = load_pipeline(arguments)
    begin = time.perf_counter()
    output = pipe.replay(trace)
    write_output(output, arguments, f"made again by seeds and routes in {time.perf_counter() - begin:.1f} s")
