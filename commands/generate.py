"""`stream-t1 generate`: a prompt becomes a video, with the trace of its search beside it."""

import argparse
import itertools
import os
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

from ..search.choice import most_kept
from ..search.memory_sinking import RECACHE_MODES
from ..search.request import VideoRequest
from ..search.search_names import SearchText, argument_kinds, described, written
from ..search.shipped import SHIPPED_SEARCHES
from ..search.timeline import PromptTimeline
from .video import FORMATS, write_video

LARGEST_SEED = 2**53 - 1  # seeds stand in JSON, whose readers keep whole numbers exactly up to here


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Turns a prompt into a video, by search, with the demo model that comes with the package or with another. "
        "With no reward there is nothing to search by: the video is a plain sample."
    )
    parser.add_argument("prompt", nargs="?", help='for example "a red circle moving left on a white background"')
    parser.add_argument(
        "--timeline",
        metavar="TEXT|FILE.json",
        help='instead of PROMPT, prompts that change: "a red circle [3s] | a blue circle [2s]", or a file with '
        '{"prompts": {"0": "a red circle", "45": "a blue circle"}} by frame',
    )
    parser.add_argument("--transition", type=int, help="chunks over which a changed prompt is mixed in")
    parser.add_argument("--recache", choices=RECACHE_MODES, help="what becomes of the past when the prompt changes")
    add_model(parser)
    add_rewards(parser)
    add_output(parser)
    parser.add_argument(
        "--save-to",
        type=Path,
        metavar="FILE",
        help="a new file that keeps the run after every chunk, for `stream-t1 resume`",
    )
    request = {field.name: field.default for field in fields(VideoRequest)}
    parser.add_argument(
        "--num-frames",
        type=int,
        help=f"12 k - 3; default: the timeline's, or {request['num_frames']}, at 16 a second",
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
        metavar="NAME",
        help=f"{', '.join(SHIPPED_SEARCHES)}, with the arguments below or in one text, as in "
        '"particles:strength=4,num_particles=8"; default: beam, or with no reward one sample',
    )
    for name, owners in search_arguments().items():
        told = "; ".join(dict.fromkeys(_argument_help(name, owner) for owner in owners))
        parser.add_argument(f"--{name.replace('_', '-')}", metavar="VALUE", help=f"of --search {told}")
    parser.set_defaults(run=generate)


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="folder or Hub id that StreamT1Pipeline loads; default: the demo")


def add_rewards(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--image-reward", help="folder or Hub id of a converted reward; the demo has its own")
    parser.add_argument("--video-reward", help="likewise")


def add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, default=Path("out.mp4"), help="default: %(default)s")
    parser.add_argument("--overwrite", action="store_true", help="replaces the video at OUTPUT")


def search_arguments() -> dict[str, list[str]]:
    """The names of the shipped searches that have an argument, by the name of the argument.

    What a call has too, such as `image_reward`, a search is told in its text alone.
    """
    of_calls = {field.name for field in fields(VideoRequest)} - {"num_beams", "num_candidates"}
    owners: dict[str, list[str]] = {}
    for name, search in SHIPPED_SEARCHES.items():
        for argument in argument_kinds(search):
            if argument not in of_calls:
                owners.setdefault(argument, []).append(name)
    return owners


def _argument_help(name: str, owner: str) -> str:
    """A search's name, and which values its argument takes and has."""
    search = SHIPPED_SEARCHES[owner]
    kind, (found,) = argument_kinds(search)[name], (field for field in fields(search) if field.name == name)
    default = "" if found.default is MISSING else f", {written(kind, found.default)} by default"
    return f"{owner}: {described(kind)}{default}"


def generate(arguments: argparse.Namespace) -> None:
    """Writes the video, and the trace of its search as JSON beside it."""
    if not 0 <= arguments.seed <= LARGEST_SEED:
        raise ValueError(f"`--seed` is {arguments.seed}; it must lie between 0 and {LARGEST_SEED}, 2^53 - 1.")
    check_output(arguments)
    search, prompt, past = chosen_search(arguments), chosen_prompt(arguments), given_past(arguments)
    import torch

    pipe = load_pipeline(arguments, prompt)
    prompt = chosen_prompt(arguments, pipe.config.fps, pipe.config.chunk_frames)
    if pipe.image_reward is pipe.video_reward is None:
        check_nothing_to_choose(VideoRequest(prompt, **search))
    num_frames = arguments.num_frames
    if num_frames is None:
        num_frames = getattr(prompt, "num_frames", None) or VideoRequest.num_frames
    begin = time.perf_counter()
    output = pipe(
        prompt,
        num_frames=num_frames,
        **{name: given for name in ("transition", "recache") if (given := getattr(arguments, name)) is not None},
        generator=torch.Generator().manual_seed(arguments.seed),
        **({} if arguments.save_to is None else {"save_to": arguments.save_to}),
        **search,
        **past,
    )
    write_output(output, arguments, f"{decision(pipe, output.trace)}, found in {time.perf_counter() - begin:.1f} s")


def check_output(arguments: argparse.Namespace) -> None:
    """Tries whether the video and its trace can be written.

    Raises:
        ValueError: they can't, or `--output` does not have a video's name.
    """
    from ..search.files import check_place

    for path, options in places(arguments.output, arguments.overwrite).items():
        try:
            check_place(path, **options)
        except OSError as error:
            raise ValueError(f"`--output`: {error}") from error


def load_pipeline(arguments: argparse.Namespace, prompt: str | None = None) -> "StreamT1Pipeline":  # noqa: F821
    """The pipeline of `--model`, with the rewards that are named, on the accelerator if there is one.

    Args:
        prompt: of which the demo says what it can't read.
    """
    import torch

    pipe = load_demo(prompt) if arguments.model is None else load_model(arguments.model)
    for name in ("image_reward", "video_reward"):
        if getattr(arguments, name, None) is not None:
            setattr(pipe, name, getattr(arguments, name))
    if torch.accelerator.is_available():
        pipe.to(torch.accelerator.current_accelerator())
    return pipe


def write_output(output: "StreamT1PipelineOutput", arguments: argparse.Namespace, how: str) -> None:  # noqa: F821
    """Writes the video and its trace, under another name if there is a video by now, and says how it was made."""
    frames, trace = (output.frames[0] * 255).round().astype("uint8"), output.trace
    path = arguments.output
    try:
        write(frames, trace, path, arguments.overwrite)
    except FileExistsError as error:  # somebody was faster; the video is not to be lost
        print(f"stream-t1: {error}", file=sys.stderr)
        path = free_path(path)
        write(frames, trace, path, overwrite=False)
    print(f"{path}: {len(frames)} frames, {how}")
    print(f"{path.with_suffix('.json')}: the trace of the search")


def chosen_prompt(arguments: argparse.Namespace, fps: float = 16, chunk_frames: int = 3) -> str | PromptTimeline:
    """The prompt, or the timeline for videos of so many frames per second and latent frames per chunk.

    Raises:
        TypeError, ValueError: there is not exactly one of the two, or the timeline can't be read.
    """
    given = arguments.timeline
    if (arguments.prompt is None) == (given is None):
        raise ValueError("Give a prompt, or `--timeline`, and not both.")
    if given is None:
        return arguments.prompt
    if not given.endswith(".json"):
        return PromptTimeline.parse(given, fps, chunk_frames=chunk_frames)
    try:
        return PromptTimeline.from_json(Path(given).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"`--timeline` is {given}, which can't be read: {error}") from error


def chosen_search(arguments: argparse.Namespace) -> dict[str, object]:
    """What the call is told of its search.

    Raises:
        TypeError, ValueError: `--search` does not have an argument that was given, or lacks one.
    """
    given = {name: getattr(arguments, name) for name in search_arguments() if getattr(arguments, name) is not None}
    if arguments.search is not None:
        return {"search": SearchText.parse(arguments.search, given).build()}
    foreign = [name for name in given if name not in ("num_beams", "num_candidates")]
    if foreign:
        owner = search_arguments()[foreign[0]][0]
        raise ValueError(f"`{foreign[0]}` is an argument of a search; say `--search {owner}`.")
    return dict(
        SearchText.parse("beam", given).arguments
    )  # a call knows its own defaults, which depend on the rewards


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
    num_given = trace.config["num_given_chunks"]
    tried = sum(len(record.candidates) for record in trace.records) - num_given
    rewards = {name: getattr(pipe, name) for name in ("image_reward", "video_reward")}
    named = " and ".join(f"{name} {type(each).__name__}" for name, each in rewards.items() if each is not None)
    if tried == len(trace.chunks) - num_given:
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


def load_demo(prompt: str | PromptTimeline | None = None) -> "StreamT1Pipeline":  # noqa: F821 - loaded on use
    """The demo, and a word to those whose prompts it can't read."""
    from ..demo import load_pipeline, vocabulary_note

    texts = [] if prompt is None else [prompt] if isinstance(prompt, str) else prompt.texts
    for note in dict.fromkeys(filter(None, map(vocabulary_note, texts))):
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
