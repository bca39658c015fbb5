"""The command line: `python -m stream_t1 "PROMPT" -o out.mp4`, or `stream-t1` once installed.

A command is a file in `commands/`; COMMANDS lists them. A first argument that is no command is a prompt, for
`generate`.
"""

import argparse
import sys
from importlib import import_module

from .commands import run_command

COMMANDS = {
    "generate": "make a video from a prompt",
    "convert": "make a model's folder from the files that its authors published",
    "inspect": "say what a file or folder is, and what converts it",
    "evaluate": "compare ways to search at equal cost, on any model",
    "export-code": "write the pipeline's code into a folder, for diffusers' loader of remote code",
}


def main(argv: list[str] | None = None) -> int:
    """Runs a command; gives the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] not in (*COMMANDS, "-h", "--help"):
        argv = ["generate", *argv]
    parser = argparse.ArgumentParser(prog="stream-t1", description="Test-time search for streaming video models.")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        command = commands.add_parser(name, help=summary)
        if argv[:1] == [name]:  # what the others import, they need not
            import_module(f".commands.{name.replace('-', '_')}", __package__).add_arguments(command)
    return run_command(parser, argv)


if __name__ == "__main__":
    sys.exit(main())
