"""Mistakes of the caller are told before any work: the argument, what was given, what is allowed."""

import pytest
import torch
from conftest import brightness, toy_transformer, toy_vae

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.rewards import Reward
from stream_t1.search import EMASink, RewardRoutedSink


def refuse_to_work(*_, **__):
    raise AssertionError("work was done before the arguments were checked")


@pytest.fixture
def checked(toy_pipeline, embeds):
    """A call that fails if the transformer is reached."""
    handle = toy_pipeline.transformer.register_forward_pre_hook(refuse_to_work)
    yield lambda **arguments: toy_pipeline(**{"prompt_embeds": embeds, "num_frames": 45, **arguments})
    handle.remove()


CASES = {
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
        {"num_videos_per_prompt": 3, "image_reward": brightness},
        ValueError,
        "`num_videos_per_prompt` is 3.*`num_beams`, 2",
    ),
    "prompt and embeds": ({"prompt": "a circle"}, ValueError, "both `prompt` and `prompt_embeds`"),
    "neither": ({"prompt_embeds": None}, ValueError, "neither `prompt` nor `prompt_embeds`"),
    "prompt type": ({"prompt": 5, "prompt_embeds": None}, TypeError, "`prompt` is 5"),
    "empty prompts": ({"prompt": [], "prompt_embeds": None}, TypeError, "one or more strings"),
    "no text encoder": ({"prompt": "a circle", "prompt_embeds": None}, ValueError, "text encoder.*`prompt_embeds`"),
    "embeds shape": ({"prompt_embeds": torch.zeros(6, 8)}, ValueError, r"`prompt_embeds` has shape \(6, 8\)"),
    "noise of a search": (
        {"latents": torch.zeros(1, 4, 12, 2, 2), "image_reward": brightness},
        ValueError,
        "`num_beams=1, num_candidates=1`",
    ),
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
    "reward": ({"image_reward": 3}, TypeError, "`image_reward` is a int.*callable"),
    "generators": ({"generator": [torch.Generator()] * 2}, ValueError, "`generator` is a list of 2.*1 prompts"),
    "steps": ({"num_inference_steps": 12}, ValueError, "`num_inference_steps` is 12;.*1 to 8"),
    "negative steps": ({"num_inference_steps": -1}, ValueError, "`num_inference_steps` is -1;.*1 to 8"),
    "no videos": ({"num_videos_per_prompt": 0}, ValueError, "`num_videos_per_prompt` is 0; it must be 1 or more"),
    "videos type": ({"num_videos_per_prompt": 1.0}, TypeError, "`num_videos_per_prompt` is 1.0"),
    "height zero": ({"height": 0}, ValueError, "`height` is 0.*Use 16"),
    "height type": ({"height": 16.0}, TypeError, "`height` is 16.0, a float"),
    "num_frames type": ({"num_frames": "21"}, TypeError, "`num_frames` is '21', a str"),
    "no prompts": ({"prompt_embeds": torch.zeros(0, 6, 8)}, ValueError, r"`prompt_embeds`.*1 or more"),
    "text dim": ({"prompt_embeds": torch.zeros(1, 6, 9)}, ValueError, r"`prompt_embeds`.*tokens, 8\)"),
    "embeds type": ({"prompt_embeds": [0.0]}, TypeError, "`prompt_embeds` is a list"),
    "noise type": ({"latents": 0, "num_beams": 1, "num_candidates": 1}, TypeError, "`latents` is a int"),
    "generator type": ({"generator": 3}, TypeError, "`generator` is 3; it must be a Generator"),
    "reward prompt type": ({"reward_prompt": 5}, TypeError, "`reward_prompt` is 5; it must be a str"),
    "beta type": ({"noise_correlation": "a"}, TypeError, "`noise_correlation` is 'a'"),
}


@pytest.mark.parametrize("arguments, error, message", CASES.values(), ids=CASES.keys())
def test_mistakes_are_told_before_any_work(checked, arguments, error, message):
    with pytest.raises(error, match=message):
        checked(**arguments)


def test_noise_of_the_wrong_shape_is_refused(checked):
    with pytest.raises(ValueError, match=r"`latents` has shape \(1, 4, 9, 2, 2\).*\(1, 4, 12, 2, 2\)"):
        checked(latents=torch.zeros(1, 4, 9, 2, 2), num_beams=1, num_candidates=1)


def test_a_reward_that_reads_the_prompt_needs_words(checked):
    with pytest.raises(ValueError, match="`video_reward` reads the prompt.*`reward_prompt"):
        checked(video_reward=Reward())


class Bare:
    """A policy without the base class."""

    positions = "rotary"

    def route(self, short_scores, long_scores):
        return None

    def evict(self, sinks, chunk, route):
        return sinks


def test_a_policy_with_unknown_positions_is_refused(checked):
    with pytest.raises(ValueError, match="`memory.positions` is 'rotary'.*\"relative\""):
        checked(memory=Bare())


def test_a_policy_that_gives_no_route_is_told_so(toy_pipeline, embeds):
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
    with pytest.raises(ValueError, match="`sink_frames` is 0, and EMASink"):
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
