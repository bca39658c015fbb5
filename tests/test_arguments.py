"""Every argument is checked in full, under its own name, before any work."""

import math
import re
from functools import partial

import numpy as np
import pytest
import torch
from conftest import brightness, contrast, nothing_done, toy_text_encoder, toy_transformer, toy_vae
from diffusers import FlowMatchEulerDiscreteScheduler
from tiny_rewards import hpsv3_reward, videoalign_reward
from transformers import T5TokenizerFast

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.rewards import (
    AestheticReward,
    ChunkSeamReward,
    CLIPScoreReward,
    GatedReward,
    PictureReward,
    Reward,
    SubjectConsistencyReward,
    WeightedReward,
)
from stream_t1.search import BeamSearch, BestOfN, EarlyStop, EMASink, RewardRoutedSink, SearchTrace, StaticSink

NAN, INF = float("nan"), float("inf")
NOT_WHOLE = [True, 2.0, 10.5, "2", None, NAN, np.float64(2), np.bool_(True), torch.tensor(2), [2]]
NOT_NUMBERS = [True, "0.5", None, NAN, INF, -INF, np.float32("nan"), torch.tensor(0.5), [0.5], 10**400]
HALF_A_CHARACTER = "cat \ud83d"


def shown(value: object) -> str:
    """A value as the name of a case: no longer than 40 characters, and the same in every process."""
    return f"{re.sub(r' at 0x[0-9a-f]+', '', repr(value)):.40}"


def argument_cases(cases: dict[str, list]) -> list:
    return [
        pytest.param(name, value, id=f"{name}={shown(value)}") for name, values in cases.items() for value in values
    ]


CALL = {
    "prompt": [5, [], ["a", 3], ("a",), b"a", HALF_A_CHARACTER, ["a", HALF_A_CHARACTER]],
    "height": [*(value for value in NOT_WHOLE if value is not None), 0, 17],
    "num_frames": [*NOT_WHOLE, 0, -9, 50],
    "num_inference_steps": [*(value for value in NOT_WHOLE if value is not None), 0, -1, 9],
    "sigmas": [
        "1",
        1.0,
        [],
        [NAN],
        ["1"],
        [True],
        [0.5, 0.7],
        [0.5, 0.5],
        [1.5],
        [0.0],
        torch.ones(1),
        np.ones((1, 1)),
    ],
    "num_videos_per_prompt": [*NOT_WHOLE, 0, 3],
    "generator": [3, "cpu", (torch.Generator(),), [torch.Generator()] * 2, torch.Generator],
    "output_type": [None, 3, "mp4", [], ["np"], np.array(["np", "pt"])],
    "return_dict": [2, 0, "yes", None, np.int64(1)],
    "attention_kwargs": ["", 3, [1], {1: 0.5}, {"scale": None}, {"scale": "1"}, {"scale": NAN}, {"a": True}],
    "callback_on_step_end": ["", 3, {}, object(), PictureReward],
    "callback_on_step_end_tensor_inputs": ["latents", ["noise"], [["latents"]], 3, {"latents"}],
    "max_sequence_length": [*NOT_WHOLE, -1, 0, 513],
    "search": ["beam", 3, BeamSearch, BestOfN, [BeamSearch()]],
    "num_beams": [*(value for value in NOT_WHOLE if value is not None), 0],
    "num_candidates": [*(value for value in NOT_WHOLE if value is not None), 0],
    "noise_correlation": [*NOT_NUMBERS, 1.0, -1],
    "image_reward": [True, 3, "", [brightness], torch.ones(1), Reward],
    "video_reward": [True, 3, "", {"a": contrast}, PictureReward],
    "reward_prompt": [5, ["a", "b"], [3], HALF_A_CHARACTER],
    "monitors": [[brightness], {1: brightness}, {"a": 3}, {"a": None}, {"a": Reward}, {"a": ""}, "a"],
    "short_weight_cap": [*NOT_NUMBERS, -0.1, 1.1],
    "score_normalization": ["max", 3, ["rank"], True, []],
    "reward_window": [*NOT_WHOLE, 0],
    "memory": ["routed", 3, RewardRoutedSink, {"policy": "StaticSink"}],
    "candidate_seeds": [None, 3, "fixed", ["reference"]],
    "final_selection": [None, "best", ["score"]],
    "max_lag": [*(value for value in NOT_WHOLE if value is not None), -1],
    "callback_on_chunk_end": ["", 3, [print], PictureReward],
    "trace_thumbnails": [2, 1, "yes", None],
}


@pytest.mark.parametrize("name, value", argument_cases(CALL))
def test_a_call_a_stream_the_steps_and_an_estimate_name_what_is_wrong_before_any_work(reading_pipeline, name, value):
    pipe, generator = reading_pipeline, torch.Generator().manual_seed(0)
    given = {"prompt": "a cat", "num_frames": 21, "image_reward": brightness, "generator": generator, name: value}
    for method in (pipe, pipe.stream, pipe.steps, pipe.estimate):
        with nothing_done(pipe, generator), pytest.raises((TypeError, ValueError)) as caught:
            method(**given)
        assert name in str(caught.value)


TENSORS = {
    "integers": lambda x: x.int(),
    "NaN": lambda x: x * NAN,
    "infinite": lambda x: x / 0,
    "meta": lambda x: x.to("meta"),
    "sparse": lambda x: x.to_sparse(),
    "complex": lambda x: x.to(torch.complex64),
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
    "flat": lambda x: x.flatten(),
    "none": lambda x: x[:0],
}


@pytest.mark.parametrize("change", TENSORS.values(), ids=TENSORS)
@pytest.mark.parametrize("name", ["latents", "prompt_embeds"])
def test_tensors_are_dense_floats_that_are_finite_and_of_the_right_shape(toy_pipeline, embeds, name, change):
    given = {"latents": torch.ones(1, 4, 6, 2, 2), "prompt_embeds": embeds}
    given[name] = change(given[name])
    for method in (toy_pipeline, toy_pipeline.stream, toy_pipeline.estimate):
        with nothing_done(toy_pipeline), pytest.raises((TypeError, ValueError), match=f"`{name}`"):
            method(**given, num_frames=21, num_beams=1, num_candidates=1)


def test_numbers_of_numpy_are_taken_and_kept_as_pythons(toy_pipeline, embeds, tmp_path):
    whole = {
        "height": 16,
        "width": 16,
        "num_frames": 21,
        "num_inference_steps": 2,
        "num_beams": 2,
        "num_candidates": 2,
    }
    whole |= {"num_videos_per_prompt": 1, "max_sequence_length": 8, "reward_window": 2, "max_lag": 3}
    arguments = {name: np.int64(value) for name, value in whole.items()}
    arguments |= {"noise_correlation": np.float32(-0.5), "short_weight_cap": np.float64(0.25)}
    arguments |= {"trace_thumbnails": np.bool_(False), "return_dict": np.bool_(True), "sigmas": np.array([1.0, 0.5])}
    memory = RewardRoutedSink(
        quality_threshold=np.float32(0.5),
        transition_threshold=np.float64(0.25),
        max_sink_frames=np.int32(6),
        ema_decay=np.float16(0.5),
    )
    trace = toy_pipeline(prompt_embeds=embeds, memory=memory, image_reward=brightness, **arguments).trace
    plain = {type(value) for value in (*trace.config.values(), *trace.config["memory"].values())}
    assert plain <= {int, float, str, bool, list, dict, type(None)}
    trace.save(tmp_path / "trace.json")
    assert SearchTrace.load(tmp_path / "trace.json") == trace


def parts(**changes):
    given = {"tokenizer": None, "text_encoder": None, "transformer": None, "vae": None, "scheduler": None, **changes}
    return StreamT1Pipeline(**given)


CONSTRUCTOR = {
    "tokenizer": [3, "t5", T5TokenizerFast],
    "text_encoder": [3, "umt5", type(toy_text_encoder())],
    "transformer": [3, "wan", type(toy_transformer())],
    "vae": [3, "wan", torch.nn.Linear(2, 2), type(toy_vae())],
    "scheduler": [3, "flow", FewStepFlowMatchScheduler, FlowMatchEulerDiscreteScheduler],
    "image_reward": [False, True, 3, "", Reward],
    "video_reward": [False, 0, [brightness]],
    "chunk_frames": [*NOT_WHOLE, 0],
    "first_chunk_frames": [*(value for value in NOT_WHOLE if value is not None), 0],
    "window_frames": [*NOT_WHOLE, 0, 10],
    "sink_frames": [*NOT_WHOLE, -3, 4],
    "denoising_steps": [
        3,
        "1000",
        [],
        [0],
        [1000, 0],
        [500, 750],
        [500, 500],
        [1001],
        [NAN],
        [True],
        ["1000"],
        range(9),
    ],
    "fps": [*NOT_NUMBERS, 0, -16],
    "default_height": [*NOT_WHOLE, 0],
    "default_width": [*NOT_WHOLE, -16],
    "memory": ["routed", 3, RewardRoutedSink, {}, {"policy": ["StaticSink"]}, {"policy": "StaticSink", 3: 4}],
    "reward_sources": ["org/reward", {"image_reward": 3}, {"reward": "org/reward"}, []],
}


@pytest.mark.parametrize("name, value", argument_cases(CONSTRUCTOR))
def test_the_constructor_names_what_is_wrong(name, value):
    with pytest.raises((TypeError, ValueError), match=f"`{name}"):
        parts(**{name: value})


@pytest.mark.parametrize("name", ["tokenizer", "text_encoder", "transformer", "vae", "image_reward", "video_reward"])
def test_an_assigned_component_is_checked_like_the_constructors(name):
    with pytest.raises((TypeError, ValueError), match=f"`{name}`"):
        setattr(parts(), name, 3)


def test_the_constructor_keeps_numpys_numbers_as_pythons(tmp_path):
    numbers = {"chunk_frames": 3, "window_frames": 9, "sink_frames": 3, "default_height": 64, "default_width": 64}
    pipe = parts(
        **{name: np.int64(value) for name, value in numbers.items()},
        fps=np.float32(12),
        denoising_steps=np.array([1000, 500]),
        memory=EMASink(ema_decay=np.float64(0.5)),
        scheduler=FewStepFlowMatchScheduler(np.int64(1000), np.float64(4.0)),
    )
    config = {name: pipe.config[name] for name in numbers}
    assert config == numbers and {type(value) for value in config.values()} == {int}
    assert type(pipe.config.fps) is float and pipe.config.denoising_steps == (1000, 500)
    assert type(pipe.scheduler.config.num_train_timesteps) is int and type(pipe.scheduler.config.shift) is float
    pipe.save_pretrained(tmp_path)
    assert StreamT1Pipeline.from_pretrained(tmp_path).config.fps == 12.0


def test_a_scheduler_set_later_may_not_have_the_pipelines_steps(toy_pipeline, embeds):
    toy_pipeline.scheduler = FewStepFlowMatchScheduler(num_train_timesteps=500)
    with pytest.raises(ValueError, match="`denoising_steps` is .* at most 500"):
        toy_pipeline(prompt_embeds=embeds, num_frames=9)


def test_a_size_that_the_call_does_not_name_is_told_as_the_pipelines(embeds):
    pipe = parts(transformer=toy_transformer(), vae=toy_vae(z_dim=4), default_height=20, default_width=16)
    with pytest.raises(ValueError, match="`default_height` is 20.*Use 16 or 32"):
        pipe(prompt_embeds=embeds, num_frames=9)


MADE = {
    "scheduler": (
        FewStepFlowMatchScheduler,
        {},
        {"shift": [*NOT_NUMBERS, 0, -1], "num_train_timesteps": [*NOT_WHOLE, 0]},
    ),
    "StaticSink": (StaticSink, {}, {"positions": [None, "rotary", ["absolute"], 3]}),
    "EMASink": (EMASink, {}, {"ema_decay": [*NOT_NUMBERS, -0.1, 1.1]}),
    "RewardRoutedSink": (
        RewardRoutedSink,
        {},
        {
            "quality_threshold": [None, NAN, "0", True, [0.0]],
            "transition_threshold": [None, NAN, "0", True],
            "max_sink_frames": [*NOT_WHOLE, -1, INF],
            "ema_decay": [*NOT_NUMBERS],
        },
    ),
    "BeamSearch": (
        BeamSearch,
        {},
        {
            "num_beams": [*NOT_WHOLE, 0],
            "num_candidates": [*NOT_WHOLE, 0],
            "budget": [3, "22", [], [(2,)], [(2, 0)], [(2.0, 2)], [2], {2: 2}, dict],
        },
    ),
    "BestOfN": (BestOfN, {}, {"num_videos": [*NOT_WHOLE, 0]}),
    "EarlyStop": (
        EarlyStop,
        {"inner": BeamSearch()},
        {
            "inner": [3, None, BeamSearch],
            "margin": [None, NAN, "1", True, -1],
            "patience": [*NOT_WHOLE, 0],
            "max_rounds": [*NOT_WHOLE, 0],
        },
    ),
    "Reward": (Reward, {}, {"micro_batch_size": [value for value in NOT_WHOLE if value is not None] + [0]}),
    "PictureReward": (PictureReward, {}, {"frame_stride": [*NOT_WHOLE, 0]}),
    "ChunkSeamReward": (ChunkSeamReward, {}, {"frames_per_chunk": [*NOT_WHOLE, 1]}),
    "CLIPScoreReward": (
        CLIPScoreReward,
        {"model": torch.nn.Linear(2, 2), "tokenizer": None},
        {"model": [3, None, torch.nn.Linear], "tokenizer": [3, "clip"]},
    ),
    "AestheticReward": (AestheticReward, {"model": torch.nn.Linear(2, 2), "layers": None}, {"layers": [3, "head"]}),
    "SubjectConsistencyReward": (
        SubjectConsistencyReward,
        {"model": torch.nn.Linear(2, 2)},
        {"model": [3], "frame_stride": [0]},
    ),
    "HPSv3Reward": (hpsv3_reward, {}, {"confidence": NOT_NUMBERS, "frame_stride": [0, 1.5], "micro_batch_size": [0]}),
    "VideoAlignReward": (videoalign_reward, {}, {"score": ["VQ", [], ["XQ"], 3, [["VQ"]]]}),
    "WeightedReward": (
        WeightedReward,
        {"rewards": [brightness], "weights": [1.0]},
        {
            "rewards": [brightness, [], 7, "ab", [3], [None], [Reward], [""]],
            "weights": [7, [], [1, 2], "1", *([value] for value in NOT_NUMBERS)],
            "normalize": ["softmax", 3, True, ["rank"]],
        },
    ),
    "GatedReward": (
        partial(GatedReward, brightness, contrast),
        {"bound": 0.5, "at_least": 2},
        {"bound": NOT_NUMBERS, "at_least": [*NOT_WHOLE, 0]},
    ),
}
MADE_CASES = [
    pytest.param(kind, {**good, name: value}, name, id=f"{key}-{name}={shown(value)}")
    for key, (kind, good, bad) in MADE.items()
    for name, values in bad.items()
    for value in values
]


@pytest.mark.parametrize("make, arguments, name", MADE_CASES)
def test_schedulers_policies_searches_and_rewards_name_what_is_wrong(make, arguments, name):
    with pytest.raises((TypeError, ValueError), match=f"`{name}"):
        make(**arguments)


def test_thresholds_and_margins_may_be_infinite():
    policy = RewardRoutedSink(quality_threshold=-math.inf, transition_threshold=np.float64("inf"))
    assert (policy.quality_threshold, policy.transition_threshold) == (-math.inf, math.inf)
    assert EarlyStop(BeamSearch(), margin=math.inf).margin == math.inf


@pytest.mark.parametrize("names", [("clip", "clip.large"), ("a.b", "a", "c"), ("", ".a")])
def test_monitors_whose_parts_could_share_a_name_are_refused(toy_pipeline, embeds, names):
    with pytest.raises(ValueError, match="`monitors` has .* would be recorded as"):
        toy_pipeline(prompt_embeds=embeds, monitors=dict.fromkeys(names, brightness), num_frames=9)


def test_names_with_dots_that_no_part_could_have_are_fine(toy_pipeline, embeds):
    monitors = {"clip.small": brightness, "clip.large": contrast}
    trace = toy_pipeline(prompt_embeds=embeds, monitors=monitors, num_frames=9, num_beams=1, num_candidates=1).trace
    assert set(trace.monitors) == set(monitors)


def test_a_folder_that_holds_no_reward_is_told_with_the_argument(toy_pipeline, embeds, tmp_path):
    for name in ("image_reward", "video_reward"):
        with pytest.raises(ValueError, match=f"`{name}` cannot be loaded: .*is no converted reward"):
            toy_pipeline(prompt_embeds=embeds, num_frames=9, **{name: str(tmp_path)})
    with pytest.raises(ValueError, match=r"`monitors\['m'\]` cannot be loaded"):
        toy_pipeline(prompt_embeds=embeds, num_frames=9, monitors={"m": str(tmp_path)})


def test_encode_prompt_checks_its_arguments(reading_pipeline):
    for prompt in (3, [], [3], HALF_A_CHARACTER):
        with pytest.raises((TypeError, ValueError), match="`prompt`"):
            reading_pipeline.encode_prompt(prompt)
    for length in (0, 513, "512"):
        with pytest.raises((TypeError, ValueError), match="`max_sequence_length`"):
            reading_pipeline.encode_prompt("a cat", length)
    with pytest.raises(ValueError, match="`prompt` needs a text encoder"):
        parts().encode_prompt("a cat")
