"""Mistakes of the caller are told before any work: the argument, what was given, what is allowed."""

import json

import pytest
import torch
from conftest import brightness, nothing_done, toy_transformer, toy_vae

from stream_t1 import FewStepFlowMatchScheduler, PromptTimeline, StreamT1Pipeline
from stream_t1.rewards import Reward
from stream_t1.search import EMASink, RewardRoutedSink, StaticSink

RELATIVE = StaticSink(positions="relative")


class NoRecache(StaticSink):
    recache_modes = ("none",)


class OddRecache(StaticSink):
    recache_modes = "none"


CASES = {
    "a prompt beyond the video": (
        {"prompt": PromptTimeline({0: "a", 45: "b"})},
        ValueError,
        "`prompt` has frame 45, and the last chunk of this video begins at frame 33. Use 33 or less",
    ),
    "two prompts at one chunk": (
        {"prompt": PromptTimeline({0: "a", 10: "b", 20: "c"})},
        ValueError,
        "`prompt` has two frames, 20 and one before, .* begins at frame 21. Use 33 or more",
    ),
    "timeline of other embeddings": (
        {"prompt": PromptTimeline({0: torch.zeros(1, 6, 9)})},
        ValueError,
        r"`prompt_embeds` of `prompt`, from chunk 0 on, has shape \(1, 6, 9\); it must be \(1, tokens, 8\)",
    ),
    "prompts of two lengths": (
        {"prompt": PromptTimeline({0: "a", 21: torch.zeros(1, 6, 8)}), "transition": 2},
        ValueError,
        "`transition` is 2, .* chunk 2 have 512 and 6 tokens",
    ),
    "a dict of prompts": ({"prompt": {0: "a", 21: "b"}}, TypeError, "`prompt` is .*`PromptTimeline`"),
    "transition": ({"transition": -1}, ValueError, "`transition` is -1; it must be 0 or more"),
    "recache": ({"recache": "some"}, ValueError, "`recache` is 'some'.*'window', 'all', 'none', 'flush'"),
    "recache of a policy": (
        {"recache": "all", "memory": NoRecache()},
        ValueError,
        "`recache` is 'all'; NoRecache can do 'none'",
    ),
    "a policy's own recache": ({"memory": OddRecache()}, ValueError, "`recache_modes` of OddRecache is 'none'"),
    "cut with absolute positions": (
        {"prompt": PromptTimeline({0: "a"}, cuts=(21,))},
        ValueError,
        r'`cuts` of `prompt`.*RewardRoutedSink\(positions="relative"\)',
    ),
    "cut beyond the video": (
        {"prompt": PromptTimeline({0: "a"}, cuts=(45,)), "memory": RELATIVE},
        ValueError,
        "`cuts` has frame 45",
    ),
    "reward words beyond the video": (
        {"reward_prompt": PromptTimeline({0: "a", 45: "b"})},
        ValueError,
        "`reward_prompt` has frame 45",
    ),
    "reward words that are embeddings": (
        {"reward_prompt": PromptTimeline({0: torch.zeros(1, 6, 8)})},
        TypeError,
        "`reward_prompt` is .*`PromptTimeline` of strings",
    ),
    "num_frames between": ({"num_frames": 50}, ValueError, "`num_frames` is 50.*12 k - 3. Use 45 or 57"),
    "num_frames small": ({"num_frames": 5}, ValueError, "`num_frames` is 5;.*Use 9"),
    "num_frames zero": ({"num_frames": 0}, ValueError, "Use 9"),
    "height": ({"height": 40}, ValueError, "`height` is 40.*multiple of 16.*32 or 48"),
    "width": ({"width": 8}, ValueError, "`width` is 8.*multiple of 16.*Use 16"),
    "num_beams": ({"num_beams": 0}, ValueError, "`num_beams` is 0; it must be 1 or more"),
    "num_candidates": ({"num_candidates": -1}, ValueError, "`num_candidates` is -1"),
    "num_candidates type": ({"num_candidates": 1.5}, TypeError, "`num_candidates` is 1.5.*whole number"),
    "reward_window": ({"reward_window": 0}, ValueError, "`reward_window` is 0"),
    "beta": ({"noise_correlation": -1.0}, ValueError, "`noise_correlation` is -1.0.*between -1 and 1"),
    "cap": ({"short_weight_cap": 1.5}, ValueError, r"`short_weight_cap` is 1.5.*\[0, 1\]"),
    "videos": (
        {"num_videos_per_prompt": 3},
        ValueError,
        "`num_videos_per_prompt` is 3.*`num_beams`, 2|`stream` is for one video",
    ),
    "prompt and embeds": ({"prompt_embeds": torch.zeros(1, 6, 8)}, ValueError, "both `prompt` and `prompt_embeds`"),
    "neither": ({"prompt": None}, ValueError, "neither `prompt` nor `prompt_embeds`"),
    "prompt type": ({"prompt": 5}, TypeError, "`prompt` is 5"),
    "empty prompts": ({"prompt": []}, TypeError, "one or more strings"),
    "embeds shape": (
        {"prompt": None, "prompt_embeds": torch.zeros(6, 8)},
        ValueError,
        r"`prompt_embeds` has shape \(6, 8\)",
    ),
    "noise shape": (
        {"latents": torch.zeros(1, 4, 9, 2, 2), "num_beams": 1, "num_candidates": 1},
        ValueError,
        r"`latents` has shape \(1, 4, 9, 2, 2\).*\(1, 4, 12, 2, 2\)",
    ),
    "noise of a search": ({"latents": torch.zeros(1, 4, 12, 2, 2)}, ValueError, "`num_beams=1, num_candidates=1`"),
    "policy": ({"memory": "routed"}, TypeError, "`memory` is a str.*RewardRoutedSink"),
    "policy class": ({"memory": RewardRoutedSink}, TypeError, "`memory` is the class RewardRoutedSink"),
    "seed mode": (
        {"candidate_seeds": "fixed"},
        ValueError,
        "`candidate_seeds` is 'fixed'.*'independent', 'reference'",
    ),
    "normalization": ({"score_normalization": "max"}, ValueError, "`score_normalization` is 'max'.*'zscore', 'rank'"),
    "selection": ({"final_selection": "best"}, ValueError, "`final_selection` is 'best'"),
    "output type": ({"output_type": "mp4"}, ValueError, "`output_type` is 'mp4'.*np, pt, pil, latent"),
    "callback inputs": (
        {"callback_on_step_end_tensor_inputs": ["noise"]},
        ValueError,
        "`callback_on_step_end_tensor_inputs`.*latents",
    ),
    "video reward": ({"video_reward": 3}, TypeError, "`video_reward` is a int.*callable"),
    "monitors": ({"monitors": [Reward()]}, TypeError, "`monitors` is .*must be a dict of names to rewards"),
    "monitor": ({"monitors": {"bright": 3}}, TypeError, r"`monitors\['bright'\]` is a int.*callable"),
    "max_lag": ({"max_lag": -1}, ValueError, "`max_lag` is -1; it must be 0 or more"),
    "half a step": ({"num_inference_steps": 2.5}, TypeError, "`num_inference_steps` is 2.5, a float"),
    "levels": ({"sigmas": [2.0]}, ValueError, "`sigmas`"),
    "no levels": ({"sigmas": []}, ValueError, r"`sigmas` is \[\]; .* 1 to 8 numbers"),
    "text length": ({"max_sequence_length": 0}, ValueError, "`max_sequence_length` is 0"),
    "step callback": ({"callback_on_step_end": 3}, TypeError, "`callback_on_step_end` is 3"),
    "chunk callback": ({"callback_on_chunk_end": 3}, TypeError, "`callback_on_chunk_end` is 3"),
    "transformer's": ({"attention_kwargs": 3}, TypeError, "`attention_kwargs` is 3"),
    "reward": ({"image_reward": 3}, TypeError, "`image_reward` is a int.*callable"),
    "generators": ({"generator": [torch.Generator()] * 2}, ValueError, "`generator` is a list of 2.*1 prompts"),
    "steps": ({"num_inference_steps": 12}, ValueError, "`num_inference_steps` is 12;.*1 to 8"),
    "negative steps": ({"num_inference_steps": -1}, ValueError, "`num_inference_steps` is -1;.*1 to 8"),
    "no videos": ({"num_videos_per_prompt": 0}, ValueError, "`num_videos_per_prompt` is 0; it must be 1 or more"),
    "videos type": ({"num_videos_per_prompt": 1.0}, TypeError, "`num_videos_per_prompt` is 1.0"),
    "height zero": ({"height": 0}, ValueError, "`height` is 0.*Use 16"),
    "height type": ({"height": 16.0}, TypeError, "`height` is 16.0, a float"),
    "num_frames type": ({"num_frames": "21"}, TypeError, "`num_frames` is '21', a str"),
    "no prompts": ({"prompt": None, "prompt_embeds": torch.zeros(0, 6, 8)}, ValueError, r"`prompt_embeds`.*1 or more"),
    "text dim": ({"prompt": None, "prompt_embeds": torch.zeros(1, 6, 9)}, ValueError, r"`prompt_embeds`.*tokens, 8\)"),
    "embeds type": ({"prompt": None, "prompt_embeds": [0.0]}, TypeError, "`prompt_embeds` is a list"),
    "noise type": ({"latents": 0, "num_beams": 1, "num_candidates": 1}, TypeError, "`latents` is a int"),
    "generator type": ({"generator": 3}, TypeError, "`generator` is 3; it must be a Generator"),
    "reward prompt type": ({"reward_prompt": 5}, TypeError, "`reward_prompt` is 5; it must be a str"),
    "beta type": ({"noise_correlation": "a"}, TypeError, "`noise_correlation` is 'a'"),
}


STREAM_CASES = {
    "no end": ({"num_frames": None}, "or none and a `horizon`.*neither is given"),
    "two ends": ({"horizon": 5}, "or none and a `horizon`.*both are given"),
    "horizon": ({"num_frames": None, "horizon": 0, "memory": RELATIVE}, "`horizon` is 0; it must be 1 or more"),
    "endless positions": ({"num_frames": None, "horizon": 5}, "`num_frames` is None, an endless stream.*relative"),
    "endless noise": (
        {"num_frames": None, "horizon": 5, "memory": RELATIVE, "latents": torch.zeros(1, 4, 12, 2, 2)},
        "`latents` is the noise of a whole video",
    ),
    "videos": ({"num_videos_per_prompt": 2}, "one video of one prompt"),
    "prompts": ({"prompt": ["a circle", "a cross"]}, "one video of one prompt"),
}


@pytest.fixture
def asked(tmp_path):
    """Arguments of a right call, but for those given; the reward that they name says so when it is loaded."""
    config = {"kind": "loaded before all was checked", "model": {}, "reward_tokens": []}
    (tmp_path / "reward_config.json").write_text(json.dumps(config))
    folder = str(tmp_path)
    rewards = {"image_reward": folder, "video_reward": folder, "monitors": {"watched": folder}}
    return lambda **arguments: {"prompt": "a circle", "num_frames": 45, **rewards, **arguments}


@pytest.mark.parametrize("method", ["__call__", "stream"])
@pytest.mark.parametrize("arguments, error, message", CASES.values(), ids=CASES.keys())
def test_mistakes_are_refused_before_any_work(reading_pipeline, asked, arguments, error, message, method):
    generator = torch.Generator().manual_seed(0)
    with nothing_done(reading_pipeline, generator), pytest.raises(error, match=message):
        getattr(reading_pipeline, method)(**asked(**{"generator": generator, **arguments}))


@pytest.mark.parametrize("arguments, message", STREAM_CASES.values(), ids=STREAM_CASES.keys())
def test_mistakes_of_a_stream_are_refused_before_any_work(reading_pipeline, asked, arguments, message):
    with nothing_done(reading_pipeline), pytest.raises(ValueError, match=message):
        reading_pipeline.stream(**asked(**arguments))


NO_PROMPT_NEEDED = {name: case for name, case in CASES.items() if name != "neither"}


@pytest.mark.parametrize("arguments, error, message", NO_PROMPT_NEEDED.values(), ids=NO_PROMPT_NEEDED.keys())
def test_an_estimate_refuses_what_a_call_refuses(reading_pipeline, asked, arguments, error, message):
    with nothing_done(reading_pipeline), pytest.raises(error, match=message):
        reading_pipeline.estimate(**asked(**arguments))


def test_rewards_that_a_right_call_names_are_loaded(reading_pipeline, named_reward):
    folder, loads = named_reward
    reading_pipeline(prompt="a circle", num_frames=9, image_reward=folder, video_reward=False)
    assert [str(path) for path in loads] == [folder]


class Unwilling(Reward):
    """A reward that can't serve the search."""

    reads_prompt = False

    def check_request(self, prompts, num_beams):
        raise ValueError("this reward serves no search")


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"video_reward": Reward()}, "`video_reward` reads the prompt.*`reward_prompt"),
        ({"monitors": {"words": Reward()}}, r"`monitors\['words'\]` reads the prompt"),
        ({"video_reward": Unwilling()}, "serves no search"),
    ],
)
def test_a_reward_that_cannot_serve_the_call_is_refused_before_others_are_loaded(
    reading_pipeline, asked, embeds, arguments, message
):
    with nothing_done(reading_pipeline), pytest.raises(ValueError, match=message):
        reading_pipeline(**asked(prompt=None, prompt_embeds=embeds, **arguments))


def test_words_without_a_text_encoder_are_refused(toy_pipeline, asked):
    with nothing_done(toy_pipeline), pytest.raises(ValueError, match="text encoder.*`prompt_embeds`"):
        toy_pipeline(**asked())


def test_a_tiling_vae_is_refused_before_rewards_are_loaded(asked, embeds):
    pipe = build(default_height=16, default_width=16)
    pipe.vae.enable_tiling()
    with nothing_done(pipe), pytest.raises(ValueError, match="VAE tiling is on"):
        pipe(**asked(prompt=None, prompt_embeds=embeds))


def test_a_reward_is_refused_without_a_vae_before_it_is_loaded(asked, embeds):
    pipe = StreamT1Pipeline(None, None, toy_transformer(), None, FewStepFlowMatchScheduler())
    arguments = asked(prompt=None, prompt_embeds=embeds, height=16, width=16, output_type="latent")
    with nothing_done(pipe), pytest.raises(ValueError, match="`image_reward` reads pixels.*no VAE"):
        pipe(**arguments)


class Bare:
    """A policy without the base class."""

    positions = "rotary"

    def route(self, short_scores, long_scores):
        return None

    def evict(self, sinks, chunk, route):
        return sinks


def test_a_policy_with_unknown_positions_is_refused(reading_pipeline, asked):
    with nothing_done(reading_pipeline), pytest.raises(ValueError, match="`memory.positions` is 'rotary'.*relative"):
        reading_pipeline(**asked(memory=Bare()))


def test_a_policy_that_gives_no_route_is_refused(toy_pipeline, embeds):
    policy = Bare()
    policy.positions = "absolute"
    with pytest.raises(ValueError, match="`route` of Bare gave None; .*discard, ema, append"):
        toy_pipeline(prompt_embeds=embeds, num_frames=21, memory=policy)


def build(**config):
    return StreamT1Pipeline(None, None, toy_transformer(), toy_vae(z_dim=4), FewStepFlowMatchScheduler(), **config)


@pytest.mark.parametrize(
    "config, message",
    [
        ({"window_frames": 3}, "`window_frames` is 3; it counts the first sinks.*6 or more"),
        ({"window_frames": 10}, "`window_frames` is 10; .*multiple of `chunk_frames`, 3. Use 9 or 12"),
        ({"sink_frames": 4}, "`sink_frames` is 4"),
        ({"sink_frames": -3}, "`sink_frames` is -3; it must be 0 or more"),
        ({"chunk_frames": 0}, "`chunk_frames` is 0; it must be 1 or more"),
        ({"fps": 0}, "`fps` is 0"),
    ],
)
def test_windows_that_hold_no_chunk_are_refused(config, message):
    with pytest.raises(ValueError, match=message):
        build(**config)


def test_a_policy_that_averages_is_refused_without_a_sink(embeds):
    pipe = build(sink_frames=0, default_height=16, default_width=16)
    with nothing_done(pipe), pytest.raises(ValueError, match="`sink_frames` is 0, and EMASink"):
        pipe(prompt_embeds=embeds, num_frames=9, memory=EMASink())


def test_pixels_without_a_vae_are_refused(embeds):
    pipe = StreamT1Pipeline(None, None, toy_transformer(), None, FewStepFlowMatchScheduler())
    arguments = {"prompt_embeds": embeds, "num_frames": 9, "height": 16, "width": 16}
    with pytest.raises(ValueError, match='no VAE; use "latent"'):
        pipe(**arguments)
    with pytest.raises(ValueError, match="`image_reward` reads pixels, and this pipeline has no VAE"):
        pipe(**arguments, output_type="latent", image_reward=brightness)
    plain = pipe(**arguments, output_type="latent", num_beams=1, num_candidates=1)
    assert plain.frames.shape == (1, 4, 3, 2, 2)


def test_a_pipeline_without_transformer_only_encodes(embeds):
    pipe = StreamT1Pipeline(None, None, None, None, FewStepFlowMatchScheduler())
    with pytest.raises(ValueError, match="no transformer"):
        pipe(prompt_embeds=embeds)
