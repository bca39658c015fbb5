"""The memory policy that a model was trained for, kept in the pipeline's config."""

import json
from dataclasses import dataclass

import pytest
import torch
from conftest import brightness, contrast

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.search import EMASink, MemoryPolicy, RewardRoutedSink, SlidingWindow, StaticSink


def pipeline(models, **config):
    transformer, vae = models
    return StreamT1Pipeline(
        None, None, transformer, vae, FewStepFlowMatchScheduler(), default_height=16, default_width=16, **config
    )


def recorded_policy(pipe, embeds, **arguments):
    """The policy that the trace of a call records."""
    pipe.set_progress_bar_config(disable=True)
    output = pipe(
        prompt_embeds=embeds,
        num_frames=9,
        num_beams=1,
        num_candidates=1,
        image_reward=brightness,
        video_reward=contrast,
        output_type="latent",
        generator=torch.Generator().manual_seed(0),
        **arguments,
    )
    return output.trace.config["memory"]


@pytest.mark.parametrize(
    "policy",
    [
        SlidingWindow(),
        StaticSink(positions="relative"),
        EMASink(ema_decay=0.9, positions="absolute"),
        RewardRoutedSink(quality_threshold=0.5, max_sink_frames=9),
    ],
)
def test_a_policy_comes_back_from_a_saved_folder_and_is_what_a_call_uses(tmp_path, toy_models, embeds, policy):
    pipeline(toy_models, memory=policy).save_pretrained(tmp_path)
    kept = json.loads((tmp_path / "model_index.json").read_text())["memory"]
    assert kept.pop("policy") == type(policy).__name__ and kept == vars(policy)
    pipe = StreamT1Pipeline.from_pretrained(tmp_path)
    assert recorded_policy(pipe, embeds) == {"policy": type(policy).__name__, **vars(policy)}


def test_a_call_may_name_another_policy_and_none_is_the_methods_own(toy_models, embeds):
    assert recorded_policy(pipeline(toy_models), embeds)["policy"] == "RewardRoutedSink"
    pipe = pipeline(toy_models, memory={"policy": "EMASink", "ema_decay": 0.5})
    assert recorded_policy(pipe, embeds) == {"policy": "EMASink", "positions": "relative", "ema_decay": 0.5}
    assert recorded_policy(pipe, embeds, memory=SlidingWindow())["policy"] == "SlidingWindow"


@pytest.mark.parametrize(
    "memory, message",
    [
        ({"policy": "LastSink"}, "names the policy 'LastSink'; it must be one of SlidingWindow, StaticSink"),
        ({"ema_decay": 0.9}, "names the policy None"),
        ({"policy": "StaticSink", "ema_decay": 0.9}, "gives StaticSink ema_decay; it has positions"),
        ({"policy": "EMASink", "ema_decay": 2}, "`ema_decay` is 2"),
        (RewardRoutedSink(quality_threshold=float("inf")), "`quality_threshold` of `memory` is inf"),
    ],
)
def test_what_no_config_can_keep_is_refused(toy_models, memory, message):
    with pytest.raises(ValueError, match=message):
        pipeline(toy_models, memory=memory)


@dataclass(frozen=True)
class Own(MemoryPolicy):
    """A policy of the user's."""


def test_a_policy_of_ones_own_is_for_the_call(toy_models, embeds):
    with pytest.raises(TypeError, match="is a Own; a pipeline's config keeps SlidingWindow.*to the call"):
        pipeline(toy_models, memory=Own())
    with pytest.raises(TypeError, match="`memory` is a str, not a memory policy"):
        pipeline(toy_models, memory="StaticSink")
    assert recorded_policy(pipeline(toy_models), embeds, memory=Own())["policy"] == "Own"
