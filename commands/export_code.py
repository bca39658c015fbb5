"""`stream-t1 export-code`: the pipeline's code in a folder, without a model."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes the pipeline's code as diffusers' loader of remote code wants it: upload the folder, and "
        "`custom_pipeline=` with its Hub id runs it over any Wan 2.1 text-to-video folder."
    )
    parser.add_argument(
        "folder", type=Path, help="made if it is not there; older code is replaced, but no file of yours"
    )
    parser.set_defaults(run=export_code)


def export_code(arguments: argparse.Namespace) -> None:
    from ..loaders.folder import write_code

    print(f"{arguments.folder}: {len(write_code(arguments.folder))} files")
