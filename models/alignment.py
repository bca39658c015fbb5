"""Where weights lie in the CPU's memory, on which the last bits of its matrix products depend.

Weights that were loaded lie where they lay in their file, those that were made lie at multiples of 64 bytes, and the
CPU's kernels sum them in other orders. With all of them at such multiples, the same weights give the same video bit
for bit, wherever they came from.
"""

import torch

ALIGNMENT = 64  # bytes: torch's own, for what it allocates


def align_weights(model: torch.nn.Module) -> None:
    """Copies weights that do not lie at a multiple of 64 bytes of the CPU's memory to where they do, in place."""
    for tensor in (*model.parameters(), *model.buffers()):
        is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)  # a quantised one keeps its numbers elsewhere
        if is_plain and tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
