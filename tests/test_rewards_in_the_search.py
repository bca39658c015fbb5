"""Shipped rewards in the pipeline: as components, loaded by name, offloaded, gated."""

import json

import pytest
import torch
from conftest import brightness, contrast, nothing_done, toy_transformer, toy_vae
from tiny_rewards import hpsv3_reward, save_reward, videoalign_reward

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.rewards import ExposureReward, GatedReward, HPSv3Reward, VideoAlignReward, loading

SEARCH = {"num_frames": 21, "num_beams": 2, "num_candidates": 2, "height": 32, "width": 32, "output_type": "pt"}


def seeded():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("rewards")
    return {
        "image_reward": str(save_reward(hpsv3_reward(), root / "hpsv3")),
        "video_reward": str(save_reward(videoalign_reward(), root / "videoalign")),
    }


def test_a_search_by_both_reward_models(toy_pipeline, embeds, folders):
    output = toy_pipeline(prompt_embeds=embeds, reward_prompt="a dog", generator=seeded(), **SEARCH, **folders)
    first, second = output.trace.chunks
    names = {"image.mu", "image.sigma", *(f"video.{part}{raw}" for part in ("VQ", "MQ", "TA") for raw in ("", "_raw"))}
    assert all(set(candidate.parts) == names for chunk in (first, second) for candidate in chunk.candidates)
    assert len({candidate.score for candidate in second.candidates}) == 4
    again = toy_pipeline(
        prompt_embeds=embeds,
        reward_prompt="a dog",
        generator=seeded(),
        image_reward=hpsv3_reward(),
        video_reward=videoalign_reward(),
        **SEARCH,
    )
    assert torch.equal(again.frames, output.frames)


def test_converted_folders_are_taken_instead_of_components(toy_pipeline, folders, tmp_path):
    pipe = StreamT1Pipeline(**{**toy_pipeline.components, **folders})
    assert isinstance(pipe.image_reward, HPSv3Reward) and isinstance(pipe.video_reward, VideoAlignReward)
    toy_pipeline.save_pretrained(tmp_path)
    loaded = StreamT1Pipeline.from_pretrained(tmp_path, **folders)
    assert isinstance(loaded.image_reward, HPSv3Reward) and isinstance(loaded.video_reward, VideoAlignReward)
    assert loaded.to(torch.bfloat16).video_reward.dtype == torch.bfloat16
    with pytest.raises(ValueError, match="is no folder here|no converted reward"):
        StreamT1Pipeline(**{**toy_pipeline.components, "image_reward": str(tmp_path)})


def test_a_converted_reward_watches_by_its_folder(toy_pipeline, embeds, folders):
    watch = {"watched": folders["video_reward"]}
    rewards = {"image_reward": brightness, "video_reward": contrast}
    output = toy_pipeline(prompt_embeds=embeds, reward_prompt="a dog", monitors=watch, **SEARCH, **rewards)
    assert [len(values) for values in output.trace.monitors["watched.VQ"]] == [2, 2]


def test_a_reward_of_a_hub_id_remembers_it_for_saved_pipelines(toy_pipeline, folders, monkeypatch):
    monkeypatch.setattr(loading, "snapshot_download", lambda name, **_: folders["image_reward"])
    toy_pipeline.image_reward = "org/hpsv3"
    assert toy_pipeline.image_reward.source == "org/hpsv3"
    assert json.loads(toy_pipeline.to_json_string())["reward_sources"] == {"image_reward": "org/hpsv3"}
    toy_pipeline.video_reward = folders["video_reward"]  # a path says nothing elsewhere
    assert toy_pipeline.config.reward_sources == {"image_reward": "org/hpsv3"}


@pytest.fixture
def as_accelerator(monkeypatch):
    """The CPU instead of an accelerator, for modes that require one."""
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("cpu"))


@pytest.mark.parametrize("mode", ["model", "group"])
def test_offload_modes_bring_rewards_for_a_call_and_take_them_away_after_it(embeds, folders, mode, as_accelerator):
    models = (toy_transformer(), toy_vae(z_dim=4))  # hooks stay on them
    pipe = StreamT1Pipeline(None, None, *models, FewStepFlowMatchScheduler(), **folders)
    pipe.set_progress_bar_config(disable=True)
    if mode == "group":
        pipe.enable_group_offload(torch.device("cpu"), offload_type="leaf_level")
    else:
        pipe.enable_model_cpu_offload(device="cpu")
    moves = {"image_reward": [], "video_reward": []}
    for name, seen in moves.items():
        reward = getattr(pipe, name)
        assert not any(hasattr(module, "_hf_hook") for module in reward.modules())
        reward._move = seen.append
    pipe(prompt_embeds=embeds, reward_prompt="a dog", generator=seeded(), **SEARCH)
    assert [device.type for device in moves["image_reward"]] == ["cpu"] * 4  # there and back for two chunks
    assert len(moves["video_reward"]) == 6  # and for the last beams


def test_sequential_offload_takes_rewards_whole(as_accelerator):
    pipe = StreamT1Pipeline(None, None, None, None, FewStepFlowMatchScheduler(), image_reward=hpsv3_reward())
    pipe.enable_sequential_cpu_offload(device="cpu")
    moves = []
    pipe.image_reward._move = moves.append
    pipe.image_reward(torch.rand(1, 1, 3, 32, 32), ["a dog"])
    assert len(moves) == 2 and not any(hasattr(module, "_hf_hook") for module in pipe.image_reward.modules())


def test_a_prompt_with_a_token_of_the_models_own_is_refused_before_any_work(toy_pipeline, embeds):
    reward = hpsv3_reward()
    with nothing_done(toy_pipeline), pytest.raises(ValueError, match=r"contains <\|im_end\|>"):
        toy_pipeline(
            prompt_embeds=embeds,
            reward_prompt="a sign: <|im_end|>",
            image_reward=reward,
            video_reward=False,
            **SEARCH,
        )


def test_a_reward_on_looks_and_motion_alone_needs_no_words(toy_pipeline, embeds):
    reward = videoalign_reward(score=("VQ", "MQ"))
    output = toy_pipeline(prompt_embeds=embeds, image_reward=False, video_reward=reward, generator=seeded(), **SEARCH)
    assert all(candidate.lost is None for candidate in output.trace.chunks[-1].candidates)


def test_all_candidates_of_a_chunk_are_scored_in_one_call_as_bytes(toy_pipeline, embeds):
    class Seen(ExposureReward):
        def __call__(self, frames, prompt, fps=None):
            seen.append((tuple(frames.shape), frames.dtype))
            return super().__call__(frames, prompt, fps)

    seen = []
    toy_pipeline(prompt_embeds=embeds, image_reward=Seen(), video_reward=False, generator=seeded(), **SEARCH)
    assert seen == [((4, 9, 3, 32, 32), torch.uint8), ((4, 12, 3, 32, 32), torch.uint8)]


@pytest.mark.parametrize("normalization", [None, "zscore", "rank"])
def test_gated_out_candidates_are_neither_scored_nor_kept_and_the_trace_says_why(
    toy_pipeline, embeds, normalization, caplog
):
    shown = []

    def expensive(frames, prompt, fps):
        shown.append(len(frames))
        return contrast(frames, prompt, fps)

    gate = GatedReward(brightness, expensive, bound=1.0, at_least=2)  # nothing passes, so the two brightest go on
    output = toy_pipeline(
        prompt_embeds=embeds,
        image_reward=gate,
        video_reward=brightness,
        score_normalization=normalization,
        generator=seeded(),
        **SEARCH,
    )
    assert shown == [2, 2]
    for chunk in output.trace.chunks:
        out = [candidate for candidate in chunk.candidates if candidate.lost is not None]
        assert len(out) == 2 and all("gated out: brightness scored" in candidate.lost for candidate in out)
        assert all(candidate.kept == (candidate.lost is None) for candidate in chunk.candidates)
    assert "is lost" not in caplog.text


def test_a_gate_that_could_leave_too_few_is_refused_before_any_work(toy_pipeline, embeds):
    gate = GatedReward(brightness, contrast, bound=0.5, at_least=1)
    with nothing_done(toy_pipeline), pytest.raises(ValueError, match="at_least=2"):
        toy_pipeline(prompt_embeds=embeds, image_reward=gate, video_reward=False, **SEARCH)
