"""Measuring a run from outside: transformer calls and what they multiply, memory, the machine and its matrix rate.

`stream_t1.models.cost` says which operations are counted; the others are part of a measurement's distance from the
floor.
"""

import math
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from stream_t1 import CausalWanTransformer3DModel, StreamT1Pipeline
from stream_t1.models.cost import ForwardShape
from stream_t1.search.files import check_place

MATRIX_SIDES = {"cuda": (4096, 8192, 16384), "cpu": (512, 1024, 2048)}
MATRIX_SECONDS = 0.3  # for each of them, at least


def check_output(path: Path | None) -> None:
    """Exits where results could not be written, or would replace others, before anything is measured."""
    if path is not None:
        try:
            check_place(path)
        except OSError as error:
            raise SystemExit(f"`--output`: {error}") from error


@dataclass(frozen=True)
class ForwardCall(ForwardShape):
    """Input sizes and seconds of one call of the transformer."""

    is_clean_pass: bool
    seconds: float = 0.0  # on a GPU, of the launches alone


@dataclass
class ChunkRecord:
    """Measurements of one chunk, filled while the chunk is made."""

    calls: list[ForwardCall] = field(default_factory=list)
    is_pruned: bool = False
    peak_bytes: int = 0  # on a GPU allocated during this chunk, on the CPU resident so far
    state_bytes: int = 0  # decoder states of the kept candidates
    video_bytes: int = 0  # pixels and latents of the kept candidates


class ChunkMeter:
    """Hooks on the transformer, and a callback for a chunk's end. They neither synchronise nor change anything.

    A chunk begins with its first denoising forward, and so ends with the clean pass that commits it.
    """

    def __init__(self, transformer: CausalWanTransformer3DModel) -> None:
        self.transformer = transformer
        self.device, self.patch_latents = (
            transformer.device,
            math.prod(transformer.config.patch_size),
        )  # slow to ask for
        self.chunks: list[ChunkRecord] = []
        self._call: ForwardCall | None = None  # now running
        self._begin = 0.0

    @contextmanager
    def watching(self) -> Iterator[None]:
        hooks = [
            self.transformer.register_forward_pre_hook(self._before_forward, with_kwargs=True),
            self.transformer.register_forward_hook(self._after_forward),
        ]
        try:
            yield
            self._close_chunk()
        finally:
            for hook in hooks:
                hook.remove()

    def after_prune(self, pipe: StreamT1Pipeline, chunk_index: int, state: dict[str, list]) -> None:
        """Records the kept candidates' bytes; for `callback_on_chunk_end`."""
        chunk, kept = self.chunks[-1], [state["candidates"][index] for index in state["kept"]]
        chunk.is_pruned = True
        chunk.state_bytes = sum(c.decoder_state.num_bytes for c in kept if c.decoder_state is not None)
        chunk.video_bytes = sum(x.nbytes for c in kept for x in (c.frames, c.latents) if x is not None)

    def _before_forward(self, transformer: torch.nn.Module, args: tuple, kwargs: dict[str, object]) -> None:
        latents, context = kwargs["hidden_states"], kwargs["context"]
        is_clean_pass = context.record is not None
        if not is_clean_pass and (not self.chunks or self.chunks[-1].is_pruned):
            self._close_chunk()
            self.chunks.append(ChunkRecord())
        self._call = ForwardCall(
            is_clean_pass=is_clean_pass,
            batch_size=latents.shape[0],
            chunk_tokens=latents[0, 0].numel() // self.patch_latents,
            context_tokens=0 if context.key is None else context.key.shape[1],
            text_tokens=kwargs["encoder_hidden_states"].shape[1],
            fills_prompt=not context.prompt.is_filled,
        )
        self._begin = time.perf_counter()

    def _after_forward(self, transformer: torch.nn.Module, args: tuple, output: tuple) -> None:
        seconds = time.perf_counter() - self._begin
        self.chunks[-1].calls.append(replace(self._call, seconds=seconds))

    def _close_chunk(self) -> None:
        if self.chunks:
            self.chunks[-1].peak_bytes = peak_bytes(self.device)
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)


@contextmanager
def timed_forwards(model: torch.nn.Module) -> Iterator[list[float]]:
    """Gives a list that gets the seconds of every forward of the model."""
    seconds, forward = [], model.forward

    def timed(*arguments: object, **named: object) -> object:
        begin = time.perf_counter()
        output = forward(*arguments, **named)
        seconds.append(time.perf_counter() - begin)
        return output

    model.forward = timed
    try:
        yield seconds
    finally:
        del model.forward  # the class's own is behind it


def peak_bytes(device: torch.device) -> int:
    """The most that was allocated on a GPU since its statistics were reset, or resident on the CPU so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of the fastest of several large square matrix products."""
    return max(_product_rate(side, device, dtype) for side in MATRIX_SIDES[device.type])


def _product_rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    left, right = torch.randn((2, side, side), device=device, dtype=dtype)
    product = left @ right
    num_products, best_seconds = 3, math.inf
    end = time.perf_counter() + MATRIX_SECONDS
    while time.perf_counter() < end:
        _synchronize(device)
        begin = time.perf_counter()
        for _ in range(num_products):
            torch.matmul(left, right, out=product)
        _synchronize(device)
        best_seconds = min(best_seconds, (time.perf_counter() - begin) / num_products)
    return 2 * side**3 / best_seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> dict[str, str | int]:
    """Describes the kind of machine that ran this, and nothing that identifies it."""
    cpu_lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.split(":")[1].strip() for line in cpu_lines if line.startswith("model name")]
    described = {
        "cpu": names[0] if names else platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
    }
    if device.type == "cuda":
        gpu = torch.cuda.get_device_properties(device)
        described |= {"gpu": gpu.name, "gpu_memory_bytes": gpu.total_memory}
    return described


def commit() -> dict[str, str | bool] | None:
    """The commit of this clone and whether files differ from it; None outside a clone."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changes = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return {"hash": head, "dirty": bool(changes.strip())}
