"""`stream-t1 inspect`: what a checkpoint is, said without loading it."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Says what a file or folder is: layout, size, dtype, and what converts it."
    parser.add_argument("path", type=Path)
    parser.set_defaults(run=inspect)


def inspect(arguments: argparse.Namespace) -> None:
    from ..checkpoints.inspection import describe

    print(describe(arguments.path))
