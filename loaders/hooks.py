"""What users hang on a pipeline's models, checked first: offloading needs an accelerator, a LoRA its modules.

diffusers and accelerate do the work; the checks turn what would be a late, a foreign or no error into one that says
what to do.
"""

from os import PathLike

import torch


class HooksMixin:
    """For a `DiffusionPipeline` with a `transformer`, rewards, and diffusers' LoRA loading."""

    def enable_model_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """One model at a time is on the accelerator. A chunk moves the transformer in and out once; the VAE stays.

        Raises:
            ValueError: there is no such accelerator.
        """
        _check_accelerator("enable_model_cpu_offload", device)
        super().enable_model_cpu_offload(gpu_id, device)
        self._offload_rewards(self._offload_device)

    def enable_sequential_cpu_offload(
        self, gpu_id: int | None = None, device: torch.device | str | None = None
    ) -> None:
        """One layer at a time is on the accelerator: every forward moves all weights.

        Raises:
            ValueError: there is no such accelerator.
        """
        _check_accelerator("enable_sequential_cpu_offload", device)
        super().enable_sequential_cpu_offload(gpu_id, device)
        self._offload_rewards(self._offload_device)

    def enable_group_offload(
        self,
        onload_device: torch.device | str,
        *args: object,
        exclude_modules: str | list[str] | None = None,
        **kwargs: object,
    ) -> None:
        """Groups of layers are on the accelerator by turns, with `use_stream=True` while others compute.

        Raises:
            ValueError: there is no such accelerator.
        """
        onload_device = torch.device(onload_device)
        if onload_device.type != "cpu":
            _check_accelerator("enable_group_offload", onload_device)
        excluded = [exclude_modules] if isinstance(exclude_modules, str) else exclude_modules or []
        excluded = [*excluded, *self._exclude_from_cpu_offload]
        super().enable_group_offload(onload_device, *args, exclude_modules=excluded, **kwargs)
        self._offload_rewards(onload_device)

    def _offload_rewards(self, device: torch.device) -> None:
        """Shipped rewards, which no hook is on, come whole for each of their calls and go back to the CPU."""
        for name in self._exclude_from_cpu_offload:
            reward = getattr(self, name)
            if hasattr(reward, "offload"):
                reward.offload(device)

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | PathLike | dict[str, torch.Tensor],
        adapter_name: str | None = None,
        **kwargs: object,
    ) -> None:
        """A LoRA for the transformer, in any layout that diffusers reads for Wan.

        Raises:
            ValueError: it is for modules that this transformer does not have, or has in other shapes. Nothing of it
                is loaded then.
        """
        source = pretrained_model_name_or_path_or_dict
        converted = self.lora_state_dict(source.copy() if isinstance(source, dict) else source, **kwargs)
        _check_lora(converted, self.transformer)
        super().load_lora_weights(source, adapter_name=adapter_name, **kwargs)


def _check_accelerator(method: str, device: torch.device | str | None) -> None:
    present = torch.accelerator.current_accelerator()
    wanted = present if device is None else torch.device(device)
    if present is None or wanted is None or wanted.type != present.type:
        here = "this machine has none" if present is None else f"this machine's is {present.type!r}"
        asked = "" if device is None else f" `device` is {str(device)!r};"
        raise ValueError(
            f"`{method}` moves models between the CPU and an accelerator.{asked} {here}. Without it everything runs "
            "where it is; `pipe.to(...)` moves it."
        )


def _check_lora(state_dict: dict[str, torch.Tensor], transformer: torch.nn.Module) -> None:
    transformer = getattr(transformer, "_orig_mod", transformer)  # what `torch.compile(model)` wraps
    modules = {f"transformer.{name}": module for name, module in transformer.named_modules()}
    unknown, misshapen = [], []
    for key, weight in state_dict.items():
        name, is_lora, kind = key.partition(".lora_")
        if not is_lora:
            continue  # diffusers says what it makes of these
        if name not in modules:
            unknown.append(name)
        elif kind.startswith(("A.", "B.")) and kind.endswith("weight"):
            side, axis = ("in_features", 1) if kind[0] == "A" else ("out_features", 0)
            wanted = getattr(modules[name], side, None)
            if wanted is not None and weight.ndim == 2 and weight.shape[axis] != wanted:
                misshapen.append(f"{name} has {wanted} {side}, the LoRA {weight.shape[axis]}")
    for problem, which in (("has no module for", unknown), ("has other shapes than", misshapen)):
        if which:
            first = "; ".join(sorted(set(which))[:3])
            raise ValueError(
                f"The transformer {problem} {len(set(which))} of this LoRA's modules: {first}. It is for another "
                "model, or in a layout that diffusers does not know."
            )
