"""`stream-t1 convert`: published checkpoints become folders that `from_pretrained` loads."""

import argparse
from importlib import import_module
from pathlib import Path

from ..checkpoints.layouts import GENERATORS, WAN_BASE, Generator

DTYPES = ("float32", "bfloat16", "float16")
REWARDS = {  # by the names of their modules: title, and where the prompt template is
    "hpsv3": ("HPSv3", "the `hpsv3` wheel of PyPI, or the folder of the installed package"),
    "videoalign": ("VideoAlign", "a clone of the authors' repository, or its prompt_template.py"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = "Makes a folder that `from_pretrained` loads of the files that a model's authors published."
    models = parser.add_subparsers(metavar="MODEL", required=True)
    for name, generator in GENERATORS.items():
        add_generator(models.add_parser(name, help=generator.title), name, generator)
    for name, (title, template) in REWARDS.items():
        add_reward(models.add_parser(name, help=f"{title}, a reward model"), name, title, template)


def add_generator(parser: argparse.ArgumentParser, name: str, generator: Generator) -> None:
    parser.description = f"Converts {generator.title}, published as {generator.checkpoint}."
    is_folder = generator.file == ""
    _add_output(parser)
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
    parser.add_argument(
        "--lora-alpha", type=float, help="of the LoRA's training; default: what its file says, else its rank"
    )
    parser.add_argument("--keep-lora-apart", action="store_true", help="for `load_lora_weights`, instead of merging")
    parser.add_argument("--layout", help="the dict of the file that holds the weights, or flat; default: recognised")
    parser.add_argument("--dtype", choices=DTYPES, help="of the written weights; default: as in the checkpoint")
    parser.add_argument("--link", action="store_true", help="hard links to the base's files instead of copies")
    parser.set_defaults(run=convert_generator, name=name)


def add_reward(parser: argparse.ArgumentParser, name: str, title: str, template: str) -> None:
    parser.description = f"Converts {title}, with its prompt template, which is read and never run."
    _add_output(parser)
    parser.add_argument("--checkpoint", help="a path, or the Hub's name of it; default: what the authors published")
    parser.add_argument("--template", required=True, help=template)
    parser.add_argument("--base", help="folder or Hub id of the Qwen2-VL it was tuned from; default: the authors' one")
    parser.add_argument(
        "--accept-changed-template", action="store_true", help="takes another one than the weights were trained with"
    )
    parser.set_defaults(run=convert_reward, name=name)


def convert_generator(arguments: argparse.Namespace) -> None:
    import torch

    from ..checkpoints import generators

    conversion = generators.convert_generator(
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
    _print_summary(GENERATORS[arguments.name].title, conversion)


def convert_reward(arguments: argparse.Namespace) -> None:
    module = import_module(f"..checkpoints.{arguments.name}", __package__)
    conversion = getattr(module, f"convert_{arguments.name}")(
        arguments.checkpoint or module.CHECKPOINT,
        arguments.template,
        arguments.output,
        base=arguments.base or module.BASE,
        accept_changed_template=arguments.accept_changed_template,
        overwrite=arguments.overwrite,
    )
    _print_summary(REWARDS[arguments.name][0], conversion)


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--overwrite", action="store_true", help="replaces a folder that was made here and not changed"
    )


def _print_summary(title: str, conversion: "Conversion") -> None:  # noqa: F821 - slow to import
    weights = conversion.weights
    print(
        f"{conversion.folder}: {title}, {weights.num_parameters:,} parameters in {' and '.join(weights.dtypes)}, "
        f"{weights.num_bytes / 1e6:,.1f} MB, in {conversion.seconds:.1f} s"
    )
    for origin in conversion.origins:
        print(f"  {origin.role}: {origin.name}")
    print(f"  read from {conversion.layout}")
    for file in weights.files:
        print(f"  {conversion.hashes[file.name]}  {file.relative_to(conversion.folder)}")
