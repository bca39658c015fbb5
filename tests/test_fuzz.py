"""Random arguments: either a right video, or an error before any work that names an argument.

A run of the suite takes about half a minute. By hand for longer, with other arguments each time:

    STREAM_T1_FUZZ_SECONDS=3600 STREAM_T1_FUZZ_SEED=7 python -m pytest tests/test_fuzz.py

The file is long because the right values of every argument stand in it. What fails says its seed;
`STREAM_T1_FUZZ_SEED` of that number tries it first.
"""

import math
import os
import random
import re
import time
from fractions import Fraction

import numpy as np
import pytest
import torch
from conftest import brightness, contrast, toy_text_encoder, toy_transformer, toy_vae
from transformers import T5TokenizerFast

from stream_t1 import FewStepFlowMatchScheduler, PromptTimeline, StreamT1Pipeline
from stream_t1.demo import CHECKPOINT
from stream_t1.rewards import (
    ChunkSeamReward,
    ExposureReward,
    GatedReward,
    PictureReward,
    Reward,
    RewardOutput,
    TemporalFlickerReward,
    WeightedReward,
)
from stream_t1.search import (
    Backtracking,
    BeamSearch,
    BestOfN,
    EarlyPruning,
    EarlyStop,
    EMASink,
    EvolutionSearch,
    Lookahead,
    ParticleSearch,
    PromptAdaptive,
    RewardRoutedSink,
    SearchTrace,
    SlidingWindow,
    StagedSearch,
    StaticSink,
)

SECONDS = float(os.environ.get("STREAM_T1_FUZZ_SECONDS", 0))  # of each surface; 0: a number of trials
FIRST_SEED = int(os.environ.get("STREAM_T1_FUZZ_SEED", 0))

# What nobody should give for most arguments, and somebody will.
ODD = [
    *(None, True, False, 0, 1, -1, 2, 3, 7, 9, 10**9, 10**400, 0.0, 0.5, -0.5, 1.0, 2.0, 1e-300, 1e308),
    *(math.nan, math.inf, -math.inf, 1j, Fraction(1, 2), b"", b"np", "", " ", "0", "1", "np", "pt", "latent", "inf"),
    *(np.int64(2), np.uint8(3), np.float32(0.5), np.float64("nan"), np.bool_(True), np.str_("np"), np.array(2)),
    *(np.array([1, 0]), np.array([1.0, 0.5]), np.array(["a"]), np.zeros((2, 2))),
    *([], (), {}, set(), [0], [1], [0.5], [1.0, 0.5], [None], ["a"], [[]], {"a": 1}, {"scale": 1.0}, {1: 2}, range(3)),
    *(torch.tensor(1), torch.tensor(0.5), torch.ones(1, 6, 8), torch.zeros(1, 4, 3, 2, 2), torch.ones(2).to_sparse()),
    *(torch.empty(1, 6, 8, device="meta"), torch.tensor([True]), torch.float32, torch.device("cpu")),
    *(object(), object, int, len, lambda: 0, iter([1]), Ellipsis, NotImplemented, ValueError("x")),
    *(Reward, PictureReward, brightness, ExposureReward(), BeamSearch, BeamSearch()),
    *(BestOfN(2), EMASink, EMASink(), StaticSink(), FewStepFlowMatchScheduler, FewStepFlowMatchScheduler()),
    *(torch.Generator, torch.Generator(), [torch.Generator()], "\ud800", "a\0b", "\n", "no/such", "/no/such/folder"),
]
DENSE = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))

CHANGING = PromptTimeline({0: "a cat", 9: "a dog"})


def with_parts(frames, prompt, fps):
    return RewardOutput(brightness(frames, prompt, fps), {"first": frames[:, 0].flatten(1).mean(dim=1)})


class Named:
    """A value that is made anew for each trial, such as a generator."""

    def __init__(self, make):
        self.make = make


# What is right, alone or with what else is here.
CALL = {
    "prompt": ["a cat", "", "two  cats\n", ["a cat"], "caf\u00e9 &amp; more", "a" * 40, CHANGING, [CHANGING]],
    "transition": [0, 1, np.int64(2)],
    "recache": [None, "window", "all", "none", "flush"],
    "height": [None, 16, np.int64(32)],
    "width": [None, 16, 48],
    "num_frames": [9, 21, np.int32(9)],
    "num_inference_steps": [None, 1, 2, np.int64(1)],
    "sigmas": [None, [1.0], (1, 0.5), np.array([0.75])],
    "num_videos_per_prompt": [1, 2],
    "generator": [None, Named(torch.Generator), Named(lambda: [torch.Generator()])],
    "output_type": ["np", "pt", "pil", "latent"],
    "return_dict": [True, False, np.bool_(True)],
    "attention_kwargs": [None, {}, {"other": 1}],
    "callback_on_step_end": [None, lambda pipe, step, t, tensors: tensors, lambda *_: None],
    "callback_on_step_end_tensor_inputs": [None, ["latents"], ["latents", "prompt_embeds"], []],
    "max_sequence_length": [16, 512, 3],
    "search": [
        None,
        BeamSearch(2, 1),
        BeamSearch(1, 2),
        BeamSearch(1, 2, prune_every=2),
        BestOfN(2),
        ParticleSearch(2, 3.0, threshold=1),
        EvolutionSearch(2, 3, 1, 0.5),
        EarlyPruning(3, 1, after_step=1),
        EarlyStop(BeamSearch(1, 2), 0.01, 2, 2),
        Backtracking(BeamSearch(2, 1), bound=0.5, retries=1),
        Lookahead(BeamSearch(1, 2), steps=1),
        StagedSearch([(2, 2), (1, 2)], keep="median"),
        PromptAdaptive(1, 2),
    ],
    "num_beams": [None, 1, 2, np.int64(2)],
    "num_candidates": [None, 1, 2],
    "noise_correlation": [-0.1, 0, 0.5, np.float32(-0.9)],
    "image_reward": [None, False, brightness, with_parts, TemporalFlickerReward()],
    "video_reward": [None, False, contrast, WeightedReward([brightness, contrast], [1, -1.0], normalize="rank")],
    "reward_prompt": [None, "", "a cat", ["a cat"], CHANGING],
    "monitors": [None, {}, {"bright": brightness, "parts": with_parts}],
    "short_weight_cap": [0.4, 0, 1, np.float64(0.25)],
    "score_normalization": [None, "zscore", "rank"],
    "reward_window": [10, 1, np.int64(2)],
    "memory": [None, SlidingWindow(), StaticSink("relative"), EMASink(), RewardRoutedSink(quality_threshold=math.inf)],
    "candidate_seeds": ["independent", "reference"],
    "final_selection": ["video_reward", "score"],
    "max_lag": [None, 0, 1],
    "callback_on_chunk_end": [None, lambda *_: None, lambda *_: {"kept": [0]}],
    "trace_thumbnails": [False, True],
    "prompt_embeds": [None, DENSE, DENSE.double(), DENSE.half()],
    "latents": [None],
    "image": [None, torch.zeros(3, 16, 16), np.zeros((16, 48, 3), dtype=np.uint8)],
    "image_latents": [None, torch.zeros(1, 4, 1, 2, 2)],
    "video": [None, torch.zeros(9, 3, 16, 16), np.ones((1, 9, 20, 30, 3))],
    "video_latents": [None, torch.zeros(1, 4, 3, 2, 2)],
    "resize": [None, "crop"],
}
CONSTRUCTOR = {
    "tokenizer": [None],
    "text_encoder": [None],
    "transformer": [None],
    "vae": [None],
    "scheduler": [None, FewStepFlowMatchScheduler()],
    "image_reward": [None, brightness, ExposureReward()],
    "video_reward": [None, contrast],
    "chunk_frames": [3, np.int64(3)],
    "first_chunk_frames": [None, 1, np.int64(3)],
    "window_frames": [12, 9, np.int64(6)],
    "sink_frames": [3, 0, np.int8(3)],
    "denoising_steps": [(1000, 500), [1000.0], np.array([900, 1])],
    "fps": [16, 23.976, np.float32(8)],
    "default_height": [480, 16],
    "default_width": [832, np.int64(16)],
    "memory": [None, EMASink(), {"policy": "StaticSink"}],
    "reward_sources": [None, {}, {"image_reward": "org/reward"}],
}
OBJECTS = {
    FewStepFlowMatchScheduler: {"num_train_timesteps": [1000, np.int64(10)], "shift": [5.0, 1, np.float32(3)]},
    StaticSink: {"positions": ["absolute", "relative"]},
    EMASink: {"positions": ["relative"], "ema_decay": [0.5, 0, np.float64(1)]},
    RewardRoutedSink: {
        "quality_threshold": [0, -math.inf],
        "transition_threshold": [0.2, math.inf],
        "max_sink_frames": [15, 0],
        "ema_decay": [0.9],
        "positions": ["absolute"],
    },
    BeamSearch: {
        "num_beams": [1, 2],
        "num_candidates": [1, 3],
        "budget": [None, [(1, 2), (2, 1)]],
        "prune_every": [1, 2],
    },
    Backtracking: {
        "inner": [BeamSearch(1, 2), BestOfN(2)],
        "bound": [-math.inf, 0.4, np.float32(1)],
        "depth": [0, 1, np.int64(3)],
        "retries": [0, 1],
    },
    Lookahead: {"inner": [BeamSearch(1, 2)], "chunks": [1, np.int64(2)], "steps": [None, 1]},
    StagedSearch: {
        "budget": [[(2, 2), (1, 3)], ((1, 2),)],
        "keep": ["best", ["median", "bound"]],
        "bound": [0, [-math.inf, 0.5]],
        "image_reward": [None, brightness, [None, False]],
        "video_reward": [contrast, [None]],
        "reward_prompt": [None, "a cat", ["a cat", None]],
    },
    PromptAdaptive: {
        "num_beams": [1, 2],
        "num_candidates": [1, np.int64(2)],
        "strength": [0, 1.5],
        "max_candidates": [2, 3],
        "distance": [None, 0.5, lambda words: float(len(words))],
    },
    BestOfN: {"num_videos": [1, np.int64(2)]},
    ParticleSearch: {
        "num_particles": [1, np.int64(3)],
        "strength": [0, -2.5, np.float32(1)],
        "potential": ["difference", "max"],
        "resampling": ["systematic", "residual"],
        "threshold": [0, 1, 0.5],
        "tempering": [None, 0.3],
    },
    EvolutionSearch: {
        "generations": [1, 2],
        "population": [4, np.int64(3)],
        "elites": [1, 2],
        "mutation": [0, 1, np.float64(0.3)],
        "at_step": [0, 1],
        "num_beams": [1, 2],
    },
    EarlyPruning: {"num_candidates": [3, 4], "keep": [1, np.int64(3)], "after_step": [1, 4], "num_beams": [1, 2]},
    EarlyStop: {"inner": [BeamSearch()], "margin": [0, math.inf], "patience": [1, 2], "max_rounds": [1]},
    WeightedReward: {"rewards": [[brightness]], "weights": [[1.0], (2,)], "normalize": [None, "rank"]},
    GatedReward: {"gate": [brightness], "reward": [contrast], "bound": [0.5, 0], "at_least": [2]},
    ChunkSeamReward: {"frames_per_chunk": [12, 2]},
    PictureReward: {"frame_stride": [1, 3], "micro_batch_size": [None, 2]},
}


def trials(count: int):
    """Seeds, and a random source of each."""
    end, seed = time.monotonic() + SECONDS, FIRST_SEED
    while seed < FIRST_SEED + count if SECONDS == 0 else time.monotonic() < end:
        yield seed, random.Random(f"stream-t1 {seed}")
        seed += 1


def drawn(right: dict[str, list], generator: random.Random, *, odd: int, usual: int) -> tuple[dict, list[str]]:
    """Arguments: some right ones, and under the names that are given too, odd ones."""
    names = generator.sample(sorted(right), usual)
    odd_names = generator.sample(sorted(right), odd)
    values = {name: generator.choice(right[name]) for name in names} | {n: generator.choice(ODD) for n in odd_names}
    return {name: value.make() if isinstance(value, Named) else value for name, value in values.items()}, odd_names


def names_one(error: BaseException, names) -> bool:
    """Whether a message names one of the arguments in backticks."""
    said = {re.split(r"[^\w]", text)[0] for text in re.findall(r"`([^`]+)`", str(error))}
    return bool(said & set(names))


def told(seed: int, what: str, arguments: dict, error: BaseException | None) -> AssertionError:
    return AssertionError(f"seed {seed}: {what} with {arguments!r:.600} gave {type(error).__name__}: {error}")


@pytest.fixture(scope="module")
def fuzzed():
    """A pipeline of toy models that reads prompts."""
    tokenizer = T5TokenizerFast.from_pretrained(CHECKPOINT / "tokenizer")
    models = (toy_text_encoder(), toy_transformer(), toy_vae(z_dim=4))
    sizes = {"default_height": 16, "default_width": 16}
    pipe = StreamT1Pipeline(tokenizer, *models, FewStepFlowMatchScheduler(), denoising_steps=[1000, 500], **sizes)
    pipe.set_progress_bar_config(disable=True)
    pipe("a cat", num_frames=9, num_beams=1, num_candidates=1)  # a first call may move weights
    return pipe


def is_hub_name(value: object) -> bool:
    """Names that would be looked for on the Hub, which tests do not ask."""
    return isinstance(value, str) and value != ""


def check_video(pipe, arguments: dict, frames, trace) -> None:
    """What is right of any result: its shape, finite numbers, and a trace that belongs to it."""
    kind, expected = arguments.get("output_type", "np"), arguments.get("num_videos_per_prompt", 1)
    config, num_frames = trace.config, arguments["num_frames"]
    assert 1 <= len(frames) <= expected and len(trace.chunks) == config["num_chunks"]
    height, width = config["height"], config["width"]
    if kind == "pil":
        assert all(len(video) == num_frames and video[0].size == (width, height) for video in frames)
    else:
        shapes = {"np": (num_frames, height, width, 3), "pt": (num_frames, 3, height, width)}
        shapes["latent"] = (4, 3 * config["num_chunks"], height // 8, width // 8)
        assert tuple(frames.shape[1:]) == shapes[kind] and np.isfinite(np.asarray(frames)).all()
    assert sorted(trace.final.order) == list(range(len(trace.chunks[-1].sinks)))
    for before, chunk in zip([None, *trace.chunks], trace.chunks, strict=False):
        num_parents = 1 if before is None else len(before.sinks)
        assert all(0 <= candidate.parent < num_parents for candidate in chunk.candidates)
        assert sorted(place for c in chunk.candidates for place in c.kept_as) == list(range(len(chunk.sinks)))


def test_a_call_makes_a_right_video_or_names_an_argument_before_any_work(fuzzed):
    for seed, generator in trials(220):
        odd = generator.choice([0, 1, 1, 1, 2])
        arguments, odd_names = drawn(CALL, generator, odd=odd, usual=generator.randint(0, 8))
        is_given = any(arguments.get(name) is not None for name in ("video", "video_latents"))
        arguments = {"num_frames": 21 if is_given else 9, **arguments}
        if "prompt_embeds" not in arguments:
            arguments.setdefault("prompt", "a cat")
        if any(is_hub_name(arguments.get(name)) for name in ("image_reward", "video_reward")):
            continue
        if arguments.get("callback_on_chunk_end") is brightness:
            continue  # it takes three arguments too, and what it raises when it gets a pipeline is its own
        arguments.setdefault("generator", torch.Generator())
        way = generator.choice(["__call__", "__call__", "stream", "steps", "estimate"])
        try:
            method = getattr(fuzzed, way)
            before = watched(fuzzed, arguments)
            check_result(fuzzed, way, arguments, method(**arguments))
        except (TypeError, ValueError) as error:
            allowed = [*arguments, "default_height", "default_width"]
            if not names_one(error, allowed):
                raise told(seed, way, arguments, error) from error
            is_an_answer = any(callable(arguments[name]) for name in odd_names)  # which is known during the run only
            if not is_an_answer and watched(fuzzed, arguments) != before:
                raise told(seed, f"{way} worked and then", arguments, error) from error
        except Exception as error:
            raise told(seed, way, arguments, error) from error


def check_result(pipe, way: str, arguments: dict, result) -> None:
    if way == "estimate":
        assert result.forwards > 0 and result.peak_bytes > 0
    elif way == "steps":
        steps, beams = result
        assert steps.chunk_index == steps.plan.num_given_chunks == beams[0].depth and len(beams) == 1
    elif way == "stream":
        chunks = list(result)
        assert [chunk.index for chunk in chunks] == list(range(len(chunks))) and chunks[-1].trace.final is not None
    else:
        frames, traces = result if not arguments.get("return_dict", True) else (result.frames, result.traces)
        check_video(pipe, arguments, frames, traces[0])


def watched(pipe, arguments: dict) -> tuple:
    """What an error before any work leaves: forwards that the models have done, and the generators' states."""
    generators = arguments.get("generator")
    generators = generators if isinstance(generators, list) else [generators]
    states = [g.get_state().numpy().tobytes() for g in generators if isinstance(g, torch.Generator)]
    counts = []
    for model in (pipe.transformer, pipe.vae.encoder, pipe.vae.decoder, pipe.text_encoder):
        if not hasattr(model, "num_forwards"):
            model.num_forwards = 0
            model.register_forward_pre_hook(lambda module, _: setattr(module, "num_forwards", module.num_forwards + 1))
        counts.append(model.num_forwards)
    return counts, states, torch.default_generator.get_state().numpy().tobytes()


def test_the_constructor_makes_a_pipeline_or_names_an_argument():
    components = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
    for seed, generator in trials(400):
        arguments, _ = drawn(CONSTRUCTOR, generator, odd=generator.choice([0, 1, 1, 2]), usual=generator.randint(0, 6))
        arguments = dict.fromkeys(components) | arguments
        if any(is_hub_name(arguments.get(name)) for name in ("image_reward", "video_reward")):
            continue
        try:
            config = StreamT1Pipeline(**arguments).config
            assert {type(config[name]) for name in ("chunk_frames", "window_frames", "default_width")} == {int}
            assert math.isfinite(config.fps) and config.fps > 0
        except (TypeError, ValueError) as error:
            if not names_one(error, arguments):
                raise told(seed, "the constructor", arguments, error) from error
        except Exception as error:
            raise told(seed, "the constructor", arguments, error) from error


def test_schedulers_policies_searches_and_rewards_are_made_or_name_an_argument():
    for seed, generator in trials(600):
        kind = generator.choice(list(OBJECTS))
        right = OBJECTS[kind]
        odd, _ = drawn(right, generator, odd=generator.choice([0, 1]), usual=0)
        arguments = {name: generator.choice(values) for name, values in right.items()} | odd
        if any(is_hub_name(value) for name, value in arguments.items() if name in ("gate", "reward")):
            continue
        try:
            made = kind(**arguments)
        except (TypeError, ValueError) as error:
            if not names_one(error, arguments):
                raise told(seed, kind.__name__, arguments, error) from error
        except Exception as error:
            raise told(seed, kind.__name__, arguments, error) from error
        else:
            assert not any(isinstance(value, np.generic) for value in vars(made).values())


def test_scheduler_steps_are_levels_that_fall_or_name_an_argument():
    scheduler = FewStepFlowMatchScheduler()
    for seed, generator in trials(300):
        given = {name: generator.choice([None, *ODD]) for name in ("num_inference_steps", "sigmas")}
        try:
            levels = scheduler.schedule(**given)
            assert 1 <= len(levels) <= 8 and 1 >= levels[0] and list(levels) == sorted(set(levels), reverse=True)
            assert levels[-1] > 0
        except (TypeError, ValueError) as error:
            if not names_one(error, given):
                raise told(seed, "schedule", given, error) from error
        except Exception as error:
            raise told(seed, "schedule", given, error) from error


def test_answers_of_callbacks_and_rewards_make_a_right_video_or_name_who_gave_them(fuzzed):
    """What is answered is known during the run only, so the error names its origin."""
    names = ("callback_on_step_end", "callback_on_chunk_end", "image_reward", "video_reward")
    for seed, generator in trials(60):
        name, value = generator.choice(names), generator.choice(ODD)
        key = generator.choice(["latents", "prompt_embeds", "kept", "score", "parts", "lost", "gated"])
        answers = {"callback_on_step_end": {key: value}, "callback_on_chunk_end": {"kept": value}}
        answer = generator.choice([value, answers.get(name, value)])
        if "reward" in name and generator.random() < 0.5 and key in ("score", "parts", "lost", "gated"):
            answer = RewardOutput(**{"score": torch.zeros(4), key: value})
        arguments = {"image_reward": brightness, "num_frames": 9, name: lambda *_, answer=answer: answer}
        try:
            output = fuzzed("a cat", **arguments)
            check_video(fuzzed, arguments, output.frames, output.trace)
        except (TypeError, ValueError) as error:
            if name not in str(error):
                raise told(seed, name, {"answer": answer}, error) from error
        except Exception as error:
            raise told(seed, name, {"answer": answer}, error) from error


OPTIONS = {  # of `generate`: right values, then wrong ones
    "--num-frames": (["9", "21"], ["10", "0", "-3", "x", "9.5", "", str(10**30)]),
    "--num-beams": (["1", "2"], ["0", "-1", "1.5", "many", str(10**12)]),
    "--num-candidates": (["1", "2"], ["0", "-1", "nan", str(10**12)]),
    "--seed": (["0", "7", str(2**53 - 1)], ["-1", str(2**70), "0x10", "seed"]),
    "--search": (["beam", "best-of-n", "early-stop", "lookahead", "staged"], ["bream", "", "BeamSearch"]),
    "--num-videos": (["1", "2"], ["0", "-2", "two"]),
    "--output": (
        ["a.mp4", "-x.mp4", "13:20:39.mp4", "b.mkv"],
        ["dir.mp4", "no/such.mp4", "a.txt", "x" * 300 + ".mp4", "."],
    ),
}


def test_generate_writes_a_video_and_its_trace_or_names_an_option_and_writes_nothing(tmp_path, monkeypatch, capsys):
    from stream_t1 import demo
    from stream_t1.__main__ import main

    pipe = demo.load_pipeline()
    monkeypatch.setattr(demo, "load_pipeline", lambda: pipe)
    for seed, generator in trials(40):
        folder = tmp_path / str(seed)
        (folder / "dir.mp4").mkdir(parents=True)
        monkeypatch.chdir(folder)
        chosen = {"--num-frames": "9"}
        for name in generator.sample(sorted(OPTIONS), generator.randint(1, 4)):
            right, wrong = OPTIONS[name]
            chosen[name] = generator.choice(wrong if generator.random() < 0.3 else right)
        argv = [
            "a red circle moving left on a white background",
            *(f"{name}={value}" for name, value in chosen.items()),
        ]
        try:
            status = main(argv)
        except SystemExit as stop:  # of argparse
            status = stop.code
        said, files = capsys.readouterr().err, sorted(path.name for path in folder.iterdir() if path.is_file())
        if status == 0:
            video = chosen.get("--output", "out.mp4")
            assert files == sorted([video, f"{video.rpartition('.')[0]}.json"]), told(seed, "generate", chosen, None)
            assert SearchTrace.load(folder / f"{video.rpartition('.')[0]}.json").final is not None
        else:
            names = [word for name in chosen for word in (name, name.strip("-").replace("-", "_"))]
            assert status == 2 and files == [], told(seed, "generate", chosen, None)
            assert any(name in said for name in (*names, "search", "num_beams")), told(seed, "generate", chosen, None)
