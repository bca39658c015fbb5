"""`stream-t1 generate`: a prompt becomes a video, with the trace of its search beside it."""

import argparse
import itertools
import os
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

from ..search.choice import most_kept
from ..search.request import VideoRequest
from ..search.shipped import SHIPPED_SEARCHES, number_fields, search_of
from .video import FORMATS, write_video

LARGEST_SEED = 2**53 - 1  # seeds stand in JSON, whose readers keep whole numbers exactly up to here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turns a prompt into a video, by search, with the demo model that comes with the package or with another. "
        "With no reward there is nothing to search by: the video is a plain sample."
    )
    parser.add_argument("prompt", help='for example "a red circle moving left on a white background"')
    parser.add_argument("--model", help="folder or Hub id that StreamT1Pipeline loads; default: the demo")
    parser.add_argument("--image-reward", help="folder or Hub id of a converted reward; the demo has its own")
    parser.add_argument("--video-reward", help="likewise")
    parser.add_argument("-o", "--output", type=Path, default=Path("out.mp4"), help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replaces the video at OUTPUT")
    request = {field.name: field.default for field in fields(VideoRequest)}
    parser.add_argument(
        "--num-frames", type=int, default=request["num_frames"], help="12 k - 3; default: %(default)s, at 16 a second"
    )
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    given = parser.add_mutually_exclusive_group()
    given.add_argument("--image", type=Path, help="a picture with which the video begins, RGB")
    given.add_argument("--video", type=Path, help="a video that is continued; its frames count in --num-frames")
    parser.add_argument(
        "--resize", choices=["crop"], help="scales IMAGE or VIDEO to the model's size, cuts what is over"
    )
    parser.add_argument(
        "--search",
        choices=SHIPPED_SEARCHES,
        help="with the numbers below; default: beam, or with no reward one sample",
    )
    for name, owners in search_numbers().items():
        search = SHIPPED_SEARCHES[owners[0]]
        field = number_fields(search)[name]
        default = "" if field.default is MISSING else f"; default: {field.default}"
        parser.add_argument(
            f"--{name.replace('_', '-')}", type=field.type, help=f"of --search {', '.join(owners)}{default}"
        )
    parser.set_defaults(run=generate)


def search_numbers() -> dict[str, list[str]]:
    """The names of the shipped searches that have a number, by the name of the number."""
    owners: dict[str, list[str]] = {}
    for name, search in SHIPPED_SEARCHES.items():
        for number in number_fields(search):
            owners.setdefault(number, []).append(name)
    return owners


def generate(arguments: argparse.Namespace) -> None:
    """Writes the video, and the trace of its search as JSON beside it."""
    from ..search.files import check_place

    if not 0 <= arguments.seed <= LARGEST_SEED:
        raise ValueError(f"`--seed` is {arguments.seed}; it must lie between 0 and {LARGEST_SEED}, 2^53 - 1.")
    for path, options in places(arguments.output, arguments.overwrite).items():
        try:
            check_place(path, **options)
        except OSError as error:
            raise ValueError(f"`--output`: {error}") from error
    search, past = chosen_search(arguments), given_past(arguments)
    import torch

    pipe = load_demo(arguments.prompt) if arguments.model is None else load_model(arguments.model)
    for name in ("image_reward", "video_reward"):
        if getattr(arguments, name) is not None:
            setattr(pipe, name, getattr(arguments, name))
    if torch.accelerator.is_available():
        pipe.to(torch.accelerator.current_accelerator())
    if pipe.image_reward is pipe.video_reward is None:
        check_nothing_to_choose(VideoRequest(arguments.prompt, **search))
    begin = time.perf_counter()
    output = pipe(
        arguments.prompt,
        num_frames=arguments.num_frames,
        generator=torch.Generator().manual_seed(arguments.seed),
        **search,
        **past,
    )
    seconds = time.perf_counter() - begin
    frames, trace = (output.frames[0] * 255).round().astype("uint8"), output.trace
    path = arguments.output
    try:
        write(frames, trace, path, arguments.overwrite)
    except FileExistsError as error:  # somebody was faster; the search is not to be lost
        print(f"stream-t1: {error}", file=sys.stderr)
        path = free_path(path)
        write(frames, trace, path, overwrite=False)
    print(f"{path}: {len(frames)} frames, {decision(pipe, trace)}, found in {seconds:.1f} s")
    print(f"{path.with_suffix('.json')}: the trace of the search")


def chosen_search(arguments: argparse.Namespace) -> dict[str, object]:
    """What the call is told of its search.

    Raises:
        TypeError, ValueError: `--search` does not have a number that was given, or lacks one.
    """
    given = {name: getattr(arguments, name) for name in search_numbers() if getattr(arguments, name) is not None}
    if arguments.search is not None:
        return {"search": search_of(arguments.search, given)}
    foreign = [name for name in given if name not in number_fields(SHIPPED_SEARCHES["beam"])]
    if foreign:
        owner = search_numbers()[foreign[0]][0]
        raise ValueError(f"`{foreign[0]}` is a number of another search; say `--search {owner}`.")
    return given  # a call knows its own defaults, which depend on the rewards


def given_past(arguments: argparse.Namespace) -> dict[str, object]:
    """What the call is told of the picture or the video with which the new one begins.

    Raises:
        ValueError: there is no such file, or nothing to resize.
    """
    given = {name: getattr(arguments, name) for name in ("image", "video") if getattr(arguments, name) is not None}
    for name, path in given.items():
        if not path.is_file():
            raise ValueError(f"`--{name}` is {path}; there is no such file.")
    if arguments.resize is not None and not given:
        raise ValueError(f"`--resize` is {arguments.resize}, and there is no `--image` or `--video` to resize.")
    return given if arguments.resize is None else {**given, "resize": arguments.resize}


def check_nothing_to_choose(request: VideoRequest) -> None:
    """
    Raises:
        ValueError: without a reward, candidates or videos would be left over.
    """
    kept = most_kept(request.chosen_search(has_reward=False))
    if kept > 1:
        raise ValueError(
            f"The search keeps {kept} videos, and there is no reward to choose one. Give `--image-reward` or "
            "`--video-reward`, or no numbers for a plain sample."
        )


def decision(pipe: "StreamT1Pipeline", trace: "SearchTrace") -> str:  # noqa: F821 - loaded on use
    """What decided about the video: which rewards, among how many candidates."""
    made = trace.chunks[trace.config["num_given_chunks"] :]
    tried = sum(len(chunk.candidates) for chunk in made)
    rewards = {name: getattr(pipe, name) for name in ("image_reward", "video_reward")}
    named = " and ".join(f"{name} {type(each).__name__}" for name, each in rewards.items() if each is not None)
    if tried == len(made):
        return f"a plain sample, {f'scored by {named}' if named else 'with no reward to choose by'}"
    return f"the best of {tried} candidates by {named}"


def places(output: Path, overwrite: bool) -> dict[Path, dict[str, bool | str]]:
    """The files to write, and for `new_file` whether they replace what is there.

    Raises:
        ValueError: `output` does not have a video's name.
    """
    from ..search.files import is_unchanged

    if output.suffix not in FORMATS:
        raise ValueError(f"`--output` is {output}; a video's name ends in {' or '.join(FORMATS)}.")
    trace = output.with_suffix(".json")
    moved = f"It is not a trace that Stream-T1 wrote, or was changed since, and {output.name} comes with one: move it."
    return {
        output: {"replace": overwrite, "advice": "Name another output, or replace it with --overwrite."},
        trace: {"replace": is_unchanged(trace), "advice": moved},
    }


def write(frames: "numpy.ndarray", trace: "SearchTrace", output: Path, overwrite: bool) -> None:  # noqa: F821
    """Writes the video and its trace; either takes its name when both are whole."""
    from ..search.files import new_file

    (video_path, video_options), (trace_path, trace_options) = places(output, overwrite).items()
    with new_file(video_path, **video_options) as video, new_file(trace_path, **trace_options) as record:
        write_video(frames, video, trace.fps, output.suffix)
        trace.save(record)


def free_path(path: Path) -> Path:
    """`path` with the first number in its name at which neither a video nor a trace is."""
    for number in itertools.count(2):
        free = path.with_stem(f"{path.stem}-{number}")
        if not any(map(os.path.lexists, (free, free.with_suffix(".json")))):
            return free


def load_demo(prompt: str | None = None) -> "StreamT1Pipeline":  # noqa: F821 - loaded on use
    """The demo, and a word to those whose prompt it can't read."""
    from ..demo import load_pipeline, vocabulary_note

    note = None if prompt is None else vocabulary_note(prompt)
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
            f"`--model` is {name_or_folder}, {is_file}. Give a folder that StreamT1Pipeline loads; "
            "`stream-t1 convert` makes one from the files that authors published."
        )
    import torch

    from ..pipeline_stream_t1 import StreamT1Pipeline

    dtype = torch.bfloat16 if torch.accelerator.is_available() else torch.float32
    return StreamT1Pipeline.from_pretrained(name_or_folder, dtype=dtype)
