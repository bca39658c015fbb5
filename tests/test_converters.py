"""Published layouts of the generators, converted: the same videos, the whole folder, what each was trained for."""

import json
import os

import pytest
import torch
from checkpoint_files import FSDP, original, other_weights, prefixed, save_base
from conftest import Case
from diffusers import FlowMatchEulerDiscreteScheduler, WanPipeline
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file
from test_reference_cases import TOLERANCE, relative_error, rollout, run

from stream_t1 import StreamT1Pipeline
from stream_t1.checkpoints import (
    cards,
    convert_causal_forcing,
    convert_fastvideo,
    convert_longlive,
    convert_reward_forcing,
    convert_self_forcing,
    convert_wan_transformer,
)
from stream_t1.checkpoints.layouts import GENERATORS
from stream_t1.search import EMASink

LAYOUTS = {
    "generator": lambda: {"generator": prefixed("model."), "generator_ema": prefixed("model.", other_weights())},
    "generator_ema": lambda: {"generator_ema": prefixed("model."), "step": 600},
    "generator_ema of FSDP": lambda: {"generator_ema": prefixed(f"model.{FSDP}")},
    "model": lambda: {"model": prefixed("model."), "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}},
    "flat": lambda: prefixed("model."),
    "flat, bare": original,
    "nested": lambda: {"state": {"generator": prefixed("model.")}},
    "FSDP inside": lambda: {"model": {k.replace("blocks.0.", f"blocks.0.{FSDP}"): v for k, v in original().items()}},
}


@pytest.fixture(scope="session")
def base(tmp_path_factory, reference_transformer):
    return save_base(tmp_path_factory.mktemp("wan") / "base", reference_transformer)


@pytest.fixture
def checkpoint(tmp_path):
    """Saves a layout as its file."""

    def save(layout: str):
        torch.save(LAYOUTS[layout](), tmp_path / "checkpoint.pt")
        return tmp_path / "checkpoint.pt"

    return save


def load(folder, case: Case) -> StreamT1Pipeline:
    """The folder's pipeline with the window and sinks of a reference case, which was made smaller."""
    window, sink = case.config["local_attn_size"], case.config["sink_size"]
    pipe = StreamT1Pipeline.from_pretrained(folder, window_frames=window, sink_frames=sink)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("layout", ["generator", "generator_ema of FSDP", "model"])
def test_longlive_reproduces_a_rollout_of_the_authors_code(base, checkpoint, tmp_path, layout):
    convert_longlive(tmp_path / "out", checkpoint(layout), lora=None, base=base)
    case = Case("rollouts/static_sink")
    videos = rollout(load(tmp_path / "out", case), case).frames
    assert all(relative_error(*pair) < TOLERANCE for pair in zip(videos, case.latents, strict=True))


@pytest.mark.parametrize("layout", ["generator_ema", "flat", "flat, bare"])
@pytest.mark.parametrize("convert", [convert_self_forcing, convert_causal_forcing])
def test_models_without_sinks_reproduce_self_forcing_with_their_own_policy(
    base, checkpoint, tmp_path, convert, layout
):
    convert(tmp_path / "out", checkpoint(layout), base=base)
    case = Case("policies/self_forcing")
    assert relative_error(run(load(tmp_path / "out", case), case, None).frames, case.latents) < TOLERANCE


def test_reward_forcing_reproduces_its_policy(base, checkpoint, tmp_path):
    convert_reward_forcing(tmp_path / "out", checkpoint("flat"), base=base)
    case = Case("policies/reward_forcing")
    output = run(load(tmp_path / "out", case), case, EMASink(ema_decay=case.config["ema_decay"]))
    assert relative_error(output.frames, case.latents) < TOLERANCE


@pytest.fixture
def fastvideo(base, tmp_path):
    """A diffusers folder under class names that diffusers lacks, as FastVideo publishes."""
    folder = tmp_path / "fastvideo"
    WanPipeline.from_pretrained(base).save_pretrained(folder)
    weights = folder / "transformer/diffusion_pytorch_model.safetensors"
    save_file(convert_wan_transformer(original()), weights)

    def rename(config_path, **changes):
        config = json.loads((folder / config_path).read_text())
        (folder / config_path).write_text(json.dumps(config | changes))

    rename("model_index.json", _class_name="WanCausalDMDPipeline", scheduler=["diffusers", "SelfForcingScheduler"])
    rename("transformer/config.json", _class_name="CausalWanTransformer3DModel", local_attn_size=-1, sink_size=0)
    return folder, rename


def test_fastvideos_folder_is_its_own_base(fastvideo, tmp_path):
    convert_fastvideo(tmp_path / "out", fastvideo[0])
    case = Case("policies/self_forcing")
    assert relative_error(run(load(tmp_path / "out", case), case, None).frames, case.latents) < TOLERANCE
    assert StreamT1Pipeline.from_pretrained(tmp_path / "out").config.window_frames == 21


def test_a_window_in_fastvideos_config_is_kept(fastvideo, tmp_path):
    fastvideo[1]("transformer/config.json", local_attn_size=12, sink_size=3)
    convert_fastvideo(tmp_path / "out", fastvideo[0])
    config = StreamT1Pipeline.from_pretrained(tmp_path / "out").config
    assert (config.window_frames, config.sink_frames, config.memory["policy"]) == (12, 3, "StaticSink")


def test_a_window_that_is_not_in_whole_chunks_is_refused(fastvideo, tmp_path):
    fastvideo[1]("transformer/config.json", local_attn_size=10)
    with pytest.raises(ValueError, match="`local_attn_size` is 10.*multiple"):
        convert_fastvideo(tmp_path / "out", fastvideo[0])


def test_a_window_that_is_no_number_is_refused(fastvideo, tmp_path):
    fastvideo[1]("transformer/config.json", sink_size="3")
    with pytest.raises(ValueError, match="has sink_size = '3'; it must be a number of frames"):
        convert_fastvideo(tmp_path / "out", fastvideo[0])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_recognised_and_gives_the_same_weights(base, checkpoint, tmp_path, layout):
    name = {"nested": "state.generator"}.get(layout)
    convert_longlive(tmp_path / "out", checkpoint(layout), lora=None, base=base, layout=name)
    written = load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")
    torch.testing.assert_close(written, convert_wan_transformer(original()), rtol=0, atol=0)


def test_a_safetensors_file_is_a_checkpoint_too(base, tmp_path):
    save_file(prefixed("model."), tmp_path / "x.safetensors")
    conversion = convert_reward_forcing(tmp_path / "out", tmp_path / "x.safetensors", base=base)
    assert "top level of the file, with keys like `model." in conversion.layout


def test_of_several_dicts_the_authors_choice_is_taken_or_the_named_one(base, tmp_path):
    state = {"generator": prefixed("model."), "generator_ema": prefixed("model.", other_weights())}
    torch.save(state, tmp_path / "x.pt")
    for number, (convert, layout, is_zero) in enumerate(
        [
            (convert_self_forcing, None, True),
            (convert_causal_forcing, None, False),
            (convert_self_forcing, "generator", False),
        ]
    ):
        convert(tmp_path / f"out{number}", tmp_path / "x.pt", base=base, layout=layout)
        written = load_file(tmp_path / f"out{number}/transformer/diffusion_pytorch_model.safetensors")
        assert (written["proj_out.weight"].abs().sum() == 0) == is_zero


@pytest.mark.parametrize(
    "name, convert, window, sink, memory",
    [
        ("longlive", convert_longlive, 12, 3, {"policy": "StaticSink", "positions": "absolute"}),
        ("self-forcing", convert_self_forcing, 21, 0, {"policy": "SlidingWindow", "positions": "absolute"}),
        (
            "reward-forcing",
            convert_reward_forcing,
            9,
            3,
            {"policy": "EMASink", "positions": "relative", "ema_decay": 0.999},
        ),
        ("causal-forcing", convert_causal_forcing, 21, 0, {"policy": "SlidingWindow", "positions": "absolute"}),
    ],
)
def test_the_folder_says_what_the_model_was_trained_for(
    base, checkpoint, tmp_path, name, convert, window, sink, memory
):
    options = {"lora": None} if name == "longlive" else {}
    convert(tmp_path / "out", checkpoint("generator_ema"), base=base, **options)
    index = json.loads((tmp_path / "out/model_index.json").read_text())
    assert (index["window_frames"], index["sink_frames"], index["memory"]) == (window, sink, memory)
    assert index["denoising_steps"] == [1000, 750, 500, 250] and index["chunk_frames"] == 3
    assert FlowMatchEulerDiscreteScheduler.from_pretrained(tmp_path / "out/scheduler").config.shift == 5.0


def test_the_bases_components_are_copied_or_linked_as_they_are(base, checkpoint, tmp_path):
    for link in (False, True):
        convert_self_forcing(tmp_path / f"{link}", checkpoint("generator_ema"), base=base, link=link)
        for name in ("text_encoder/model.safetensors", "tokenizer/tokenizer.json", "vae/config.json"):
            assert (tmp_path / f"{link}" / name).read_bytes() == (base / name).read_bytes()
            assert os.path.samefile(tmp_path / f"{link}" / name, base / name) == link
        assert not (tmp_path / f"{link}" / "vae/config.json").is_symlink()


def test_a_hub_caches_symbolic_links_become_files(base, checkpoint, tmp_path):
    snapshot = tmp_path / "snapshot"
    for file in base.rglob("*"):
        if file.is_file():
            (snapshot / file.relative_to(base)).parent.mkdir(parents=True, exist_ok=True)
            (snapshot / file.relative_to(base)).symlink_to(file)
    convert_self_forcing(tmp_path / "out", checkpoint("generator_ema"), base=snapshot, link=True)
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_symlink()]


def test_a_dtype_is_written_but_for_what_diffusers_keeps_in_float32(base, checkpoint, tmp_path):
    conversion = convert_self_forcing(tmp_path / "out", checkpoint("generator_ema"), base=base, dtype=torch.bfloat16)
    written = load_file(tmp_path / "out/transformer/diffusion_pytorch_model.safetensors")
    assert written["blocks.0.attn1.to_q.weight"].dtype == torch.bfloat16
    assert conversion.weights.dtypes == ("bfloat16", "float32")
    expected = convert_wan_transformer(original())
    for key in ("scale_shift_table", "blocks.1.norm2.weight", "condition_embedder.time_embedder.linear_1.weight"):
        torch.testing.assert_close(written[key], expected[key], rtol=0, atol=0)
    loaded = StreamT1Pipeline.from_pretrained(tmp_path / "out", torch_dtype=torch.bfloat16).transformer.state_dict()
    assert {key: tensor.dtype for key, tensor in loaded.items()} == {k: t.dtype for k, t in written.items()}


def test_a_converted_folder_is_a_base(base, checkpoint, tmp_path):
    convert_self_forcing(tmp_path / "first", checkpoint("generator_ema"), base=base)
    convert_longlive(tmp_path / "second", checkpoint("model"), base=tmp_path / "first", lora=None)
    assert StreamT1Pipeline.from_pretrained(tmp_path / "second").config.window_frames == 12


def test_the_card_says_where_everything_comes_from(base, checkpoint, tmp_path):
    conversion = convert_self_forcing(tmp_path / "out", checkpoint("generator_ema"), base=base)
    card = ModelCard.load(tmp_path / "out/README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-video")
    assert card.data.base_model == ["gdhe17/Self-Forcing"]  # whose folder the base is, nobody knows
    assert card.data.license == "apache-2.0" and "stream-t1" in card.data.tags
    hashes = [*conversion.origins[0].hashes.values(), *conversion.hashes.values()]
    assert len(hashes) == 2 and all(f"`{sha256}`" in card.text for sha256 in hashes)
    assert "`SlidingWindow`" in card.text and str(tmp_path) not in card.text


@pytest.mark.parametrize(
    "page, license_",
    [
        ("---\nlicense: mit\n---\ntext", "mit"),
        ("---\nlicense: [mit, apache-2.0]\n---\n", None),
        ("---\nlicense: {\n---\n", None),
        ("no front matter", None),
    ],
)
def test_a_page_in_any_state_does_not_fail_a_conversion(tmp_path, monkeypatch, page, license_):
    (tmp_path / "README.md").write_text(page)
    monkeypatch.setattr(cards, "hf_hub_download", lambda hub_id, file: tmp_path / file)
    assert cards.hub_license("org/name") == license_


def test_the_table_names_valid_policies_files_and_licences():
    from stream_t1.search.policy_config import policy_from_config

    for generator in GENERATORS.values():
        sink_frames = policy_from_config({"policy": generator.memory}).first_sink_frames(generator.sink_frames)
        assert sink_frames + generator.chunk_frames <= generator.window_frames
        assert generator.hub_id.count("/") == 1 and generator.license == "apache-2.0"
