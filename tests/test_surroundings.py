"""A seed's video, a reward's score and a prompt's words depend on nothing around the call."""

import sys
from contextlib import contextmanager

import pytest
import torch
from conftest import brightness, contrast
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from tiny_rewards import clips, hpsv3_reward, save_tiny_clip, save_tiny_dino, videoalign_reward

from stream_t1.demo.rewards import LegibilityReward, MotionReward
from stream_t1.models import rotary
from stream_t1.models.text import clean_text
from stream_t1.rewards import (
    BackgroundConsistencyReward,
    CLIPScoreReward,
    DynamicDegreeReward,
    SubjectConsistencyReward,
    WeightedReward,
)

DTYPES = [torch.float64, torch.bfloat16]


@contextmanager
def surroundings(dtype=torch.float32, device=None):
    """Other defaults of torch, and no table that was made under the usual ones."""
    rotary._axis_turns.cache_clear()
    torch.set_default_dtype(dtype)
    torch.set_default_device(device)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        rotary._axis_turns.cache_clear()


def video(pipe, **arguments):
    rewards = {"image_reward": brightness, "video_reward": contrast}
    generator = torch.Generator("cpu").manual_seed(5)
    given = {"prompt": "two cats", "num_frames": 33, "generator": generator, "output_type": "pt", "reward_window": 2}
    return pipe(**given, **rewards | arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_default_dtype_changes_no_bit_of_a_video(reading_pipeline, dtype):
    usual = video(reading_pipeline)
    with surroundings(dtype):
        other = video(reading_pipeline)
    assert torch.equal(usual.frames, other.frames)
    assert [chunk.candidates for chunk in usual.trace.chunks] == [chunk.candidates for chunk in other.trace.chunks]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_reward_that_changes_the_default_dtype_in_mid_run_changes_no_bit(reading_pipeline, dtype):
    def switching(frames, prompt, fps):
        if frames.shape[1] > 9:
            torch.set_default_dtype(dtype)
        return contrast(frames, prompt, fps)

    usual = video(reading_pipeline)
    with surroundings():
        other = video(reading_pipeline, video_reward=switching)
    assert torch.equal(usual.frames, other.frames)


def test_the_default_device_is_not_used(reading_pipeline):
    usual = video(reading_pipeline)
    with surroundings(device="meta"):
        other = video(reading_pipeline)
    assert torch.equal(usual.frames, other.frames)


@pytest.fixture(scope="module")
def reward_folders(tmp_path_factory):
    clip, dino = (tmp_path_factory.mktemp(name) for name in ("clip", "dino"))
    save_tiny_clip(clip)
    save_tiny_dino(dino)
    return clip, dino


REWARDS = {
    "clip": lambda clip, dino: CLIPScoreReward.from_pretrained(clip),
    "background": lambda clip, dino: BackgroundConsistencyReward.from_pretrained(clip),
    "subject": lambda clip, dino: SubjectConsistencyReward.from_pretrained(dino),
    "hpsv3": lambda clip, dino: hpsv3_reward(),
    "videoalign": lambda clip, dino: videoalign_reward(),
    "motion": lambda clip, dino: DynamicDegreeReward(),
    "the demo's image reward": lambda clip, dino: LegibilityReward(),
    "the demo's video reward": lambda clip, dino: MotionReward(),
    "ranks": lambda clip, dino: WeightedReward([brightness, contrast], [0.3, 0.7], normalize="rank"),
    "z-scores": lambda clip, dino: WeightedReward([brightness, contrast], [0.3, 0.7], normalize="zscore"),
}


@pytest.mark.parametrize("build", REWARDS.values(), ids=REWARDS)
def test_shipped_rewards_score_alike_under_other_defaults(reward_folders, build):
    reward, frames = build(*reward_folders), clips(2, 9)
    with torch.inference_mode():
        usual = reward(frames, ["a cat", "two cats"], 16.0).score
        for other in ({"dtype": torch.float64}, {"dtype": torch.bfloat16}, {"device": "meta"}):
            with surroundings(**other):
                assert torch.equal(reward(frames, ["a cat", "two cats"], 16.0).score, usual)


WORDS = ["a  cat\n walks", "the cat\u00e2\u20ac\u2122s hat", "a &amp;amp; b", "\uff21 cat", " caf\u0065\u0301 "]


@pytest.mark.parametrize("text", WORDS)
def test_a_prompt_is_cleaned_as_the_model_was_trained(text):
    assert clean_text(text) == prompt_clean(text)  # diffusers' has ftfy here


def test_the_words_that_are_read_do_not_depend_on_what_is_installed():
    assert [clean_text(text) for text in WORDS] == ["a cat walks", "the cat's hat", "a & b", "A cat", "caf\u00e9"]


def test_without_ftfy_a_prompt_is_refused_before_any_work_and_embeddings_are_not(
    reading_pipeline, embeds, monkeypatch
):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    handle = reading_pipeline.text_encoder.register_forward_pre_hook(lambda *_: pytest.fail("work was done"))
    with pytest.raises(ImportError, match="`pip install ftfy`"):
        reading_pipeline("two cats", num_frames=9)
    reading_pipeline(prompt_embeds=embeds, num_frames=9, num_beams=1, num_candidates=1)
    handle.remove()


def test_a_cut_prompt_is_said_once_with_what_is_lost(reading_pipeline, caplog):
    arguments = {"num_frames": 9, "num_beams": 1, "num_candidates": 1, "max_sequence_length": 4}
    reading_pipeline(["a red circle moving left", "a cat", "a red circle moving left"], **arguments)
    (said,) = [record.message for record in caplog.records if "max_sequence_length" in record.message]
    ids = reading_pipeline.tokenizer("a red circle moving left").input_ids
    lost = reading_pipeline.tokenizer.decode(ids[3:], skip_special_tokens=True)
    assert said.count("is not read") == 1 and f"4 tokens: of {len(ids)} tokens" in said and repr(lost) in said


def test_a_prompt_that_fits_is_not_called_cut(reading_pipeline, caplog):
    length = len(reading_pipeline.tokenizer("a cat").input_ids)
    reading_pipeline.encode_prompt("a cat", max_sequence_length=length)
    assert "is cut" not in caplog.text
    reading_pipeline.encode_prompt("a cat", max_sequence_length=length - 1)
    assert "is cut" in caplog.text
