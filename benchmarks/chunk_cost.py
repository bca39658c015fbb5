"""Cost of every chunk of a search: seconds by stage, work, memory, and the distance from the floor.

    python benchmarks/chunk_cost.py                      the demo model, on the CPU
    python benchmarks/chunk_cost.py --model wan-1.3b     full size, random weights, 480x832, on a GPU
    python benchmarks/chunk_cost.py --model wan-small    the same code at a reduced size, on any machine
    python benchmarks/chunk_cost.py --flatness           does chunk 120 cost what chunk 20 does?
    python benchmarks/chunk_cost.py --overhead           what plain streaming costs besides the model's forwards

Seconds and work are those of the search's own trace. The floor of a stage is its counted products of matrices over the
rate at which this machine multiplies large square matrices, in the same dtype, measured in the same run.
"""

import argparse
import json
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from diffusers import AutoencoderKLWan
from metering import ChunkMeter, ChunkRecord, check_output, commit, machine, matrix_rate, timed_forwards

from stream_t1 import CausalWanTransformer3DModel, FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.models.cost import decode_cost
from stream_t1.search import EMASink, RewardRoutedSink, SearchTrace, SlidingWindow, StaticSink
from stream_t1.search.files import new_file

STAGES = ("denoise", "clean_pass", "decode", "reward")
COUNTERS = ("forwards", "clean_passes", "latents_decoded", "frames_scored")
POLICIES = {
    "sliding": SlidingWindow(),
    "static": StaticSink(),
    "ema": EMASink(),
    "routed": RewardRoutedSink(),
    # every chunk is appended while there is room, then averaged: the largest context that routing can lead to
    "full": RewardRoutedSink(quality_threshold=-math.inf, transition_threshold=-math.inf),
}
PROMPT = "a red circle moving left on a white background"
TEXT_TOKENS = 512
SPANS = (range(15, 25), range(115, 125))  # chunks whose cost is compared
FLATNESS_RUNS = 4
OVERHEAD_RUNS = 5
GIB, MIB = 2**30, 2**20


@dataclass(frozen=True)
class RandomModel:
    """A model without a checkpoint: the cost of a chunk depends on shapes and dtype, not on weights."""

    transformer: dict[str, object]  # config, as is the next
    vae: dict[str, object]
    size: tuple[int, int]  # height and width in pixels
    dtype: torch.dtype


RANDOM_MODELS = {
    "wan-1.3b": RandomModel(
        {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, {}, (480, 832), torch.bfloat16
    ),
    "wan-small": RandomModel(
        {"num_attention_heads": 2, "attention_head_dim": 32, "ffn_dim": 256, "num_layers": 2, "text_dim": 64},
        {"base_dim": 8},
        (64, 96),
        torch.float32,  # a CPU without bfloat16 instructions takes 60 times as long for a bfloat16 product
    ),
    "toy": RandomModel(  # in the shape of the demo
        {"num_attention_heads": 3, "attention_head_dim": 32, "ffn_dim": 288, "num_layers": 6, "text_dim": 48}
        | {"freq_dim": 64, "in_channels": 8, "out_channels": 8},
        {"base_dim": 16, "z_dim": 8, "dim_mult": [1, 2, 2], "num_res_blocks": 1, "temperal_downsample": [True, True]}
        | {"in_channels": 12, "out_channels": 12, "patch_size": 2, "scale_factor_spatial": 8}
        | {"latents_mean": [0.0] * 8, "latents_std": [1.0] * 8},
        (64, 64),
        torch.float32,
    ),
}


@dataclass(frozen=True)
class ChunkCost:
    """One row of the table. Dicts are by stage, and hold the stages that have any."""

    chunk: int
    context_frames: int  # latent frames that a forward attends to, its own included; the most of any
    seconds: dict[str, float]
    flops: dict[str, int]  # counted, of the transformer and the decoder
    floor_seconds: dict[str, float]
    share_of_matrix_rate: dict[str, float]
    forwards: int
    clean_passes: int
    latents_decoded: int
    frames_scored: int
    peak_bytes: int  # on a GPU allocated during this chunk, on the CPU resident so far
    state_bytes: int  # decoder states of the kept candidates
    memory_bytes: int  # keys and values that the forwards of one beam read; the most of any
    video_bytes: int  # pixels and latents of the kept candidates


@dataclass(frozen=True, eq=False)
class Run:
    """One measured call."""

    records: list[ChunkRecord]
    trace: SearchTrace
    wall_seconds: float


class Bench:
    """A pipeline, a prompt, and the options of their runs."""

    def __init__(self, options: argparse.Namespace, device: torch.device) -> None:
        self.options, self.device = options, device
        self.pipe = _demo_pipeline() if options.model == "demo" else random_pipeline(options.model, device)
        self.pipe.set_progress_bar_config(disable=True)
        if options.vae_slicing:
            self.pipe.vae.enable_slicing()
        self.embeds = self._embed_prompt()

    @torch.no_grad()
    def _embed_prompt(self) -> torch.Tensor:
        if self.pipe.text_encoder is not None:
            return self.pipe.encode_prompt(PROMPT)[0]
        text_dim = self.pipe.transformer.config.text_dim
        return torch.randn(1, TEXT_TOKENS, text_dim, device=self.device, dtype=self.pipe.transformer.dtype)

    def run(self, num_chunks: int, **rewards: bool) -> Run:
        """Makes a video of `num_chunks` chunks, without converting the result to pictures."""
        meter = ChunkMeter(self.pipe.transformer)
        with meter.watching():
            begin = time.perf_counter()
            trace = self.call(num_chunks, callback_on_chunk_end=meter.after_prune, **rewards)
            wall_seconds = time.perf_counter() - begin
        return Run(meter.chunks, trace, wall_seconds)

    def call(self, num_chunks: int, **arguments: object) -> SearchTrace:
        """Makes the pipeline's call that is measured, and returns its trace."""
        return self.pipe(
            prompt_embeds=self.embeds,
            reward_prompt=PROMPT,
            num_frames=self.pipe.geometry.num_frames(num_chunks),
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            final_selection="score",
            num_beams=self.options.num_beams,
            num_candidates=self.options.num_candidates,
            memory=POLICIES[self.options.policy],
            **arguments,
        ).trace

    def warm_up(self, **rewards: bool) -> None:
        if self.options.warmup:
            self.run(self.options.warmup, **rewards)

    def costs(self, run: Run, rate: float) -> list[ChunkCost]:
        """Makes a row per chunk; `rate` in operations per second."""
        config, chunk_frames = self.pipe.transformer.config, self.pipe.config.chunk_frames
        pixels = (self.pipe.config.default_height, self.pipe.config.default_width)
        size = (side // self.pipe.vae.config.scale_factor_spatial for side in pixels)
        decode = decode_cost(self.pipe.vae, (config.in_channels, chunk_frames, *size))
        decode_flops = (decode.first_flops, decode.later_flops)
        bytes_per_token = 2 * config.num_layers * config.num_attention_heads * config.attention_head_dim
        bytes_per_token *= self.pipe.transformer.dtype.itemsize
        costs = []
        for index, (record, chunk) in enumerate(zip(run.records, run.trace.chunks, strict=True)):
            work, context = chunk.work, max(call.context_tokens for call in record.calls)
            flops = {"denoise": 0, "clean_pass": 0}
            for call in record.calls:
                flops["clean_pass" if call.is_clean_pass else "denoise"] += sum(call.flops(config))
            flops["decode"] = work.latents_decoded // chunk_frames * decode_flops[min(index, 1)]
            flops = {stage: count for stage, count in flops.items() if count}
            floor = {stage: count / rate for stage, count in flops.items()}
            costs.append(
                ChunkCost(
                    chunk=index,
                    context_frames=chunk_frames + context * chunk_frames // record.calls[0].chunk_tokens,
                    seconds={stage: seconds for stage, seconds in work.seconds.items() if seconds},
                    flops=flops,
                    floor_seconds=floor,
                    share_of_matrix_rate={stage: floor[stage] / work.seconds[stage] for stage in floor},
                    **{name: getattr(work, name) for name in COUNTERS},
                    peak_bytes=record.peak_bytes,
                    state_bytes=record.state_bytes,
                    memory_bytes=context * bytes_per_token,
                    video_bytes=record.video_bytes,
                )
            )
        return costs


def _demo_pipeline() -> StreamT1Pipeline:
    from stream_t1.demo import load_pipeline

    return load_pipeline()


def random_pipeline(name: str, device: torch.device) -> StreamT1Pipeline:
    """A model of `RANDOM_MODELS`, made on its device in its dtype, with rewards that cost next to nothing."""
    model = RANDOM_MODELS[name]
    torch.manual_seed(0)
    with device, _default_dtype(model.dtype):
        transformer = CausalWanTransformer3DModel(**model.transformer).eval()
        vae = AutoencoderKLWan(**model.vae).eval()
    for key, weight in transformer.named_parameters():
        if set(key.split(".")) & set(transformer._keep_in_fp32_modules):  # as `from_pretrained` leaves them
            weight.data = weight.data.float()
    height, width = model.size
    return StreamT1Pipeline(
        None,
        None,
        transformer,
        vae,
        FewStepFlowMatchScheduler(),
        image_reward=brightness,
        video_reward=brightness,
        default_height=height,
        default_width=width,
    )


def brightness(frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor:
    """Mean brightness of clips (B, F, 3, H, W): (B,)."""
    return frames.mean(dim=(1, 2, 3, 4))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def chunk_costs(bench: Bench) -> dict[str, object]:
    """Measures the cost of each chunk of a search."""
    rate = matrix_rate(bench.device, bench.pipe.transformer.dtype)
    bench.warm_up()
    run = bench.run(bench.options.chunks)
    costs = bench.costs(run, rate)
    outside = run.wall_seconds - sum(sum(cost.seconds.values()) for cost in costs)
    settled = costs[len(costs) // 2 : -1] or costs
    share = median(cost.share_of_matrix_rate["denoise"] for cost in settled)
    print(f"Matrix rate {rate / 1e12:.4g} TFLOP/s. floor: counted products at that rate. share: floor over denoise.\n")
    print(_table(costs))
    print(
        f"\nDenoise: {share:.1%} share of the matrix rate, median of chunks {settled[0].chunk} to {settled[-1].chunk}."
    )
    print(f"{run.wall_seconds:.2f} s in all, {outside / run.wall_seconds:.1%} of it outside these stages.")
    return {
        "matrix_flops_per_second": rate,
        "wall_seconds": run.wall_seconds,
        "outside_stages_seconds": outside,
        "rows": [asdict(cost) for cost in costs],
    }


def flatness(bench: Bench) -> dict[str, object]:
    """Compares the cost of late and early chunks, with a static sink and an image reward."""
    early, late = SPANS
    bench.warm_up(video_reward=False)
    run, *again = (bench.run(bench.options.chunks, video_reward=False) for _ in range(FLATNESS_RUNS))
    # Every chunk's fastest run: processors change their speed for seconds at a time.
    traces = [each.trace.chunks for each in (run, *again)]
    seconds = [
        {stage: min(chunk.work.seconds[stage] for chunk in chunks) for stage in STAGES}
        for chunks in zip(*traces, strict=True)
    ]
    medians = {stage: [median(seconds[n][stage] for n in span) for span in SPANS] for stage in STAGES}
    peaks = [run.records[span[-1]].peak_bytes for span in SPANS]
    video = sum(record.video_bytes for record in run.records[early.stop : late.stop])
    spans = [f"{span[0]} to {span[-1]}" for span in SPANS]
    print(f"{'median s of chunks':<20}{spans[0]:>12}{spans[1]:>12}{'ratio':>8}")
    for stage, (before, after) in medians.items():
        print(f"{stage:<20}{before:>12.4f}{after:>12.4f}{after / before:>8.3f}")
    print(
        f"Peak memory {peaks[0] / GIB:.3f} GiB by chunk {early[-1]}, {peaks[1] / GIB:.3f} GiB by chunk {late[-1]}: "
        f"{(peaks[1] - peaks[0]) / MIB:.1f} MiB more. The videos themselves grew by at most {video / MIB:.1f} MiB."
    )
    return {
        "spans": spans,
        "median_seconds": medians,
        "peak_bytes": peaks,
        "video_bytes_between": video,
        "seconds": seconds,
    }


def overhead(bench: Bench) -> dict[str, object]:
    """Measures the share of plain streaming (one beam, one candidate, no rewards) that is spent outside the model."""
    none = {"image_reward": False, "video_reward": False}
    bench.warm_up(**none)
    inside, outside = [], []
    for _ in range(OVERHEAD_RUNS):  # a clock around the forward and no more: a meter's own work is outside as well
        begin = time.perf_counter()
        with timed_forwards(bench.pipe.transformer) as seconds:
            bench.call(bench.options.chunks, **none)
        inside.append(sum(seconds))
        outside.append(time.perf_counter() - begin - inside[-1])
    shares = [beside / (beside + within) for beside, within in zip(outside, inside, strict=True)]
    per_chunk = [1000 * median(seconds) / bench.options.chunks for seconds in (inside, outside)]
    print(
        f"Per chunk {per_chunk[0]:.2f} ms in the transformer's forwards and {per_chunk[1]:.2f} ms outside: "
        f"{median(shares):.1%} of the time, {min(shares):.1%} to {max(shares):.1%} in {OVERHEAD_RUNS} runs."
    )
    return {"seconds_in_forwards": inside, "seconds_outside": outside, "share_outside": shares}


def _table(costs: list[ChunkCost]) -> str:
    head = f"{'chunk':>6} {'frames':>6} {'denoise s':>10} {'floor':>8} {'share':>6} {'clean_pass s':>12} {'floor':>8} "
    head += f"{'decode s':>9} {'floor':>8} {'reward s':>9} {'forwards':>8} {'clean':>5} {'decoded':>7} {'scored':>6} "
    head += f"{'peak MiB':>9} {'memory':>8} {'states':>8}"
    notes = (
        "memory: keys and values that one beam's forwards read. states: decoder states of the kept beams. Both MiB."
    )
    return "\n".join([head, *map(_line, costs), notes])


def _line(cost: ChunkCost) -> str:
    seconds = {stage: cost.seconds.get(stage, 0.0) for stage in STAGES}
    floor = {stage: cost.floor_seconds.get(stage, 0.0) for stage in STAGES}
    share = cost.share_of_matrix_rate["denoise"]
    memory = (cost.peak_bytes / MIB, cost.memory_bytes / MIB, cost.state_bytes / MIB)
    return (
        f"{cost.chunk:>6} {cost.context_frames:>6} {seconds['denoise']:>10.4f} {floor['denoise']:>8.4f} {share:>6.1%} "
        f"{seconds['clean_pass']:>12.4f} {floor['clean_pass']:>8.4f} {seconds['decode']:>9.4f} "
        f"{floor['decode']:>8.4f} {seconds['reward']:>9.4f} {cost.forwards:>8} {cost.clean_passes:>5} "
        f"{cost.latents_decoded:>7} {cost.frames_scored:>6} {memory[0]:>9.1f} {memory[1]:>8.2f} {memory[2]:>8.2f}"
    )


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("demo", *RANDOM_MODELS), default="demo")
    parser.add_argument("--num-beams", type=int, default=2)
    parser.add_argument("--num-candidates", type=int, default=2, help="per beam")
    parser.add_argument("--chunks", type=int, default=9)
    parser.add_argument("--policy", choices=tuple(POLICIES), default="routed", help="full: the largest context")
    parser.add_argument("--vae-slicing", action="store_true", help="decode one candidate at a time")
    parser.add_argument("--warmup", type=int, default=2, help="chunks of a run before the one that is measured")
    parser.add_argument("--output", type=Path, help="JSON file for what was measured")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--flatness", action="store_true", help="126 chunks, a static sink, an image reward")
    mode.add_argument("--overhead", action="store_true", help="one beam, one candidate, no rewards; on the CPU")
    options = parser.parse_args(argv)
    if options.flatness:
        options.policy, options.chunks = "static", SPANS[-1].stop + 1  # the last chunk has no clean pass
    if options.overhead:
        options.num_beams = options.num_candidates = 1
    return options


def main(argv: list[str] | None = None) -> dict[str, object]:
    """Measures, prints, writes the JSON if asked, and returns what is in it."""
    options = parse_arguments(argv)
    check_output(options.output)
    device = torch.device("cuda" if options.model.startswith("wan") and torch.cuda.is_available() else "cpu")
    if options.model == "wan-1.3b" and device.type == "cpu":
        raise SystemExit(
            "`--model wan-1.3b` needs a GPU and there is none; `--model wan-small` runs the same code here."
        )
    if options.overhead and device.type != "cpu":
        raise SystemExit("`--overhead` does not wait for a GPU's queue: use `--model demo` or `--model toy`.")
    bench = Bench(options, device)
    weights = sum(weight.nbytes for model in (bench.pipe.transformer, bench.pipe.vae) for weight in model.parameters())
    results = {
        "machine": machine(device),
        "versions": {name: version(name) for name in ("torch", "diffusers", "transformers", "stream-t1")},
        "commit": commit(),
        "settings": {name: value for name, value in vars(options).items() if name != "output"},
        "dtype": str(bench.pipe.transformer.dtype).removeprefix("torch."),
        "weights_bytes": weights,
    }
    where = results["machine"]
    name = f"{where.get('gpu', where['cpu'])}, {where['threads']} threads"
    print(f"{options.model} in {results['dtype']}, {weights / GIB:.3f} GiB of weights, on {name}.")
    measure = flatness if options.flatness else overhead if options.overhead else chunk_costs
    results |= measure(bench)
    if options.output is not None:
        with new_file(options.output) as file:
            file.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
