"""Loading of rewards, from a model of transformers or a converted reward folder.

    reward_config.json      the kind of reward, the model's config, the reward's constants, what it was converted from
    template.json           the words around the prompt: {"before": ..., "after": ...}
    model*.safetensors      the weights, in one file or in shards with an index
    tokenizer files

Weights are read from safetensors only.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

CONFIG_NAME = "reward_config.json"
TEMPLATE_NAME = "template.json"
WEIGHTS_STEM = "model"


@dataclass(frozen=True)
class Template:
    """The text that a reward model was trained with, around the prompt."""

    before: str
    after: str

    def fill(self, prompt: str) -> str:
        return self.before + prompt + self.after


@dataclass(frozen=True, eq=False)
class ConvertedFolder:
    """A converted reward whose weights are not read yet."""

    path: Path
    kind: str  # of reward, as `Reward.kind`
    config: Mapping  # of the reward: "model", "reward_tokens", and the constants of its kind

    def template(self) -> Template:
        path = self._file(TEMPLATE_NAME)
        words = _read_json(path, ("before", "after"))
        if not all(isinstance(words[name], str) for name in ("before", "after")):
            raise _damaged(path, "its words are no text")
        return Template(words["before"], words["after"])

    def check_constants(self, *names: str) -> None:
        """Checks that the config has the constants that a reward of this kind needs.

        Raises:
            ValueError: it lacks one.
        """
        _check_keys(self.path / CONFIG_NAME, self.config, names)

    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.path)

    def tensors(self, dtype: torch.dtype | None = None, keep_float32: tuple[str, ...] = ()) -> dict[str, torch.Tensor]:
        """The weights, on the CPU.

        Args:
            dtype: to cast to, one tensor after the other; None keeps theirs.
            keep_float32: prefixes of the names that are cast to float32 instead.
        """
        tensors = {}
        for file in self._weight_files():
            try:
                opened = safe_open(file, "pt")
            except SafetensorError as error:
                raise _damaged(file, str(error)) from error
            with opened:
                for name in opened.keys():  # noqa: SIM118 - it is no mapping
                    tensor = opened.get_tensor(name)
                    tensors[name] = tensor.to(
                        torch.float32 if name.startswith(keep_float32) else dtype or tensor.dtype
                    )
        return tensors

    def _weight_files(self) -> list[Path]:
        """Weight files in the converter's own layout; `checkpoints/reading.py` reads the others."""
        index = self.path / f"{WEIGHTS_STEM}.safetensors.index.json"
        if not index.is_file():
            return [self._file(f"{WEIGHTS_STEM}.safetensors")]
        shards = _read_json(index, ("weight_map",))["weight_map"]
        if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
            raise _damaged(index, "its weight_map names no files")
        outside = sorted(name for name in shards.values() if Path(name).name != name)
        if outside:
            raise _damaged(index, f"its weight_map names {outside[0]}, outside its folder")
        return [self._file(name) for name in sorted(set(shards.values()))]

    def _file(self, name: str) -> Path:
        path = self.path / name
        if not path.is_file():
            raise ValueError(f"{self.path} is not whole: it has no {name}. Convert it again, or download all of it.")
        return path


def open_folder(name_or_folder: str | Path) -> ConvertedFolder:
    """Opens a converted reward, from a folder or the Hub.

    Raises:
        ValueError: it is neither a folder nor a Hub id, or holds no converted reward.
    """
    path = Path(name_or_folder)
    if not path.is_dir():
        path = _download(str(name_or_folder))
    config_path = path / CONFIG_NAME
    if not config_path.is_file():
        raise ValueError(
            f"{name_or_folder} is no converted reward: it has no {CONFIG_NAME}. Original files are converted once, "
            "with `stream-t1 convert hpsv3` or `stream-t1 convert videoalign`."
        )
    config = _read_json(config_path, ("kind", "model", "reward_tokens"))
    return ConvertedFolder(path, config["kind"], config)


def load_tokenizer(name_or_folder: str | Path) -> PreTrainedTokenizerBase:
    """Loads a tokenizer of a transformers class from a folder or the Hub; runs no code of the folder, never prompts.

    Raises:
        ValueError: it needs code of its own.
        Exception: whatever transformers raises where it is damaged or absent.
    """
    try:
        return AutoTokenizer.from_pretrained(name_or_folder, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(
            f"{name_or_folder} names code of its own as its tokenizer (`auto_map` in a config), which never runs "
            "here. Give one of a class of transformers, such as that of the model that it was tuned from."
        ) from error


def load_whole(
    model_class: type[PreTrainedModel], name_or_folder: str | Path, dtype: torch.dtype | None, **options: object
) -> PreTrainedModel:
    """Loads a model of transformers from safetensors, in float32 by default.

    transformers itself initialises missing weights at random, and only logs it.

    Raises:
        ValueError: weights are missing or of another shape: it is another model, or an incomplete one.
    """
    model, found = model_class.from_pretrained(
        name_or_folder,
        dtype=dtype or torch.float32,
        use_safetensors=True,
        trust_remote_code=False,
        ignore_mismatched_sizes=True,  # they are reported below, with the missing ones
        output_loading_info=True,
        **options,
    )
    absent = sorted({*found["missing_keys"], *(key for key, *_ in found["mismatched_keys"])})
    if absent:
        model_type = model_class.config_class.get_config_dict(name_or_folder)[0].get("model_type")
        raise ValueError(
            f"{name_or_folder} holds no whole {model_class.__name__}: its config says {model_type!r}, and "
            f"{', '.join(absent[:3])} are missing or of another shape, {len(absent)} such weights. Give the model "
            "that this reward is made for."
        )
    return model


def _download(name: str) -> Path:
    """Downloads the snapshot of a repository on the Hub, without its pickles."""
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.txt", "*.jinja"]))
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ValueError(f"{name!r} is no folder here, and no repository that the Hub would give: {error}") from error


def _read_json(path: Path, needed: Sequence[str]) -> dict:
    """A dict that has these keys. `checkpoints/reading.py` has another, where the Hub's loader can't find it.

    Raises:
        ValueError: the file holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # no JSON, or no text
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"it holds a {type(content).__name__}, not keys and values")
    _check_keys(path, content, needed)
    return content


def _check_keys(path: Path, content: Mapping, needed: Sequence[str]) -> None:
    absent = [key for key in needed if content.get(key) is None]
    if absent:
        raise _damaged(path, f"it has no {', '.join(absent)}")


def _damaged(path: Path, what: str) -> ValueError:
    return ValueError(f"{path} is damaged: {what}. Convert it again, or download all of it.")
