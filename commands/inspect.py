"""`stream-t1 inspect`: what a file or folder is, said without loading it, and what can be done with it.

Every line with a command ends with it, to be pasted.
"""

import argparse
import shlex
from collections.abc import Iterable
from pathlib import Path

from .video import FORMATS, read_tag

ROOT = Path(__file__).parent.parent
CODE = "pipeline_stream_t1.py"  # in a clone, and in every folder that carries the code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Says what a file or folder is: a checkpoint, a model, a LoRA, a reward, a trace, a video, code, an "
        "evaluation; its layout, size and dtype, and what can be done with it."
    )
    parser.add_argument("path", metavar="PATH", help="a file, a folder, or a Hub id, about which nothing is fetched")
    parser.set_defaults(run=inspect)


def inspect(arguments: argparse.Namespace) -> None:
    print("\n".join(describe(arguments.path)))


def describe(given: str) -> Iterable[str]:
    """Lines about a path or Hub id.

    Raises:
        FileNotFoundError: nothing is there, and it is no Hub id.
        ValueError: it is damaged, or nothing that is known here.
    """
    from ..checkpoints import inspection

    path, quoted = Path(given), shlex.quote(given)
    if not path.exists():
        return inspection.hub_lines(given)
    if path.suffix in FORMATS and path.is_file():
        return _video_lines(path)
    if path.suffix == ".json" and path.is_file():
        return _trace_lines(path)
    if path.suffix == ".safetensors" and path.is_file() and (lines := _run_lines(path)):
        return lines
    if (path / CODE).is_file() and (path / "__init__.py").is_file():
        return [
            f"{path}: a clone of Stream-T1's repository, with the demo model in demo/checkpoint",
            f"  the demo: stream-t1 inspect {shlex.quote(str(path / 'demo' / 'checkpoint'))}",
            f"  the code alone, for the Hub: stream-t1 export-code {quoted}-code",
        ]
    if (path / CODE).is_file() and not (path / "transformer").is_dir():
        return [
            f"{path}: Stream-T1's code without a model",
            f"  runs over a Wan 2.1 text-to-video folder: DiffusionPipeline.from_pretrained({inspection.WAN_BASE!r}, "
            f"custom_pipeline={given!r}, trust_remote_code=True)",
            f"  made anew by: stream-t1 export-code {quoted}",
        ]
    if (path / "configuration.json").is_file():
        return _evaluation_lines(path)
    return inspection.describe(path).splitlines()


def _trace_lines(path: Path) -> list[str]:
    from ..search.files import is_sealed, is_unchanged
    from ..search.trace import SearchTrace

    if not is_sealed(path):
        raise ValueError(f"{path} is no trace that Stream-T1 wrote, and other JSON is not known here.")
    try:
        trace = SearchTrace.load(path)
        config, tried = trace.config, sum(len(record.candidates) for record in trace.records)
        kept = "as it was written" if is_unchanged(path) else "changed since it was written"
        lines = [
            f"{path}: the trace of a search, of version {trace.version}, {kept}",
            f"  prompt: {config.get('prompt')}",
            f"  {len(trace.chunks)} chunks, {tried} candidates, {config.get('height')}x{config.get('width')}, "
            f"base of seeds {trace.seed}, {trace.fps:g} frames a second",
            f"  searched by: {config.get('search')}",
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is a damaged trace: {error}") from error
    videos = [video for suffix in FORMATS if (video := path.with_suffix(suffix)).is_file()]
    return lines + [f"  its video: stream-t1 inspect {shlex.quote(str(video))}" for video in videos]


def _run_lines(path: Path) -> list[str]:
    """Lines about a saved run; none for another file."""
    from ..search.saved_run import read_header

    try:
        header = read_header(path)
        searches = [prompt["trace"] for prompt in header["prompts"]]
        lines = [f"{path}: a saved run of version {header['version']}, of {len(searches)} prompts"]
        for record in searches:
            config = record["config"]
            lines.append(
                f"  {len(record['chunks'])} of {config['num_chunks']} chunks, {config['height']}x{config['width']}, "
                f"prompt: {config['prompt']}"
            )
        return [*lines, f"  gone on with by: stream-t1 resume {shlex.quote(str(path))}"]
    except (ValueError, KeyError, TypeError, AttributeError):
        return []


def _video_lines(path: Path) -> list[str]:
    size, fps, num_frames, is_ours = read_tag(path)
    whose = "that Stream-T1 wrote" if is_ours else "that does not say Stream-T1 wrote it"
    lines = [f"{path}: a video {whose}, {num_frames} frames, {size[1]}x{size[0]} (height x width), {fps:g} a second"]
    trace = path.with_suffix(".json")
    return lines + [f"  its trace: stream-t1 inspect {shlex.quote(str(trace))}"] * trace.is_file()


def _evaluation_lines(path: Path) -> list[str]:
    from ..evaluation.results import read_configuration, read_rows

    configuration, rows = read_configuration(path), read_rows([path])
    methods = dict.fromkeys(row["method"] for row in rows)
    return [
        f"{path}: an evaluation, {len(rows)} videos of {len({row['prompt'] for row in rows})} prompts",
        f"  methods: {', '.join(methods) or 'none yet'}",
        f"  measured: {', '.join(configuration.get('metrics', ()))}",
    ]
