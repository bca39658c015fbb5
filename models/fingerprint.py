"""A short name for a model's weights, to tell whether two models are the same."""

import hashlib

import torch

SAMPLED_WEIGHTS = 1024  # of every tensor


def fingerprint(module: torch.nn.Module | None) -> str | None:
    """Short hash of a model: of the names, shapes and evenly spaced values of all weights, quick at any size.

    None for no module, and for one whose weights are not at hand, as under sequential offload.
    """
    if module is None:
        return None
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            return None
        digest.update(f"{name.replace('_orig_mod.', '')}{tuple(tensor.shape)}".encode())
        values = tensor.detach()
        if type(values) is torch.Tensor:  # quantised ones may not have what follows
            values = values.flatten()
            values = values[:: max(1, values.numel() // SAMPLED_WEIGHTS)].float().cpu()
            digest.update(values.numpy().tobytes())
    return digest.hexdigest()[:16]
