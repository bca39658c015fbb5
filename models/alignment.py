"""Alignment of weights in the CPU's memory, on which the last bits of its matrix products depend.

Loaded weights keep the alignment that they have in their file, new ones are aligned to 64 bytes, and the CPU's kernels
sum in an order that depends on it. With all of them aligned to 64 bytes, the same weights give the same video bit for
bit, wherever they came from.
"""

import torch

ALIGNMENT = 64  # bytes: torch's own, for what it allocates


def align_weights(model: torch.nn.Module) -> None:
    """Copies CPU weights that are not aligned to 64 bytes to memory that is, in place."""
    for tensor in (*model.parameters(), *model.buffers()):
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)  # a quantised one keeps its data elsewhere
        if is_plain and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
