"""`stream-t1 convert` and `stream-t1 inspect`. What is slow to import is imported when a command runs."""

import argparse
from pathlib import Path

from .layouts import GENERATORS, WAN_BASE, Generator

DTYPES = ("float32", "bfloat16", "float16")


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = "Makes a folder that `from_pretrained` loads of the files that a model's authors published."
    models = parser.add_subparsers(metavar="MODEL", required=True)
    for name, generator in GENERATORS.items():
        add_generator(models.add_parser(name, help=generator.title), name, generator)


def add_generator(parser: argparse.ArgumentParser, name: str, generator: Generator) -> None:
    parser.description = f"Converts {generator.title}, published as {generator.checkpoint}."
    is_folder = generator.file == ""
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--checkpoint",
        default=generator.checkpoint,
        help=f"{'a folder or Hub id' if is_folder else 'a file or hub_id:file'}; default: %(default)s",
    )
    parser.add_argument(
        "--base",
        help="diffusers folder or Hub id of Wan 2.1 text-to-video, for text encoder, tokenizer and VAE; default: "
        + ("the checkpoint's own" if is_folder else WAN_BASE),
    )
    parser.add_argument("--lora", default=generator.lora or "none", help="a file or hub_id:file; default: %(default)s")
    parser.add_argument("--lora-alpha", type=float, help="of the LoRA's training; default: its rank")
    parser.add_argument("--keep-lora-apart", action="store_true", help="for `load_lora_weights`, instead of merging")
    parser.add_argument("--layout", help="the dict of the file that holds the weights, or flat; default: recognised")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights; default: as in the checkpoint")
    parser.add_argument("--link", action="store_true", help="hard links to the base's files instead of copies")
    parser.add_argument("--overwrite", action="store_true", help="replaces the model's folder at OUTPUT")
    parser.set_defaults(run=convert, name=name)


def convert(arguments: argparse.Namespace) -> None:
    import torch

    from .generators import convert_generator

    conversion = convert_generator(
        arguments.name,
        arguments.output,
        arguments.checkpoint,
        base=arguments.base,
        lora=None if arguments.lora == "none" else arguments.lora,
        lora_alpha=arguments.lora_alpha,
        merge_lora=not arguments.keep_lora_apart,
        layout=arguments.layout,
        dtype=None if arguments.dtype is None else getattr(torch, arguments.dtype),
        link=arguments.link,
        overwrite=arguments.overwrite,
    )
    weights = conversion.weights
    print(
        f"{conversion.folder}: {GENERATORS[arguments.name].title}, {weights.num_parameters:,} parameters in "
        f"{' and '.join(weights.dtypes)}, {weights.num_bytes / 1e6:,.1f} MB, in {conversion.seconds:.1f} s"
    )
    for origin in conversion.origins:
        print(f"  {origin.role}: {origin.name}")
    print(f"  read from {conversion.layout}")
    for file, sha256 in conversion.hashes.items():
        print(f"  {sha256}  transformer/{file}")


def add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.description = "Says what a file or folder is: layout, size, dtype, and what converts it."
    parser.add_argument("path", type=Path)
    parser.set_defaults(run=inspect)


def inspect(arguments: argparse.Namespace) -> None:
    from .inspection import describe

    print(describe(arguments.path))
