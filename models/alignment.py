"""Alignment of weights in the CPU's memory, on which the last bits of its matrix products depend.

Loaded weights keep the alignment that they have in their file, new ones are aligned to 64 bytes, and the CPU's kernels
sum in an order that depends on it. With all of them aligned to 64 bytes, the same weights give the same video bit for
bit, wherever they came from.
"""

import threading
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

ALIGNMENT = 64  # bytes: torch's own, for what it allocates


@dataclass(eq=False)
class _Moved:
    """A weight that lies elsewhere while it has users."""

    tensor: torch.Tensor
    original: torch.Tensor  # where it lay
    num_users: int = 0


_moved: dict[int, _Moved] = {}  # by the weight's id; pipelines share models, and threads a pipeline
_lock = threading.RLock()


def align_weights(model: torch.nn.Module) -> None:
    """Copies CPU weights that are not aligned to 64 bytes to memory that is, in place."""
    for tensor in _plain_weights(model):
        if tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()


def align_weights_for(
    user: object, models: Iterable[torch.nn.Module | None], own: Sequence[torch.nn.Module] = ()
) -> None:
    """Aligns weights until `user` is garbage collected, then moves them back: their owner gets the bits of before.

    Args:
        own: those of the models that have no other user; their weights stay aligned.
    """
    shared = []
    for model in models:
        if any(model is each for each in own):
            align_weights(model)
        elif model is not None:  # a compiled one has no truth value
            shared.append(model)
    moved = []
    with _lock:
        for tensor in (tensor for model in shared for tensor in _plain_weights(model)):
            if id(tensor) not in _moved and tensor.data_ptr() % ALIGNMENT:
                _moved[id(tensor)] = _Moved(tensor, tensor.data)
                tensor.data = tensor.data.clone()
            if id(tensor) in _moved:
                _moved[id(tensor)].num_users += 1
                moved.append(id(tensor))
    if moved:
        weakref.finalize(user, _put_back, moved).atexit = False


def _put_back(keys: list[int]) -> None:
    with _lock:
        for key in keys:
            weight = _moved[key]
            weight.num_users -= 1
            if weight.num_users == 0:
                del _moved[key]
                _restore(weight.tensor, weight.original)


def _restore(tensor: torch.Tensor, original: torch.Tensor) -> None:
    """Moves a weight back, with its changes since."""
    if (tensor.device, tensor.dtype, tensor.shape) == (original.device, original.dtype, original.shape):
        if not torch.equal(tensor.data, original):
            original.copy_(tensor.data)
        tensor.data = original


def _plain_weights(model: torch.nn.Module) -> list[torch.Tensor]:
    """Weights in the CPU's memory, except quantised ones, which keep their data elsewhere."""
    plain = (torch.Tensor, torch.nn.Parameter)
    return [
        each for each in (*model.parameters(), *model.buffers()) if type(each) in plain and each.device.type == "cpu"
    ]
