"""`stream-t1 convert` and `stream-t1 inspect`: summaries, and bad input that leaves nothing behind."""

import errno
import hashlib
import json
import os
import resource
import shutil

import pytest
import torch
from checkpoint_files import prefixed, random_lora, save_base

from stream_t1 import StreamT1Pipeline
from stream_t1.__main__ import main
from stream_t1.checkpoints import generators
from stream_t1.checkpoints.layouts import GENERATORS


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, reference_transformer):
    """A folder with what a conversion reads."""
    folder = tmp_path_factory.mktemp("inputs")
    save_base(folder / "base", reference_transformer)
    torch.save({"generator": prefixed("model.")}, folder / "base.pt")
    torch.save({"generator_lora": random_lora()}, folder / "lora.pt")
    return folder


@pytest.fixture
def workspace(inputs, tmp_path):
    """The inputs, for a test to spoil, and the command that converts them."""
    shutil.copytree(inputs, tmp_path / "in")
    given = tmp_path / "in"
    command = ["convert", "longlive", "--checkpoint", str(given / "base.pt"), "--lora", str(given / "lora.pt")]
    return given, [*command, "--base", str(given / "base"), "-o", str(tmp_path / "out")]


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def fails_cleanly(given, command, capsys) -> str:
    """Runs a command that must fail; gives its error, of one line."""
    before = contents(given)
    assert main(command) == 2
    *_, error = capsys.readouterr().err.splitlines()
    assert error.startswith("stream-t1: ") and contents(given) == before
    assert [path.name for path in given.parent.iterdir()] == [given.name]
    return error


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_conversion_ends_with_a_summary(workspace, capsys):
    given, command = workspace
    assert main(command) == 0
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{given.parent / 'out'}: LongLive 1.0, 416,416 parameters in float32, 1.7 MB, in ")
    assert "  LoRA, merged in float32: rank 8, alpha as large as the rank, 30 linear layers: lora.pt" in lines
    written = (given.parent / "out/transformer/diffusion_pytorch_model.safetensors").read_bytes()
    assert lines[-1] == f"  {hashlib.sha256(written).hexdigest()}  transformer/diffusion_pytorch_model.safetensors"
    assert StreamT1Pipeline.from_pretrained(given.parent / "out").config.memory["policy"] == "StaticSink"


def test_every_option_of_the_command_is_an_argument_of_the_converter(workspace, monkeypatch, capsys):
    given, command = workspace
    command += ["--lora-alpha", "4", "--keep-lora-apart", "--layout", "generator", "--dtype", "bfloat16", "--link"]
    assert main(command) == 0 and main([*command, "--overwrite"]) == 0
    out = given.parent / "out"
    assert (
        out / "pytorch_lora_weights.safetensors"
    ).is_file() and "in bfloat16 and float32" in capsys.readouterr().out
    assert (out / "vae/config.json").samefile(given / "base/vae/config.json")


@pytest.mark.parametrize("name", GENERATORS)
def test_every_model_has_a_command_whose_help_names_its_files(name, capsys):
    with pytest.raises(SystemExit) as exit_:
        main(["convert", name, "--help"])
    text = "".join(capsys.readouterr().out.split())
    assert exit_.value.code == 0 and f"default:{GENERATORS[name].checkpoint}" in text


def test_a_model_runs_without_a_lora(workspace):
    given, command = workspace
    command[command.index("--lora") + 1] = "none"
    assert main(command) == 0
    assert "LoRA" not in (given.parent / "out/README.md").read_text()


class Code:
    def __reduce__(self):
        return print, ("this must not run",)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1000])


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda given: truncate(given / "base.pt"), "base.pt can't be read as a checkpoint: it is truncated"),
        (lambda given: truncate(given / "lora.pt"), "lora.pt can't be read as a checkpoint: it is truncated"),
        (
            lambda given: torch.save({"generator": Code()}, given / "base.pt"),
            "holds more than tensors (`print`)",
        ),
        (lambda given: torch.save({"unet.conv.weight": torch.ones(1)}, given / "base.pt"), "holds no Wan transformer"),
        (lambda given: torch.save({"a": prefixed("model.")}, given / "base.pt"), "has the layouts a, and not `gen"),
        (
            lambda given: torch.save(
                {"generator": {k: t.long() for k, t in prefixed("model.").items()}}, given / "base.pt"
            ),
            "96 of no float type (blocks.0.",
        ),
        (lambda given: (given / "base.pt").unlink(), "There is no file"),
        (lambda given: shutil.rmtree(given / "base/vae"), "is not a base: it has no vae/config.json"),
        (lambda given: truncate(given / "base/vae/diffusion_pytorch_model.safetensors"), "truncated or damaged"),
        (lambda given: (given / "base/text_encoder/model.safetensors").unlink(), "must hold one safetensors file"),
        (
            lambda given: (given / "base/model_index.json").write_text("{"),
            "model_index.json is damaged: it is no JSON",
        ),
    ],
)
def test_damaged_and_foreign_files_are_refused(workspace, capsys, spoil, message):
    given, command = workspace
    spoil(given)
    error = fails_cleanly(given, command, capsys)
    assert message in error


@pytest.mark.parametrize(
    "file, changes, message",
    [
        ("model_index.json", {"transformer_2": ["diffusers", "WanTransformer3DModel"]}, "of a Wan 2.2 model"),
        ("model_index.json", {"expand_timesteps": True}, "of a Wan 2.2 model"),
        ("model_index.json", {"_class_name": "WanImageToVideoPipeline"}, "an image-to-video model"),
        ("model_index.json", {"vae": [None, None]}, "names no vae of diffusers or transformers"),
        ("model_index.json", {"text_encoder": ["their_code", "Encoder"]}, "names no text_encoder of diffusers or"),
        ("transformer/config.json", {"image_dim": 1280, "added_kv_proj_dim": 5120}, "conditioned on an image"),
        ("transformer/config.json", {"in_channels": 36}, "reads 36 channels and makes 16"),
        ("transformer/config.json", {"_class_name": "WanVACETransformer3DModel"}, "`WanVACETransformer3DModel`"),
        ("transformer/config.json", {"num_layers": 4}, "27 missing (blocks.3.scale_shift_table"),
        ("transformer/config.json", {"num_layers": 2}, "27 unknown (blocks.2."),
        ("transformer/config.json", {"ffn_dim": 96}, "ffn.net.0.proj.weight is (160, 96), not (96, 96)"),
        ("model_index.json", {"vae": []}, "names no vae of diffusers or transformers"),
        ("model_index.json", {"_class_name": []}, "of another pipeline, `[]`"),
        ("transformer/config.json", {"num_layers": "three"}, "its transformer/config.json fails ("),
        ("transformer/config.json", {"patch_size": None}, "its transformer/config.json fails ("),
        ("vae/config.json", {"z_dim": 48}, "reads 16 channels and the VAE makes 48"),
    ],
)
def test_a_base_of_another_model_is_refused(workspace, capsys, file, changes, message):
    given, command = workspace
    edit_json(given / "base" / file, **changes)
    assert message in fails_cleanly(given, command, capsys)


def test_a_misfit_names_the_layout_that_was_assumed(workspace, capsys):
    given, command = workspace
    edit_json(given / "base/transformer/config.json", num_layers=4)
    assert "assumed was the dict `generator`, with keys like `model." in fails_cleanly(given, command, capsys)


def test_a_disk_that_fills_up_while_weights_are_written_leaves_nothing(workspace, capsys):
    given, command = workspace
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, hard))  # no file grows beyond this
    try:
        error = fails_cleanly(given, command, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "diffusion_pytorch_model.safetensors could not be written" in error


def test_a_disk_that_fills_up_while_the_base_is_copied_leaves_nothing(workspace, capsys, monkeypatch):
    def copyfile(source, target):
        raise OSError(errno.ENOSPC, "No space left on device", str(target))

    given, command = workspace
    monkeypatch.setattr(shutil, "copyfile", copyfile)
    assert "No space left on device" in fails_cleanly(given, command, capsys)


def test_a_link_to_another_disk_is_refused_and_leaves_nothing(workspace, capsys, monkeypatch):
    def link(source, target):
        raise OSError(errno.EXDEV, "Invalid cross-device link", str(source), None, str(target))

    given, command = workspace
    monkeypatch.setattr(os, "link", link)
    assert "another disk. Copy the base instead" in fails_cleanly(given, [*command, "--link"], capsys)


def test_too_small_a_disk_is_refused_before_anything_is_written(workspace, capsys, monkeypatch):
    given, command = workspace
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert "needs 0.0 GB, and its disk has 0.0 GB left" in fails_cleanly(given, command, capsys)


def test_an_interruption_leaves_nothing_and_says_so(workspace, capsys, monkeypatch):
    def interrupted(*arguments, **options):
        raise KeyboardInterrupt

    given, command = workspace
    monkeypatch.setattr(generators, "place_components", interrupted)
    before = contents(given)
    assert main(command) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stream-t1: interrupted" and contents(given) == before
    assert [path.name for path in given.parent.iterdir()] == [given.name]


def test_an_existing_output_is_refused_and_a_failed_replacement_keeps_it(workspace, capsys):
    given, command = workspace
    assert main(command) == 0
    out, before = given.parent / "out", contents(given.parent / "out")
    assert main(command) == 2 and "out exists" in capsys.readouterr().err
    truncate(given / "base.pt")
    assert main([*command, "--overwrite"]) == 2 and contents(out) == before


def test_an_output_is_never_the_base(workspace, capsys):
    given, command = workspace
    command[-1] = str(given / "base")
    before = contents(given)
    assert main([*command, "--overwrite"]) == 2
    assert "holds the input" in capsys.readouterr().err and contents(given) == before


@pytest.mark.parametrize(
    "name, said",
    [
        (
            "base.pt",
            ["a file of `torch.save`", "generator: 96 tensors, 416,416 parameters, float32, 1.7 MB", "longlive"],
        ),
        ("lora.pt", ["a LoRA of rank 8 on 30 modules", "stream-t1 convert longlive --lora"]),
        ("base", ["a diffusers folder of `WanPipeline`", "the base of a conversion", "vae, `AutoencoderKLWan`: "]),
        ("base/transformer", ["3 layers, width 96, 16 channels, under diffusers' keys", "component of a diffusers"]),
        ("other.pt", ["keys like `conv.weight`", "nothing here converts it"]),
        ("part.pt", ["keys like `unet.patch_embedding.weight`", "nothing here converts it"]),
        ("rewardforcing.pt", ["flat: 96 tensors", "stream-t1 convert reward-forcing --checkpoint"]),
    ],
)
def test_inspect_says_what_a_path_is_and_what_converts_it(workspace, capsys, name, said):
    given, _ = workspace
    torch.save({"conv.weight": torch.ones(1)}, given / "other.pt")
    torch.save({"unet.patch_embedding.weight": torch.ones(1)}, given / "part.pt")
    torch.save(prefixed("model."), given / "rewardforcing.pt")
    assert main(["inspect", str(given / name)]) == 0
    out = capsys.readouterr().out
    assert all(words in out for words in said), out


def test_inspect_knows_converted_and_foreign_folders(workspace, capsys):
    given, command = workspace
    assert main(command) == 0 and main(["inspect", command[-1]]) == 0
    assert "loads as it is: `StreamT1Pipeline.from_pretrained`" in capsys.readouterr().out
    edit_json(given / "base/model_index.json", _class_name="WanCausalDMDPipeline")
    assert main(["inspect", str(given / "base")]) == 0
    assert "stream-t1 convert fastvideo --checkpoint" in capsys.readouterr().out
    edit_json(given / "base/model_index.json", _class_name="WanImageToVideoPipeline")
    assert main(["inspect", str(given / "base")]) == 0
    assert "nothing here converts it: " in capsys.readouterr().out


def test_inspect_of_nothing_is_one_line(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "absent")]) == 2 and main(["inspect", str(tmp_path)]) == 2
    absent, empty = capsys.readouterr().err.splitlines()
    assert "There is no checkpoint" in absent and "it holds: none" in empty


@pytest.mark.parametrize("content", ["[]", "{"])
def test_inspect_of_a_folder_with_a_damaged_index_names_the_file(tmp_path, capsys, content):
    (tmp_path / "model_index.json").write_text(content)
    assert main(["inspect", str(tmp_path)]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert f"{tmp_path}/model_index.json is damaged" in error
