"""PEFT's config of an adapter: where it is kept, and the scale that it gives each low-rank pair."""

import json
import math
import re
from collections.abc import Mapping

CONFIG_NAME = "adapter_config.json"  # of PEFT, beside the weights
METADATA_KEY = "lora_adapter_metadata"  # of diffusers, in the header of a safetensors file
# Settings of PEFT under which a pair means something other than scale * B A over the model's own weight.
UNKNOWN_SETTINGS = ("use_dora", "fan_in_fan_out", "layer_replication", "use_qalora", "alora_invocation_tokens")
CHANGED_BASE = ("pissa", "olora", "corda", "loftq")  # initialisations that subtract the pair from the weight


def file_config(
    metadata: Mapping[str, str] | None, folder_config: Mapping[str, object] | None, *, name: str
) -> Mapping[str, object]:
    """PEFT's config of an adapter: the one that diffusers wrote into the file's header, else the one beside the file.

    Args:
        metadata: of a safetensors file.
        folder_config: content of `CONFIG_NAME`.
        name: of the file, for messages.

    Raises:
        ValueError: the one in the header is damaged.
    """
    if not metadata or METADATA_KEY not in metadata:
        return folder_config or {}
    try:
        return transformer_config(json.loads(metadata[METADATA_KEY]))
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{name} has a damaged {METADATA_KEY} in its header: {error}.") from error


def transformer_config(metadata: Mapping[str, object]) -> dict[str, object]:
    """Entries of diffusers' adapter metadata that belong to the transformer."""
    prefix = "transformer."
    return {key.removeprefix(prefix): value for key, value in metadata.items() if key.startswith(prefix)}


class Scaling:
    """Scales of an adapter's pairs, from every source of an alpha: the file's keys, its config, the caller.

    Args:
        name: of the file, for messages.
        alpha: the caller's, or None.
        config: PEFT's.

    Raises:
        ValueError: the config has settings that are unknown here, or an invalid alpha.
    """

    def __init__(self, name: str, alpha: float | None, config: Mapping[str, object]) -> None:
        self.name, self.alpha = name, alpha
        peft_type, init = config.get("peft_type") or "LORA", config.get("init_lora_weights")
        unknown = [setting for setting in UNKNOWN_SETTINGS if config.get(setting)]
        if peft_type != "LORA":
            unknown.append(f"peft_type={peft_type}")
        if isinstance(init, str) and init.lower().startswith(CHANGED_BASE):
            unknown.append(f"init_lora_weights={init}")
        if unknown:
            raise ValueError(
                f"{name} has a config with {len(unknown)} settings that are unknown here: {', '.join(unknown)}."
            )
        self.by_root = bool(config.get("use_rslora"))
        self.rank = None if config.get("rank_pattern") else config.get("r")
        self.of_config = config.get("lora_alpha")
        self.patterns = config.get("alpha_pattern") or {}
        if not isinstance(self.patterns, dict):
            raise ValueError(
                f"{name} has a config whose alpha_pattern is {self.patterns!r}; it must map names to alphas."
            )
        for value in (*([] if self.of_config is None else [self.of_config]), *self.patterns.values()):
            self._check(value, "its config")

    def scale(self, module: str, names: tuple[str, ...], rank: int, in_file: float | None) -> float:
        """Returns alpha / rank, or alpha / sqrt(rank) with rsLoRA (Kalajdzievski 2023); alpha is the rank by default.

        Args:
            module: as the file names it, for messages.
            names: of the module, which the config's patterns are matched with.
            in_file: the alpha that the file has for this module.

        Raises:
            ValueError: the config is of another rank, or the sources of alpha contradict each other.
        """
        if in_file is not None:
            self._check(in_file, module)
        if self.rank not in (None, rank):
            raise ValueError(
                f"{self.name} has rank {rank} at {module}, and a config of rank {self.rank}: another file's."
            )
        named = {"its keys": in_file, "its config": self._of_config(names), "the argument": self.alpha}
        said = {source: value for source, value in named.items() if value is not None}
        if len(set(said.values())) > 1:
            raise ValueError(
                f"{self.name} has several alphas for {module}: "
                + ", ".join(f"{value:g} by {source}" for source, value in said.items())
                + ". Leave the argument out, or correct the file."
            )
        alpha = next(iter(said.values()), rank)
        return alpha / (math.sqrt(rank) if self.by_root else rank)

    def _of_config(self, names: tuple[str, ...]) -> float | None:
        """Returns the config's alpha; its patterns are regular expressions for the end of a module's name."""
        for pattern, value in self.patterns.items():
            try:
                if any(re.fullmatch(rf"(.*\.)?({pattern})", name) for name in names):
                    return float(value)
            except re.error as error:
                raise ValueError(f"{self.name} has a config with the alpha_pattern {pattern!r}: {error}.") from error
        return None if self.of_config is None else float(self.of_config)

    def _check(self, value: object, of: str) -> None:
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value) or value == 0:
            raise ValueError(f"{self.name} has the alpha {value!r} for {of}; it must be a finite number other than 0.")
