"""What a run will cost, before it: work, operations, and bytes by part."""

import math
from dataclasses import dataclass, replace
from typing import Protocol

from . import memory_sinking, plan

GIB, TERA = 2**30, 1e12


@dataclass(frozen=True)
class RunEstimate:
    """What a run does, when no candidate is lost and, of what rewards decide, the dearest happens.

    That is: every chunk that leaves the window becomes a sink while there is room, and the kept beams share nothing.
    """

    num_chunks: int
    forwards: int  # of chunks, while denoising; a batch of 3 counts 3
    clean_passes: int  # of chunks, that commit them to memory
    latents_decoded: int  # latent frames
    frames_scored: int  # that rewards read
    flops: dict[str, int]  # by stage: products of matrices of the transformer and the VAE
    always_bytes: dict[str, int]  # by part, there from beginning to end: weights, memory, videos
    stage_bytes: dict[str, int]  # what each stage holds besides

    @property
    def total_flops(self) -> int:
        return sum(self.flops.values())

    @property
    def peak_bytes(self) -> int:
        return sum(self.always_bytes.values()) + max(self.stage_bytes.values())

    def __str__(self) -> str:
        work = f"{self.num_chunks} chunks: {self.forwards} forwards, {self.clean_passes} clean passes, "
        work += f"{self.latents_decoded} latents decoded, {self.frames_scored} frames scored"
        lines = [work, f"{self.total_flops / TERA:.4g} TFLOP"]
        lines += [f"  {stage}: {flops / TERA:.4g}" for stage, flops in self.flops.items()]
        lines += [f"{self.peak_bytes / GIB:.4g} GiB at most"]
        lines += [f"  {part}: {size / GIB:.4g}" for part, size in self.always_bytes.items()]
        lines += [f"  while {stage}: {size / GIB:.4g}" for stage, size in self.stage_bytes.items()]
        return "\n".join(lines)


@dataclass(frozen=True)
class _Remembered:
    """A chunk of a memory that holds nothing, for a policy to route."""

    index: int
    num_frames: int
    start_frame: int
    is_average: bool = False  # averages are kept in float32

    def average(self, evicted: "_Remembered", decay: float) -> "_Remembered":
        return replace(self, is_average=True)


class Costs(Protocol):
    """What models cost: `ModelCosts` of the pipeline's."""

    chunk_bytes: int  # of a chunk's keys and values
    text_bytes: int  # of a prompt's
    itemsize: int  # of the numbers in them

    def forward_flops(self, batch_size: int, context_chunks: int, fills_prompt: bool = False) -> int: ...

    def forward_bytes(self, batch_size: int, context_chunks: int) -> int: ...

    def decode_flops(self, is_first: bool) -> int: ...

    def decode_bytes(self, batch_size: int, num_states: int) -> int: ...


@dataclass(frozen=True)
class MemorySize:
    """How much one beam remembers at a chunk."""

    context_chunks: int  # that the chunk's forwards read
    held_chunks: int  # just after the chunk is committed, before any leaves
    held_averages: int  # how many of them are averages


def estimate_run(
    search_plan: "plan.SearchPlan", costs: Costs, weights: dict[str, int], chunk_frames: tuple[int, int]
) -> RunEstimate:
    """Of one prompt's search.

    Args:
        weights: bytes by component.
        chunk_frames: pixel frames of a video's first chunk and of a later one.
    """
    settings, num_chunks = search_plan.settings, search_plan.num_chunks
    num_beams, per_beam = settings.num_beams, settings.num_candidates
    candidates = num_beams * per_beam  # all in one batch at chunk 0, then a batch for each beam
    sizes = memory_sizes(search_plan)
    decoded = candidates if search_plan.decodes_all else num_beams if search_plan.has_pixels else 0
    frames = [chunk_frames[min(index, 1)] for index in range(num_chunks)]
    windows = [sum(frames[max(index + 1 - settings.reward_window, 0) : index + 1]) for index in range(num_chunks)]
    scored = [candidates * size for size in frames] if search_plan.image_reward is not None else [0] * num_chunks
    if search_plan.video_reward is not None:
        scored = [done + candidates * size for done, size in zip(scored, windows, strict=True)]

    flops = {"denoise": 0, "clean_pass": 0, "decode": 0}
    for index, size in enumerate(sizes):
        parents, batch = (1, candidates) if index == 0 else (num_beams, per_beam)
        one = costs.forward_flops(batch, size.context_chunks)
        flops["denoise"] += search_plan.num_steps * parents * one
        if index == 0:
            flops["denoise"] += costs.forward_flops(batch, 0, fills_prompt=True) - one
        if index < num_chunks - 1:
            flops["clean_pass"] += num_beams * costs.forward_flops(1, size.context_chunks)
        if decoded:
            flops["decode"] += decoded * costs.decode_flops(index == 0)

    height, width = search_plan.size
    picture = 3 * height * width if search_plan.has_pixels else 0
    latents = 4 * math.prod(search_plan.latent_shape)  # float32
    averages = costs.chunk_bytes * 4 // costs.itemsize
    held = max(s.held_averages * averages + (s.held_chunks - s.held_averages) * costs.chunk_bytes for s in sizes)
    context = max(size.context_chunks for size in sizes)
    states = (
        num_beams if decoded else 0,
        decoded + 1 if decoded else 0,
    )  # of kept beams; while candidates are decoded
    made = candidates * (2 * latents + picture * chunk_frames[1])  # candidates: noise, latents, pixels
    stages = {
        "denoise": max(
            costs.forward_bytes(per_beam, context) + search_plan.num_steps * per_beam * latents,
            costs.forward_bytes(candidates, 0) + search_plan.num_steps * candidates * latents,
        )
        + costs.decode_bytes(0, states[0]),
        "clean_pass": costs.forward_bytes(1, context) + costs.decode_bytes(0, states[0]),
    }
    if decoded:
        kept_context = costs.chunk_bytes * context if num_beams == 1 else 0
        stages["decode"] = costs.decode_bytes(decoded, states[1]) + kept_context
    if any(scored):
        clips = candidates * max(windows if search_plan.video_reward is not None else frames) * picture
        stages["reward"] = costs.decode_bytes(0, states[1]) + 5 * clips  # 8 bits, and float32 for the reward
    if search_plan.monitors:
        stages["monitor"] = costs.decode_bytes(0, states[0]) + 5 * num_beams * max(windows) * picture
    if search_plan.video_reward is not None and settings.final_selection == "video_reward":
        stages["final selection"] = 5 * num_beams * sum(frames) * picture
    if picture:
        stages["output"] = 9 * settings.num_videos_per_prompt * sum(frames) * picture  # 8 bits, and float32 twice
    return RunEstimate(
        num_chunks=num_chunks,
        forwards=num_chunks * candidates * search_plan.num_steps,
        clean_passes=(num_chunks - 1) * num_beams,
        latents_decoded=num_chunks * decoded * search_plan.latent_shape[1],
        frames_scored=sum(scored),
        flops={stage: count for stage, count in flops.items() if count},
        always_bytes={
            **{f"weights of {name}": size for name, size in weights.items()},
            "memory": num_beams * held + costs.text_bytes,
            "videos": num_beams * (num_chunks * latents + sum(frames) * picture),
        },
        stage_bytes={stage: size + made for stage, size in stages.items()},
    )


def memory_sizes(search_plan: "plan.SearchPlan") -> list[MemorySize]:
    """Of every chunk, when all that leave the window are routed to become sinks."""
    frames, sizes = search_plan.latent_shape[1], []
    sinks: tuple[_Remembered, ...] = ()
    window: tuple[_Remembered, ...] = ()
    for index in range(search_plan.num_chunks):
        chunk, context = _Remembered(index, frames, index * frames), len(sinks) + len(window)
        if index * frames < search_plan.sink_frames:
            sinks = (*sinks, chunk)
        else:
            window = (*window, chunk)
        held = (*sinks, *window)
        sizes.append(MemorySize(context, len(held), sum(each.is_average for each in held)))
        while (len(window) + 1) * frames > search_plan.rolling_frames and window:
            oldest, *rest = window
            sinks, window = search_plan.policy.evict(sinks, oldest, memory_sinking.Route.APPEND), tuple(rest)
    return sizes
