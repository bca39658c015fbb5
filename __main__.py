"""The command line: `python -m stream_t1 "PROMPT" -o out.mp4`, or `stream-t1` once installed.

A command is a file in `commands/`; COMMANDS lists them. A first argument with a blank in it is a prompt, for
`generate`.
"""

import argparse
import difflib
import re
import shlex
import sys
from importlib import import_module
from pathlib import Path

from .commands import run_command

COMMANDS = {  # a line about each, and an example that runs as it stands
    "generate": (
        "make a video from a prompt; a prompt alone does so too",
        'stream-t1 generate "a red circle moving left on a white background" -o circle.mp4',
    ),
    "resume": (
        "go on with a run that `generate --save-to` kept in a file, or make its video longer",
        "stream-t1 resume circle.safetensors -o circle.mp4",
    ),
    "replay": (
        "make the video of a trace again, without its search",
        "stream-t1 replay circle.json -o circle.mp4",
    ),
    "inspect": (
        "say what a file, a folder or a model on the Hub is, and what can be done with it",
        "stream-t1 inspect Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    ),
    "convert": (
        "make a model's folder from the files that its authors published, which it fetches",
        "stream-t1 convert longlive -o longlive",
    ),
    "evaluate": (
        "compare ways to search at equal cost, on any model",
        'stream-t1 evaluate --prompt "a red circle moving left" --num-frames 33 --budgets 8 --output results',
    ),
    "export-code": (
        "write the pipeline's code into a folder, for diffusers' loader of remote code",
        "stream-t1 export-code stream-t1-code",
    ),
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; gives the exit status."""
    argv = _command_first(list(sys.argv[1:] if argv is None else argv))
    is_implied = bool(argv) and argv[0] not in (*COMMANDS, "-h", "--help", "--version")
    if is_implied and not argv[0].startswith("-") and not _has_blank(argv[0]):
        return _refuse(argv[0])
    if is_implied:
        argv.insert(0, "generate")
    parser = build_parser(argv[0] if argv else "")
    prompt = parser.parse_args(argv).prompt if is_implied else None
    if prompt is not None and not _has_blank(prompt):
        return _refuse(prompt)
    return run_command(parser, argv)


def build_parser(command: str) -> argparse.ArgumentParser:
    """The parser of the command line; what other commands than this one import, it does not need."""
    examples = (f"{name}\n  {summary}:\n    {example}" for name, (summary, example) in COMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="stream-t1",
        description="Test-time search for streaming video models.",
        epilog="\n".join(("commands:", "", *examples, "", "`stream-t1 COMMAND --help` has the options of each.")),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"stream-t1 {_version()}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, help=", ".join(COMMANDS))
    for name in COMMANDS:
        added = commands.add_parser(name)
        if name == command:
            import_module(f".commands.{name.replace('-', '_')}", __package__).add_arguments(added)
    return parser


def _command_first(argv: list[str]) -> list[str]:
    """The arguments with their command before the options that were given before it."""
    if not argv or not argv[0].startswith("-"):
        return argv
    for place, name in enumerate(argv):
        if name in COMMANDS and place and not _takes_value(name, argv[place - 1]):
            return [name, *argv[:place], *argv[place + 1 :]]
    return argv


def _takes_value(command: str, option: str) -> bool:
    """Whether the argument after `option` is its value, for this command or for the one that may be left out."""
    if not option.startswith("-") or "=" in option:
        return False
    actions = {}
    for name in ("generate", command):
        parser = argparse.ArgumentParser()
        import_module(f".commands.{name.replace('-', '_')}", __package__).add_arguments(parser)
        actions |= {text: action for action in parser._actions for text in action.option_strings}
    return option in actions and actions[option].nargs != 0


def _has_blank(text: str) -> bool:
    return any(character.isspace() for character in text)


def _refuse(word: str) -> int:
    (nearest,) = difflib.get_close_matches(word, COMMANDS, n=1, cutoff=0.0)
    print(
        f"stream-t1: {word!r} is no command; the nearest is `{nearest}`. A prompt of one word is given to `generate`: "
        f"stream-t1 generate {shlex.quote(word)}",
        file=sys.stderr,
    )
    return 2


def _version() -> str:
    """Read and not imported, which takes seconds."""
    text = (Path(__file__).parent / "pipeline_stream_t1.py").read_text(encoding="utf-8")
    return re.search(r'^__version__ = "(.+)"', text, re.MULTILINE).group(1)


if __name__ == "__main__":
    sys.exit(main())
