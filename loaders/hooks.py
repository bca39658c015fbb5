"""What users hang on a pipeline's models, checked first: offloading needs an accelerator, a LoRA its modules.

diffusers and accelerate do the work; the checks turn what would be a late, a foreign or no error into one that says
what to do.
"""

from os import PathLike

import torch

from . import adapters, lora_files


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
        """A LoRA for the transformer, under the names of diffusers, PEFT, ComfyUI or kohya's trainers.

        All that the file holds is applied. Alphas are those of its keys, of its header, or of an `adapter_config.json`
        beside it; without any the scale is 1.

        Args:
            kwargs: diffusers' own, such as `weight_name`, `subfolder`, `hotswap`.

        Raises:
            ValueError: keys are of an unknown kind, for modules that this transformer does not have, half of a pair,
                of other shapes, or changes that only a merge can apply. Nothing of it is loaded then.
        """
        source = pretrained_model_name_or_path_or_dict
        if self.transformer is None:
            raise ValueError("`load_lora_weights` needs a transformer; this pipeline has none.")
        file = lora_files.fetch(source, **kwargs)
        if file.tensors and all("." not in key for key in file.tensors):  # names no module: diffusers warns or raises
            return super().load_lora_weights(source, adapter_name=adapter_name, **kwargs)
        shapes = _parameter_shapes(self.transformer)
        adapter = adapters.open_adapter(
            file.tensors,
            lambda keys: {key: file.tensors[key] for key in keys},
            shapes,
            name=file.name,
            config=file.config,
        )
        converted = adapters.for_diffusers(adapter, file.tensors, shapes, name=file.name)
        if not converted:
            return
        # The config in a file of diffusers' own layout, with its alphas, is kept by diffusers itself.
        is_own = file.is_config_in_file and converted.keys() == file.tensors.keys()
        super().load_lora_weights(source if is_own else converted, adapter_name=adapter_name, **kwargs)


def _check_accelerator(method: str, device: torch.device | str | None) -> None:
    present = torch.accelerator.current_accelerator()
    wanted = present if device is None else torch.device(device)
    if present is None or wanted is None or wanted.type != present.type:
        here = "This machine has none" if present is None else f"This machine's is {present.type!r}"
        asked = "" if device is None else f" `device` is {str(device)!r}."
        raise ValueError(
            f"`{method}` moves models between the CPU and an accelerator.{asked} {here}. Without it everything runs "
            "where it is; `pipe.to(...)` moves it."
        )


def _parameter_shapes(transformer: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes by parameter, as in a transformer that is neither compiled, quantised nor adapted."""
    transformer = getattr(transformer, "_orig_mod", transformer)  # what `torch.compile(model)` wraps
    named = [(name, tuple(tensor.shape)) for name, tensor in transformer.named_parameters()]
    for name, module in transformer.named_modules():  # a quantised weight may have another shape
        if hasattr(module, "in_features") and hasattr(module, "out_features"):
            named.append((f"{name}.weight", (module.out_features, module.in_features)))
    return {name.replace(".base_layer.", "."): shape for name, shape in named if ".lora_" not in name}
