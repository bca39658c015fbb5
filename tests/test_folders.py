"""Folders: what is saved, and what can be loaded, where the package is installed."""

import json
import re
from pathlib import Path

import pytest
import torch
from conftest import brightness, contrast, toy_transformer, toy_vae
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel

import stream_t1
from stream_t1 import CausalWanTransformer3DModel, FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.__main__ import main
from stream_t1.demo import load_pipeline
from stream_t1.loaders.folder import model_index
from stream_t1.rewards.base import ModuleReward

ROOT = Path(stream_t1.__file__).parent
SIZE = {"default_height": 16, "default_width": 16}


def video(pipe: StreamT1Pipeline, **arguments) -> torch.Tensor:
    """A small search's videos; the same for the same models."""
    arguments = {"num_frames": 33, "output_type": "pt", "generator": torch.Generator().manual_seed(5)} | arguments
    pipe.set_progress_bar_config(disable=True)
    return pipe(image_reward=brightness, video_reward=contrast, **arguments).frames


def save_index(folder: Path, **changes) -> Path:
    """A folder with nothing but a `model_index.json`."""
    index = {name: value for name, value in {**model_index(), **changes}.items() if value is not None}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def stock_pipeline(toy_models):
    """A `WanPipeline`, with the scheduler of the published folders."""
    transformer = WanTransformer3DModel.from_config(toy_models[0].config).eval()
    transformer.load_state_dict(toy_models[0].state_dict())
    scheduler = UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction", flow_shift=3.0)
    return WanPipeline(
        tokenizer=None, text_encoder=None, transformer=transformer, vae=toy_models[1], scheduler=scheduler
    )


def test_a_saved_pipeline_loads_again_and_makes_the_same_video_bit_for_bit(toy_models, embeds, tmp_path):
    config = SIZE | {"window_frames": 9, "denoising_steps": (1000, 500)}
    saved = StreamT1Pipeline(None, None, *toy_models, FewStepFlowMatchScheduler(shift=3.0), **config)
    saved.save_pretrained(tmp_path)
    loaded = StreamT1Pipeline.from_pretrained(tmp_path)
    assert type(loaded.transformer) is CausalWanTransformer3DModel and loaded.scheduler.config.shift == 3.0
    assert list(loaded.config.denoising_steps) == [1000, 500] and loaded.config.window_frames == 9
    for output_type in ("pt", "latent"):
        pair = [video(pipe, prompt_embeds=embeds, output_type=output_type) for pipe in (saved, loaded)]
        assert torch.equal(*pair)


def test_unaligned_weights_give_the_same_latents_bit_for_bit(toy_pipeline, embeds):
    """Weights mapped from a file are unaligned, and the CPU's kernels would sum them in another order."""
    expected = video(toy_pipeline, prompt_embeds=embeds, output_type="latent")
    for model in (toy_pipeline.transformer, toy_pipeline.vae):
        for weight in model.parameters():
            weight.data = torch.cat((torch.zeros(1), weight.data.flatten()))[1:].view_as(weight)
    another = StreamT1Pipeline.from_pipe(toy_pipeline)
    assert torch.equal(video(another, prompt_embeds=embeds, output_type="latent"), expected)


def test_the_root_template_is_what_a_pipeline_with_all_components_writes(tmp_path):
    pipe = load_pipeline()
    pipe.save_pretrained(tmp_path)
    written = json.loads((tmp_path / "model_index.json").read_text())
    assert (
        written.pop("tokenizer")[1].removesuffix("Fast") == "T5Tokenizer"
    )  # transformers 4 and 5 name it differently
    template = model_index(default_height=64, default_width=64)
    assert template.pop("tokenizer") == ["transformers", "T5TokenizerFast"] and written == template
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} >= {
        name
        for name, entry in written.items()
        if isinstance(entry, list) and entry[0] in ("diffusers", "transformers")
    }


def test_the_template_has_no_room_for_unknown_keys():
    with pytest.raises(KeyError, match="has no chunk_size; it has _class_name"):
        model_index(chunk_size=3)


def test_a_saved_folder_holds_no_rewards_and_the_code_that_loads_it(toy_models, tmp_path):
    rewards = {"image_reward": brightness, "video_reward": torch.nn.Linear(2, 2)}
    StreamT1Pipeline(None, None, *toy_models, FewStepFlowMatchScheduler(), **rewards).save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["image_reward"] == index["video_reward"] == [None, None] and not (tmp_path / "video_reward").exists()
    assert StreamT1Pipeline.from_pretrained(tmp_path).video_reward is None
    for name in ("pipeline_stream_t1.py", "search/beam.py", "models/memory.py", "loaders/folder.py"):
        assert (tmp_path / name).read_text() == (ROOT / name).read_text()


def test_a_saved_folder_says_from_where_its_rewards_were_loaded(toy_models, embeds, tmp_path, caplog):
    reward = ModuleReward(torch.nn.Identity())
    reward.source = "org/hpsv3"  # as `from_pretrained` sets it for a Hub id
    StreamT1Pipeline(
        None, None, *toy_models, FewStepFlowMatchScheduler(), image_reward=reward, **SIZE
    ).save_pretrained(tmp_path)
    loaded = StreamT1Pipeline.from_pretrained(tmp_path)
    assert loaded.image_reward is None and loaded.config.reward_sources == {"image_reward": "org/hpsv3"}
    loaded(prompt_embeds=embeds, num_frames=9, video_reward=brightness, output_type="latent")
    assert "There is no `image_reward`. The pipeline was saved with the one of" in caplog.text
    assert "`image_reward='org/hpsv3'`" in caplog.text


def test_a_component_that_is_set_later_is_adapted_and_saved_under_its_stock_name(toy_pipeline, stock_pipeline):
    toy_pipeline.transformer = stock_pipeline.transformer
    toy_pipeline.scheduler = stock_pipeline.scheduler
    toy_pipeline.image_reward = torch.nn.Linear(2, 2)
    assert isinstance(toy_pipeline.transformer, CausalWanTransformer3DModel)
    assert isinstance(toy_pipeline.scheduler, FewStepFlowMatchScheduler)
    assert toy_pipeline.image_reward.reads_prompt is False
    index = json.loads(toy_pipeline.to_json_string())
    assert index["transformer"] == ["diffusers", "WanTransformer3DModel"] and index["image_reward"] == [None, None]


def test_from_pipe_takes_over_a_stock_pipeline_that_has_run_and_gives_it_back(
    stock_pipeline, toy_pipeline, embeds, caplog
):
    stock_pipeline.set_progress_bar_config(disable=True)
    size = {"height": 16, "width": 16, "num_frames": 9, "num_inference_steps": 2, "guidance_scale": 1.0}
    before = stock_pipeline(prompt_embeds=embeds, generator=torch.Generator().manual_seed(0), **size).frames
    taken = StreamT1Pipeline.from_pipe(stock_pipeline, **SIZE)
    assert taken.vae is stock_pipeline.vae and "flow" not in str(taken.scheduler.config)
    assert torch.equal(video(taken, prompt_embeds=embeds), video(toy_pipeline, prompt_embeds=embeds))
    again = StreamT1Pipeline.from_pipe(taken)
    assert again.transformer is taken.transformer and again.config.default_height == 16
    after = stock_pipeline(prompt_embeds=embeds, generator=torch.Generator().manual_seed(0), **size).frames
    assert before.shape == (1, 9, 16, 16, 3) and (before == after).all()


@pytest.mark.parametrize(
    "index, message",
    [
        (
            {"_class_name": "StableDiffusionPipeline"},
            "another pipeline, `StableDiffusionPipeline`. StreamT1Pipeline takes",
        ),
        ({"_class_name": "WanImageToVideoPipeline"}, "an image-to-video model, `WanImageToVideoPipeline`"),
        ({"_class_name": "WanPipeline", "transformer_2": ["diffusers", "WanTransformer3DModel"]}, "Wan 2.2 model"),
        ({"_class_name": "WanPipeline", "expand_timesteps": True}, "Wan 2.2 model"),
    ],
)
def test_folders_of_other_models_are_refused(tmp_path, index, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        StreamT1Pipeline.from_pretrained(save_index(tmp_path, **index))


def test_a_stock_wan_folder_is_a_base_also_when_it_names_absent_parts(stock_pipeline, embeds, toy_pipeline, tmp_path):
    stock_pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["transformer_2"] == [None, None]
    loaded = StreamT1Pipeline.from_pretrained(tmp_path, **SIZE)
    assert torch.equal(video(loaded, prompt_embeds=embeds), video(toy_pipeline, prompt_embeds=embeds))


def test_from_pipe_refuses_other_models(stock_pipeline):
    stock_pipeline.register_to_config(boundary_ratio=0.875)
    with pytest.raises(ValueError, match="of a Wan 2.2 model"):
        StreamT1Pipeline.from_pipe(stock_pipeline)


def test_parts_of_different_models_are_refused():
    with pytest.raises(ValueError, match="reads 36 channels and `vae` makes 4: they are of different models"):
        StreamT1Pipeline(None, None, toy_transformer(in_channels=36), toy_vae(z_dim=4), FewStepFlowMatchScheduler())


@pytest.mark.parametrize("missing", ["transformer/diffusion_pytorch_model.safetensors", "vae/config.json"])
def test_a_file_that_a_folder_lacks_is_named(toy_pipeline, tmp_path, missing):
    toy_pipeline.save_pretrained(tmp_path)
    (tmp_path / missing).unlink()
    with pytest.raises(OSError, match=Path(missing).name.removesuffix(".safetensors")):
        StreamT1Pipeline.from_pretrained(tmp_path)


def test_export_code_writes_the_code_alone(tmp_path, capsys):
    assert main(["export-code", str(tmp_path / "code")]) == 0
    files = {str(path.relative_to(tmp_path / "code")) for path in (tmp_path / "code").rglob("*") if path.is_file()}
    assert {"pipeline.py", "stream_t1.py", "pipeline_stream_t1.py", "rewards/base.py"} <= files
    assert all(name.endswith(".py") and "__init__" not in name for name in files - {"stream_t1_manifest.json"})
    assert f"{len(files)} files" in capsys.readouterr().out


def test_export_code_into_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert main(["export-code", str(tmp_path / "file")]) == 2
    assert "which is a file; give a folder" in capsys.readouterr().err and (tmp_path / "file").read_text() == "mine"
