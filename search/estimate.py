"""What a run will cost, before it: work, operations, and bytes by part."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from . import choice, memory_sinking, noise_propagation, plan

GIB, TERA = 2**30, 1e12


@dataclass(frozen=True)
class RunEstimate:
    """What a run does, when no candidate is lost and, of what rewards decide, the most expensive happens.

    That is: a search does the most it may, every chunk that leaves the window becomes a sink while there is room, and
    the kept beams share nothing.
    """

    num_chunks: int
    least_forwards: int  # `forwards`, if the search does the least it may
    forwards: int  # of chunks, while denoising; a batch of 3 counts 3
    clean_passes: int  # of chunks, that commit them to memory
    recached_chunks: int  # of chunks, that remember the past under a new prompt
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
        least = "" if self.least_forwards == self.forwards else f"{self.least_forwards} to "
        work = f"{self.num_chunks} chunks: {least}{self.forwards} forwards, {self.clean_passes} clean passes, "
        work += f"{self.recached_chunks} chunks recached, " if self.recached_chunks else ""
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


class EncodeCost(Protocol):
    """What encoding costs, latent frame by latent frame."""

    first_flops: int
    later_flops: int
    bytes: int


class Costs(Protocol):
    """What models cost: `ModelCosts` of the pipeline's."""

    frame_bytes: int  # of a latent frame's keys and values
    text_bytes: int  # of a prompt's
    itemsize: int  # of the numbers in them

    def forward_flops(
        self,
        batch_size: int,
        num_frames: int,
        context_frames: int,
        *,
        fills_prompt: bool = False,
        times_tokens: bool = False,
    ) -> int: ...

    def forward_bytes(self, batch_size: int, num_frames: int, context_frames: int) -> int: ...

    def encode_cost(self, size: tuple[int, int]) -> EncodeCost: ...

    def decode_flops(self, is_first: bool) -> int: ...

    def decode_bytes(self, batch_size: int, num_states: int) -> int: ...


@dataclass(frozen=True)
class _Recached:
    """A memory after a change of the prompt, and the clean pass that makes it."""

    sinks: tuple[_Remembered, ...]
    window: tuple[_Remembered, ...]
    pass_chunks: int = 0  # that go through the pass
    pass_frames: int = 0  # latent frames of these
    context_frames: int = 0  # that it reads besides
    new_frames: int = 0  # of the memory that the pass made


@dataclass(frozen=True)
class MemorySize:
    """How many latent frames one beam remembers at a chunk."""

    context_frames: int  # that the chunk's forwards read
    held_frames: int  # just after the chunk is committed, before any leaves
    held_averages: int  # how many of them are averages
    recached: "_Recached | None" = None  # what a new prompt makes of the memory before


@dataclass(frozen=True)
class Batch:
    """Candidates that are denoised together."""

    candidates: int
    num_steps: int
    num_frames: int  # latent frames of each
    context_frames: int  # that they read

    @property
    def forwards(self) -> int:
        return self.candidates * self.num_steps


@dataclass(frozen=True)
class ChunkLoad:
    """What one chunk does, and beside how much memory."""

    index: int
    num_parents: int
    num_kept: int
    clean_passes: int
    batches: tuple[Batch, ...]
    num_scored: int  # predictions and finished candidates
    num_rolled: tuple[tuple[int, int], ...]  # roll-outs' predictions: the chunk that they are of, and how many
    recaches: "tuple[tuple[_Recached, int, int], ...]"  # each with its number of beams, and of prompts that are read
    size: MemorySize
    latent_frames: int  # of the chunk
    new_frames: int  # its pixel frames
    window_frames: int  # and of the video reward's window

    @property
    def forwards(self) -> int:
        return sum(batch.forwards for batch in self.batches)

    @property
    def recached_chunks(self) -> int:
        return sum(number * again.pass_chunks for again, number, _ in self.recaches)


def chunk_loads(search_plan: "plan.SearchPlan", pixel_frames: tuple[int, int]) -> tuple[list[ChunkLoad], int]:
    """Every chunk at its most expensive, and the fewest forwards that all of them may take.

    Raises:
        ValueError: the search does not say what it does.
    """
    search, num_chunks, num_parents = search_plan.search, search_plan.num_chunks, 1
    loads, least_forwards, sizes = [], 0, memory_sizes(search_plan)
    lengths = [(search_plan.num_latents(index), size.context_frames) for index, size in enumerate(sizes)]
    for index, size in enumerate(sizes):
        if index < search_plan.num_given_chunks:
            least = most = choice.SearchWork((), kept=1)
        else:
            ends = None if search_plan.is_endless else num_chunks
            least, most = choice.search_work(search, index, num_parents, ends)
        made = [each for each in most.passes if _num_steps(each, search_plan.num_steps)]
        load = ChunkLoad(
            index,
            num_parents,
            num_kept=most.kept,
            clean_passes=most.more_clean_passes + (0 if search_plan.is_last(index) else most.kept),
            batches=_batches(most, num_parents, search_plan.num_steps, lengths[index:]),
            num_scored=sum(each.candidates for each in made if each.ahead == 0) if most.passes else 1,
            num_rolled=tuple((index + each.ahead, each.candidates) for each in made if each.ahead > 0),
            recaches=_recaches(sizes, index, num_parents, made),
            size=size,
            latent_frames=search_plan.num_latents(index),
            new_frames=pixel_frames[min(index, 1)],
            window_frames=_window_frames(search_plan, pixel_frames, index),
        )
        loads.append(load)
        least_batches = _batches(least, num_parents, search_plan.num_steps, lengths[index:])
        least_forwards += sum(batch.forwards for batch in least_batches)
        num_parents = most.kept
    return loads, least_forwards


def _window_frames(search_plan: "plan.SearchPlan", pixel_frames: tuple[int, int], index: int) -> int:
    first = max(index + 1 - search_plan.request.reward_window, search_plan.scripts[0].stretch_begin(index))
    return sum(pixel_frames[min(each, 1)] for each in range(first, index + 1))


def _recaches(
    sizes: "list[MemorySize]", index: int, num_parents: int, made: "list[choice.SearchPass]"
) -> "tuple[tuple[_Recached, int, int], ...]":
    """What is remembered again, by the beams and by the roll-outs of a chunk, each of which reads its own prompt."""
    rolled = [(sizes[index + each.ahead].recached, each.candidates, each.candidates) for each in made if each.ahead]
    found = [(sizes[index].recached, num_parents, 1), *rolled]
    return tuple(each for each in found if each[0] is not None)


def _batches(
    work: "choice.SearchWork", num_parents: int, num_steps: int, lengths: Sequence[tuple[int, int]]
) -> tuple[Batch, ...]:
    """What is denoised together; `lengths` has the frames of this chunk and later ones, and those that they read."""
    batches = []
    for each in work.passes:
        steps, own = _num_steps(each, num_steps), lengths[min(each.ahead, len(lengths) - 1)]
        for share in noise_propagation.split_evenly(each.candidates, num_parents):
            size = 1 if each.ahead else work.batch or max(share, 1)
            whole, rest = divmod(share, size)
            batches += [Batch(number, steps, *own) for number in [size] * whole + [rest] * (rest > 0)]
    return tuple(batch for batch in batches if batch.num_steps)


def _num_steps(search_pass: "choice.SearchPass", num_steps: int) -> int:
    return (num_steps if search_pass.until is None else search_pass.until) - search_pass.first


def estimate_run(
    search_plan: "plan.SearchPlan", costs: Costs, weights: dict[str, int], pixel_frames: tuple[int, int]
) -> RunEstimate:
    """What one prompt's search does and needs.

    Args:
        weights: bytes by component.
        pixel_frames: of a video's first chunk and of a later one.

    Raises:
        ValueError: the search does not say what it does.
    """
    loads, least_forwards = chunk_loads(search_plan, pixel_frames)
    num_beams, num_chunks = max(load.num_kept for load in loads), search_plan.num_chunks
    decoded = [_num_decoded(search_plan, load) for load in loads]
    scored = sum(_frames_read(search_plan, load, pixel_frames) for load in loads)
    height, width = search_plan.size
    picture = 3 * height * width if search_plan.has_pixels else 0
    num_channels, chunk_frames, *latent_size = search_plan.latent_shape
    latents = 4 * num_channels * math.prod(latent_size)  # of a latent frame, in float32
    averages = costs.frame_bytes * 4 // costs.itemsize
    sizes = [load.size for load in loads]
    held = max(s.held_averages * averages + (s.held_frames - s.held_averages) * costs.frame_bytes for s in sizes)
    # Beams of chunks to which the search may go back: what has left since, and sinks as they were.
    older = chunk_frames * costs.frame_bytes + max(size.held_averages for size in sizes) * averages
    older *= search_plan.depth
    stages: dict[str, int] = {}
    for load in loads:
        for stage, size in _stage_bytes(search_plan, costs, load, latents * load.latent_frames, picture).items():
            stages[stage] = max(size, stages.get(stage, 0))
    num_pixels = picture * sum(load.new_frames for load in loads)
    if search_plan.video_reward is not None and search_plan.request.final_selection == "video_reward":
        stages["final selection"] = 5 * num_beams * num_pixels
    if picture:
        stages["output"] = 9 * search_plan.request.num_videos_per_prompt * num_pixels  # 8 bits, and float32 twice
    flops = _flops(search_plan, costs, loads, decoded)
    past, given = search_plan.past, {}
    if past is not None and past.latents is None:
        encode = costs.encode_cost(search_plan.size)
        flops = {"encode": encode.first_flops + (past.num_latents - 1) * encode.later_flops, **flops}
        stages["encode"], given = encode.bytes, {"given frames": past.frames.nbytes}
    return RunEstimate(
        num_chunks=num_chunks,
        least_forwards=least_forwards,
        forwards=sum(load.forwards for load in loads),
        clean_passes=sum(load.clean_passes for load in loads),
        recached_chunks=sum(load.recached_chunks for load in loads),
        latents_decoded=sum(_latents_decoded(search_plan, load) for load in loads),
        frames_scored=scored,
        flops={stage: count for stage, count in flops.items() if count},
        always_bytes={
            **{f"weights of {name}": size for name, size in weights.items()},
            **given,
            "memory": num_beams * (held + older) + costs.text_bytes * (2 if any(s.recached for s in sizes) else 1),
            "videos": num_beams * (search_plan.first_frame(num_chunks) * latents + num_pixels),
        },
        stage_bytes=stages,
    )


def _num_decoded(search_plan: "plan.SearchPlan", load: ChunkLoad) -> int:
    if search_plan.is_seen:
        return load.num_scored + sum(number for _, number in load.num_rolled)
    return load.num_kept if search_plan.has_pixels else 0


def _latents_decoded(search_plan: "plan.SearchPlan", load: ChunkLoad) -> int:
    num_rolled = sum(number for _, number in load.num_rolled) if search_plan.is_seen else 0
    num_own = _num_decoded(search_plan, load) - num_rolled
    return num_own * load.latent_frames + num_rolled * search_plan.latent_shape[1]  # a later chunk's


def _frames_read(search_plan: "plan.SearchPlan", load: ChunkLoad, pixel_frames: tuple[int, int]) -> int:
    """Frames that the rewards read."""
    num_read = 0
    for index, number in ((load.index, load.num_scored), *load.num_rolled):
        image = 0 if search_plan.image_reward is None else pixel_frames[min(index, 1)]
        window = 0 if search_plan.video_reward is None else _window_frames(search_plan, pixel_frames, index)
        num_read += number * (image + window)
    return num_read


def _flops(search_plan: "plan.SearchPlan", costs: Costs, loads: list[ChunkLoad], decoded: list[int]) -> dict[str, int]:
    flops = {"denoise": 0, "clean_pass": 0, "recache": 0, "decode": 0}
    reading = costs.forward_flops(1, 1, 0, fills_prompt=True) - costs.forward_flops(1, 1, 0)
    for load, num_decoded in zip(loads, decoded, strict=True):
        for batch in load.batches:
            is_clamped = search_plan.is_clamped and load.index == 0 and batch.context_frames == 0
            forward = (batch.candidates, batch.num_frames, batch.context_frames)
            flops["denoise"] += batch.num_steps * costs.forward_flops(*forward, times_tokens=is_clamped)
        if load.index == 0:  # the very first forward reads the prompt
            flops["denoise" if load.batches else "clean_pass"] += reading
        for again, number, num_prompts in load.recaches:
            reads_it = "denoise" if load.batches else "clean_pass"
            flops["recache" if again.pass_chunks else reads_it] += num_prompts * reading
            if again.pass_chunks:
                flops["recache"] += number * costs.forward_flops(1, again.pass_frames, again.context_frames)
        flops["clean_pass"] += load.clean_passes * costs.forward_flops(1, load.latent_frames, load.size.context_frames)
        if num_decoded:
            num_rolled = num_decoded - load.num_scored if load.num_rolled else 0
            flops["decode"] += (num_decoded - num_rolled) * costs.decode_flops(load.index == 0)
            flops["decode"] += num_rolled * costs.decode_flops(False)
    return flops


def _stage_bytes(
    search_plan: "plan.SearchPlan", costs: Costs, load: ChunkLoad, latents: int, picture: int
) -> dict[str, int]:
    """Of one chunk, beside what is always there.

    Every parent has a context from its first forward to its last clean pass, and a decoder state until the search has
    chosen.
    """
    context, num_decoded = load.size.context_frames, _num_decoded(search_plan, load)
    older = min(search_plan.depth, load.index - 1)
    parent_states = 0 if load.index == 0 or not search_plan.has_pixels else load.num_parents * (1 + older)
    all_states = parent_states + num_decoded if num_decoded else 0
    kept_states = (load.num_kept + load.num_parents * min(search_plan.depth, load.index)) if num_decoded else 0
    batch, num_steps = max((batch.candidates for batch in load.batches), default=0), search_plan.num_steps
    # A roll-out remembers its candidate, and reads that as well.
    rolled = 0
    if load.num_rolled:
        most_read = max(batch.context_frames for batch in load.batches)
        rolled = (2 * search_plan.latent_shape[1] + most_read) * costs.frame_bytes
    other_contexts = (load.num_parents - 1) * context * costs.frame_bytes + rolled
    contexts = load.num_parents * context * costs.frame_bytes + rolled
    # Candidates: their noise, that of later steps too, their latents and pixels.
    made = load.num_scored * ((num_steps + 1 if load.batches else 1) * latents + picture * load.new_frames)
    # In a forward: its inputs, the noise that comes after it, and sums in float64.
    working = 6 * batch * latents
    stages = {}
    if load.batches:
        forward = costs.forward_bytes(batch, load.latent_frames, context) + other_contexts
        stages["denoise"] = forward + working + costs.decode_bytes(0, parent_states)
    clean_pass = costs.forward_bytes(1, load.latent_frames, context) + other_contexts
    stages["clean_pass"] = clean_pass + costs.decode_bytes(0, kept_states)
    if num_decoded:
        stages["decode"] = costs.decode_bytes(max(batch, 1), all_states) + contexts
    if search_plan.has_reward:
        window = load.new_frames if search_plan.video_reward is None else load.window_frames
        clips = load.num_scored * window * picture
        stages["reward"] = costs.decode_bytes(0, all_states) + contexts + 5 * clips  # 8 bits, and float32 too
    if search_plan.monitors:
        clips = load.num_kept * load.window_frames * picture
        stages["monitor"] = costs.decode_bytes(0, kept_states) + contexts + 5 * clips
    again = load.size.recached
    if again is None:
        return {stage: size + made for stage, size in stages.items()}
    # The memories of before the change are there until the chunk is done.
    new = load.num_parents * again.new_frames * costs.frame_bytes
    if again.pass_chunks:
        one_pass = costs.forward_bytes(1, again.pass_frames, again.context_frames)
        recorded = again.pass_frames * (costs.frame_bytes + latents // load.latent_frames)
        stages["recache"] = one_pass + recorded + costs.decode_bytes(0, parent_states)
    return {stage: size + made + new for stage, size in stages.items()}


def memory_sizes(search_plan: "plan.SearchPlan") -> list[MemorySize]:
    """Of every chunk, when all that leave the window are routed to become sinks."""
    sizes, script = [], search_plan.scripts[0]
    changing = script.changing_chunks(search_plan.num_chunks)
    sinks: tuple[_Remembered, ...] = ()
    window: tuple[_Remembered, ...] = ()
    for index in range(search_plan.num_chunks):
        again = _recached(search_plan, index, sinks, window) if index in changing else None
        if again is not None:
            sinks, window = again.sinks, again.window
        chunk = _Remembered(index, search_plan.num_latents(index), search_plan.first_frame(index))
        context = _num_frames((*sinks, *window))
        if chunk.start_frame < search_plan.sink_frames:
            sinks = (*sinks, chunk)
        else:
            window = (*window, chunk)
        held = (*sinks, *window)
        averages = _num_frames([each for each in held if each.is_average])
        sizes.append(MemorySize(context, _num_frames(held), averages, again))
        while _num_frames(window) + search_plan.num_latents(index + 1) > search_plan.rolling_frames and window:
            oldest, *rest = window
            is_new = script.stretch_begin(oldest.index) == oldest.index  # and so has nothing to be compared with
            route = memory_sinking.Route.DISCARD if is_new else memory_sinking.Route.APPEND
            sinks, window = search_plan.policy.evict(sinks, oldest, route), tuple(rest)
    return sizes


def _num_frames(remembered: "Sequence[_Remembered]") -> int:
    return sum(each.num_frames for each in remembered)


def _recached(
    search_plan: "plan.SearchPlan", index: int, sinks: tuple[_Remembered, ...], window: tuple[_Remembered, ...]
) -> _Recached:
    """What becomes of a memory when the prompt changes at a chunk, as the steps of a chunk do it."""
    mode, num_before = search_plan.recache, search_plan.first_frame(index)
    if mode == "flush":
        room = search_plan.window_frames - search_plan.num_latents(index) - _num_frames(sinks)
        while _num_frames(window) > max(room, 0):
            window = window[1:]
    is_all = mode == "all" or num_before <= search_plan.window_frames
    if mode in ("none", "flush") or not (window or (is_all and search_plan.sink_frames)):
        return _Recached(sinks, window)
    most = search_plan.window_frames if is_all else search_plan.rolling_frames
    chunks = [_Remembered(each, search_plan.num_latents(each), search_plan.first_frame(each)) for each in range(index)]
    while _num_frames(chunks) > most:
        del chunks[0]
    if not is_all:
        return _Recached(sinks, window, len(chunks), _num_frames(chunks), _num_frames(sinks), _num_frames(window))
    begin = chunks[0].start_frame
    sinks = tuple(each for each in chunks if each.start_frame - begin < search_plan.sink_frames)
    new_frames = _num_frames((*sinks, *window))
    return _Recached(sinks, window, len(chunks), _num_frames(chunks), 0, new_frames)
