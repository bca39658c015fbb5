"""What a model folder holds besides its components: the code that the Hub's loader runs, and `model_index.json`.

diffusers loads `custom_pipeline="stream_t1"` from `stream_t1.py` at the folder's root, a Hub id or a folder given as
`custom_pipeline` from `pipeline.py`, and `_class_name` in `model_index.json` from the file that it names, here
`stream_t1.py` again. It fetches the modules that this entry file imports; what those import in turn it follows on the
Hub alone, and `from . import sibling` never. So a folder carries the pipeline with every module that it reaches, and
two entry files, the shims, that import each of them.
"""

import ast
import functools
import json
import shutil
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory

import diffusers

from . import saving

ROOT = Path(__file__).parent.parent  # of the package, or of the copy that the loader made of a folder's code
PIPELINE = ("pipeline_stream_t1", "StreamT1Pipeline")  # module and class
SHIMS = ("stream_t1", "pipeline")
KEEP_DTYPE = object()  # `DiffusionPipeline.from_pipe` casts to float32 where it is told nothing
WANTED = (
    "StreamT1Pipeline takes Wan 2.1 text-to-video: folders that it saved, and those of `WanPipeline`, such as "
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers."
)


def write_code(folder: str | PathLike) -> list[Path]:
    """Writes the pipeline's code into a folder, which is made if need be; gives the files.

    Raises:
        FileExistsError: a file would replace one that this project did not write, or that was changed.
        NotADirectoryError: `folder` is a file or a link.
    """
    with saving.filled_folder(folder, copy_code) as written:
        names = saving.file_names(written)
    return [Path(folder) / name for name in (*names, saving.MANIFEST)]


def copy_code(folder: Path) -> None:
    """Writes the pipeline's code into a folder that has none."""
    modules = reached_modules(PIPELINE[0])
    for name in (f"{module.replace('.', '/')}.py" for module in modules):
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
    lines = [
        f'"""{PIPELINE[1]}, under a name by which diffusers looks for it, and every module that it needs."""',
        "# ruff: noqa: F401",
        *(f"from .{module} import __name__ as _" for module in modules),
        f"from .{PIPELINE[0]} import {PIPELINE[1]}",
    ]
    for shim in SHIMS:
        (folder / f"{shim}.py").write_text("\n".join(lines) + "\n", encoding="utf-8")


def reached_modules(module: str) -> list[str]:
    """Names, sorted and relative to the package, of a module and all project modules that its imports lead to.

    Args:
        module: "pipeline_stream_t1", or one in a folder such as "search.beam".
    """
    reached, waiting = set(), [module]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += _imported_modules(module)
    return sorted(reached)


@functools.cache  # parsing takes longer than writing
def _imported_modules(module: str) -> list[str]:
    """The project modules that a module's file imports: `from .folder.module import X`, or `from . import sibling`."""
    tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    folder = module.rpartition(".")[0]
    names = [name for node in imports for name in ([node.module] if node.module else [a.name for a in node.names])]
    return [f"{folder}.{name}" if folder else name for name in names]


def model_index(**changes: object) -> dict[str, object]:
    """The content of a folder's `model_index.json`: the project's template with other values for some of its keys.

    Raises:
        KeyError: the template has no such key.
    """
    index = json.loads((ROOT / "model_index.json").read_text(encoding="utf-8"))
    unknown = sorted(set(changes) - set(index))
    if unknown:
        raise KeyError(f"`model_index.json` has no {', '.join(unknown)}; it has {', '.join(index)}.")
    return {**index, **changes, "_diffusers_version": diffusers.__version__}


def check_base(index: dict[str, object]) -> None:
    """Whether the pipeline can take the components of a folder, or of another pipeline, with this `model_index.json`.

    Raises:
        ValueError: they are of another kind of model; the message says of which.
    """
    name = index.get("_class_name")
    name = name[-1] if isinstance(name, list | tuple) and name else name
    if name not in (PIPELINE[1], "WanPipeline"):
        kind = "an image-to-video model" if "ImageToVideo" in str(name) else "another pipeline"
        raise ValueError(f"These components are of {kind}, `{name}`. {WANTED}")
    _refuse_wan_22(index)


def _refuse_wan_22(index: dict[str, object]) -> None:
    if _is_component(index.get("transformer_2")) or index.get("expand_timesteps") or index.get("boundary_ratio"):
        raise ValueError(f"These components are of a Wan 2.2 model. {WANTED}")


def _is_component(entry: object) -> bool:
    """Whether an entry of `model_index.json` names a class; absent components are `[null, null]`."""
    return isinstance(entry, list | tuple) and len(entry) > 0 and entry[0] is not None


class FolderMixin:
    """Saving and loading, for a `DiffusionPipeline`: folders carry their code and name stock classes."""

    _own_models: tuple = ()  # that nobody else has

    def save_pretrained(
        self,
        save_directory: str | PathLike,
        safe_serialization: bool = True,
        variant: str | None = None,
        max_shard_size: int | str | None = None,
        push_to_hub: bool = False,
        **options: object,
    ) -> None:
        """`DiffusionPipeline.save_pretrained`, and the code with which the folder loads anywhere.

        Files are replaced, not written into, once all are whole. Other files in the folder stay; what is pushed is the
        save alone.

        Raises:
            FileExistsError: a file of the code would replace one that this project did not write, or that was changed.
            NotADirectoryError: `save_directory` is a file or a link.
            ValueError: a component carries a LoRA, which its folder could not hold.
        """
        self._refuse_adapters()
        options |= {"safe_serialization": safe_serialization, "variant": variant, "max_shard_size": max_shard_size}
        with saving.filled_folder(save_directory, copy_code) as folder:
            super().save_pretrained(fspath(folder), **options)
        if push_to_hub:
            options.setdefault("repo_id", Path(save_directory).absolute().name)
            with TemporaryDirectory() as folder:  # apart from what else is in `save_directory`
                copy_code(Path(folder))
                super().save_pretrained(folder, push_to_hub=True, **options)

    def push_to_hub(self, *arguments: object, **options: object) -> str:
        """`DiffusionPipeline.push_to_hub`; refuses a LoRA before a repository is made, as `save_pretrained` does."""
        self._refuse_adapters()
        return super().push_to_hub(*arguments, **options)

    def _upload_folder(self, working_dir: str | PathLike, *arguments: object, **options: object) -> object:
        # With the manifest, a folder that is downloaded again can be saved into.
        saving.write_manifest(Path(working_dir))
        return super()._upload_folder(working_dir, *arguments, **options)

    def _refuse_adapters(self) -> None:
        saved = {name: part for name, part in self.components.items() if _is_component(self.config.get(name))}
        for name, component in saved.items():
            if any(hasattr(module, "base_layer") for module in getattr(component, "modules", list)()):
                raise ValueError(
                    f"`{name}` carries a LoRA, and a folder that is saved with it does not load. To save its effect, "
                    "call `pipe.fuse_lora()`, then `pipe.unload_lora_weights()`; to save without it, the latter alone."
                )

    def to_json_string(self) -> str:
        """`model_index.json`, with the class as the loader of remote code reads it and no path of this machine."""
        index = {**json.loads(super().to_json_string()), "_class_name": (SHIMS[0], PIPELINE[1])}
        index.pop("_name_or_path", None)
        return json.dumps(index, indent=2) + "\n"

    @classmethod
    def _dict_from_json_file(cls, json_file: str | PathLike) -> dict[str, object]:
        # Where this class is at hand, the folder's code is not needed; diffusers would ask to trust it.
        index = super()._dict_from_json_file(json_file)
        check_base(index)
        return {**index, "_class_name": PIPELINE[1]}

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, object], **kwargs: object) -> tuple[dict, dict, dict]:
        # Of `DiffusionPipeline.from_pretrained`, all that comes by here is this: the check for remote code.
        check_base(config_dict)
        return super().extract_init_dict(config_dict, **kwargs)

    def register_to_config(self, **entries: object) -> None:
        # Of `DiffusionPipeline.from_pipe`, all that comes by here is what else the other pipeline's config has, each
        # name with `_` before it.
        _refuse_wan_22({name.removeprefix("_"): value for name, value in entries.items()})
        super().register_to_config(**entries)

    @classmethod
    def from_pretrained(cls, *arguments: str | PathLike, **options: object) -> "FolderMixin":
        """`DiffusionPipeline.from_pretrained`. Models that it loads itself are the pipeline's own."""
        pipe = super().from_pretrained(*arguments, **options)
        models = {name: getattr(pipe, name) for name in ("text_encoder", "transformer", "vae") if name not in options}
        pipe._own_models = tuple(model for model in models.values() if model is not None)
        return pipe

    @classmethod
    def from_pipe(cls, pipeline: object, **kwargs: object) -> "FolderMixin":
        """`DiffusionPipeline.from_pipe`: of a `WanPipeline` with Wan 2.1, or another of this class.

        The models are shared with that pipeline, so they are cast only if `dtype` is given.
        """
        check_base({**pipeline.config, "_class_name": type(pipeline).__name__})
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = KEEP_DTYPE
        return super().from_pipe(pipeline, **kwargs)

    def to(self, *args: object, **kwargs: object) -> "FolderMixin":
        """`DiffusionPipeline.to`."""
        return self if kwargs.get("dtype") is KEEP_DTYPE else super().to(*args, **kwargs)
