"""Files of users: what was there stays or is replaced whole, and only where it is ours to replace.

The file is long because one rule is tried on every writer of the project.
"""

import contextlib
import hashlib
import json
import os
import re
import resource
import subprocess
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
import torch
from checkpoint_files import prefixed, save_base
from conftest import toy_transformer, toy_vae
from peft import LoraConfig

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.__main__ import main
from stream_t1.checkpoints.generators import convert_self_forcing
from stream_t1.commands import generate
from stream_t1.commands.video import FORMATS, count_frames, write_video
from stream_t1.loaders.folder import write_code
from stream_t1.loaders.saving import MANIFEST, write_manifest
from stream_t1.search import SearchTrace
from stream_t1.search.files import check_place, is_unchanged, new_file

PROMPT = "a red circle moving left on a white background"


def contents(folder: Path) -> dict[str, str]:
    """The hash of every file, and where every link leads, by name."""
    return {
        path.relative_to(folder).as_posix(): os.readlink(path)
        if path.is_symlink()
        else hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


@contextlib.contextmanager
def largest_file(num_bytes: int):
    """While the block lasts, no file grows beyond this, in this process and in those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def trace():
    return SearchTrace(config={"prompt": PROMPT}, seed=1, fps=16.0, version="0.0.0", chunks=[])


@pytest.fixture
def frames():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def no_model(monkeypatch):
    """Makes loading a model fail."""
    monkeypatch.setattr(generate, "load_demo", lambda prompt: pytest.fail("a model was loaded"))


# One file


def test_a_file_appears_when_it_is_whole(tmp_path):
    with new_file(tmp_path / "a.txt") as path:
        path.write_text("whole")
        assert not (tmp_path / "a.txt").exists() and path.parent == tmp_path
    assert contents(tmp_path) == {"a.txt": hashlib.sha256(b"whole").hexdigest()}


@pytest.mark.parametrize("failure", [ValueError, OSError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path, failure):
    (tmp_path / "a.txt").write_text("old")
    before = contents(tmp_path)
    with pytest.raises(failure), new_file(tmp_path / "a.txt", replace=True) as path:
        path.write_text("half")
        raise failure
    assert contents(tmp_path) == before


def test_what_appears_while_a_file_is_written_stays(tmp_path):
    with pytest.raises(FileExistsError, match="a.txt exists"), new_file(tmp_path / "a.txt") as path:
        path.write_text("ours")
        (tmp_path / "a.txt").write_text("faster")
    assert contents(tmp_path) == {"a.txt": hashlib.sha256(b"faster").hexdigest()}


@pytest.mark.parametrize("make_link", [os.symlink, os.link])
def test_a_link_is_replaced_and_never_written_through(tmp_path, make_link):
    (tmp_path / "other").write_text("other")
    make_link(tmp_path / "other", tmp_path / "a.txt")
    with new_file(tmp_path / "a.txt", replace=True) as path:
        path.write_text("new")
    assert (tmp_path / "other").read_text() == "other" and not (tmp_path / "a.txt").is_symlink()


@pytest.mark.parametrize(
    "name, message",
    [
        ("folder", "is a folder; name a file"),
        ("pipe", "is a device or a pipe"),
        ("absent/a.txt", "there is no folder"),
        ("file/a.txt", "there is no folder"),
        ("x" * 256, "File name too long"),
        ("nowhere", "exists"),
    ],
)
def test_a_place_that_takes_no_file_is_refused_by_name(tmp_path, name, message):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "nowhere").symlink_to("absent")
    with pytest.raises(OSError, match=message):
        check_place(tmp_path / name, replace=name != "nowhere")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "nowhere", "pipe"]


def test_the_longest_possible_name_is_accepted(tmp_path):
    with new_file(tmp_path / ("x" * 255)) as path:
        path.touch()
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_a_folder_that_takes_no_file_is_refused():
    with pytest.raises(OSError, match="/proc takes no file"):
        check_place("/proc/a.txt")


# Traces


def test_a_trace_replaces_a_trace_and_nothing_else(tmp_path, trace):
    path = tmp_path / "a.json"
    trace.save(path)
    trace.save(path)
    assert SearchTrace.load(path) == trace and is_unchanged(path)
    for text in ("mine", "", json.dumps({"chunks": []})):
        path.write_text(text)
        with pytest.raises(FileExistsError, match="a.json exists. It is no trace; .* `overwrite=True`"):
            trace.save(path)
        assert path.read_text() == text
    trace.save(path, overwrite=True)
    assert SearchTrace.load(path) == trace


def test_a_trace_that_was_edited_is_ours_and_changed(tmp_path, trace):
    path = tmp_path / "a.json"
    trace.save(path)
    path.write_text(path.read_text().replace('"seed": 1', '"seed": 2'))
    assert not is_unchanged(path) and SearchTrace.load(path).seed == 2
    trace.save(path)
    assert is_unchanged(path)


def test_the_mark_of_a_trace_is_the_same_wherever_and_whenever_it_is_saved(tmp_path, trace):
    for name in ("a.json", "b"):
        trace.save(tmp_path / name)
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_link_to_a_trace_is_refused(tmp_path, trace):
    trace.save(tmp_path / "a.json")
    (tmp_path / "link").symlink_to("a.json")
    with pytest.raises(FileExistsError, match="link exists"):
        trace.save(tmp_path / "link")
    assert (tmp_path / "link").is_symlink()


def test_a_disk_that_takes_no_more_keeps_the_old_trace(tmp_path, trace):
    trace.save(tmp_path / "a.json")
    before = contents(tmp_path)
    with largest_file(100), pytest.raises(OSError, match="too large"):
        trace.save(tmp_path / "a.json")
    assert contents(tmp_path) == before


# Videos


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_video_of_every_kind_holds_all_its_frames(tmp_path, frames, suffix):
    write_video(frames, tmp_path / "any name", 16.0, suffix)
    assert count_frames(tmp_path / "any name") == len(frames)


@pytest.mark.parametrize("height, width", [(64, 64), (480, 832), (720, 1280)])
def test_colours_of_a_video_are_those_that_were_made_and_tagged(tmp_path, height, width):
    colors = np.array(
        [[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [255, 255, 0], [30, 144, 200], [90] * 3]
    )
    frame = colors.reshape(2, 4, 3).repeat(height // 2, axis=0).repeat(width // 4, axis=1).astype(np.uint8)
    write_video(np.stack([frame] * 2), tmp_path / "a.mp4", 16.0, ".mp4")
    encoder = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", tmp_path / "a.mp4", "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(encoder, capture_output=True, check=True)
    decoded = np.frombuffer(done.stdout, np.uint8).reshape(2, height, width, 3)[1]
    middles = decoded[height // 4 :: height // 2, width // 8 :: width // 4].reshape(-1, 3)
    assert np.abs(middles.astype(int) - colors).max() <= 3  # two in rounding to limited range, one in compression
    assert b"yuv420p(tv, bt709, progressive)" in done.stderr  # matrix, primaries and transfer, all the same


@pytest.mark.parametrize("damage", [lambda content: content[: len(content) // 2], lambda content: b""])
def test_a_damaged_video_is_not_taken_for_one(tmp_path, frames, damage):
    write_video(frames, tmp_path / "a.mp4", 16.0, ".mp4")
    (tmp_path / "a.mp4").write_bytes(damage((tmp_path / "a.mp4").read_bytes()))
    with pytest.raises(OSError, match="the encoder ended with status"):
        count_frames(tmp_path / "a.mp4")


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_disk_that_takes_no_more_keeps_the_old_video_and_its_trace(tmp_path, frames, trace, suffix):
    output = tmp_path / f"a{suffix}"
    generate.write(frames[:2], trace, output, overwrite=False)
    before = contents(tmp_path)
    with largest_file(2000), pytest.raises(OSError, match="could not be written"):
        generate.write(frames, trace, output, overwrite=True)
    assert contents(tmp_path) == before


# `stream-t1 generate`


@pytest.mark.parametrize(
    "name", ["-x.mp4", "13:20:39.mp4", "a%d.mp4", "pipe:.mkv", "a b'\"\n.mov", "é" * 125 + ".mp4"]
)
def test_the_encoder_takes_any_name_as_a_file(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    assert main([PROMPT, f"-o={name}", "--num-frames", "9", "--num-beams", "1", "--num-candidates", "1"]) == 0
    assert contents(tmp_path).keys() == {name, str(Path(name).with_suffix(".json"))}
    assert count_frames(tmp_path / name) == 9


def obstacles():
    """Files at `a.mp4` and beside it, by name, and the error that they cause."""
    return {
        "a video": (lambda folder: (folder / "a.mp4").write_text("mine"), "a.mp4 exists. .* --overwrite"),
        "a link": (lambda folder: (folder / "a.mp4").symlink_to("absent"), "a.mp4 exists. .* --overwrite"),
        "a folder": (lambda folder: (folder / "a.mp4").mkdir(), "a.mp4 is a folder"),
        "another file beside it": (lambda folder: (folder / "a.json").write_text("{}"), "a.json exists. .* move it"),
        "a link beside it": (lambda folder: (folder / "a.json").symlink_to("absent"), "a.json exists. .* move it"),
        "a folder beside it": (lambda folder: (folder / "a.json").mkdir(), "a.json is a folder"),
    }


@pytest.mark.parametrize("case", obstacles())
def test_an_obstacle_at_the_output_is_reported_before_a_model_is_loaded(tmp_path, capsys, no_model, case):
    put, message = obstacles()[case]
    put(tmp_path)
    before = sorted(tmp_path.iterdir()), contents(tmp_path)
    assert main([PROMPT, "-o", str(tmp_path / "a.mp4")]) == 2
    assert (sorted(tmp_path.iterdir()), contents(tmp_path)) == before
    error = capsys.readouterr().err
    assert re.fullmatch(f"stream-t1: `--output`: .*{message}.*\n", error)


def test_overwriting_does_not_reach_what_is_beside_the_video(tmp_path, capsys, no_model):
    (tmp_path / "a.json").write_text("mine")
    assert main([PROMPT, "-o", str(tmp_path / "a.mp4"), "--overwrite"]) == 2
    assert "a.json exists" in capsys.readouterr().err and (tmp_path / "a.json").read_text() == "mine"


def test_an_edited_trace_stays(tmp_path, frames, trace):
    generate.write(frames, trace, tmp_path / "a.mp4", overwrite=False)
    generate.write(frames, trace, tmp_path / "a.mp4", overwrite=True)
    (tmp_path / "a.json").write_text((tmp_path / "a.json").read_text().replace("red", "blue"))
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match="or was changed since"):
        generate.write(frames, trace, tmp_path / "a.mp4", overwrite=True)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["x" * 252 + ".mp4", "x" * 251 + ".mp4", "absent/a.mp4", "a.mp3"])
def test_a_name_that_cannot_be_written_is_refused_before_a_model_is_loaded(tmp_path, capsys, no_model, name):
    assert main([PROMPT, "-o", str(tmp_path / name)]) == 2  # of 255 bytes with .mp4, the trace has one more
    assert "`--output`" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_search_is_not_lost_when_somebody_takes_its_name(tmp_path, capsys, monkeypatch):
    write, output = generate.write, tmp_path / "a.mp4"

    def late(*arguments, **options):
        if not output.exists():
            output.write_text("faster")
        write(*arguments, **options)

    monkeypatch.setattr(generate, "write", late)
    assert main([PROMPT, "-o", str(output), "--num-frames", "9", "--num-beams", "1", "--num-candidates", "1"]) == 0
    assert output.read_text() == "faster" and count_frames(tmp_path / "a-2.mp4") == 9
    assert "a.mp4 exists" in capsys.readouterr().err and (tmp_path / "a-2.json").is_file()


# Saved folders


@pytest.fixture
def pipe(toy_models):
    return StreamT1Pipeline(None, None, *toy_models, FewStepFlowMatchScheduler())


def put_file(place):
    place.write_text("mine")


def put_link(place):
    place.symlink_to("absent")


@pytest.mark.parametrize(
    "name, put",
    [
        ("pipeline.py", put_file),
        ("models/memory.py", put_file),
        (MANIFEST, put_file),
        ("stream_t1.py", put_link),
        (MANIFEST, put_link),
        ("rewards/base.py", Path.mkdir),
        ("search", put_file),
    ],
)
def test_neither_a_save_nor_exported_code_replaces_what_the_user_has(tmp_path, capsys, pipe, name, put):
    (tmp_path / "mine" / name).parent.mkdir(parents=True)
    put(tmp_path / "mine" / name)
    before = contents(tmp_path)
    with pytest.raises(FileExistsError, match=name):
        pipe.save_pretrained(tmp_path / "mine")
    assert main(["export-code", str(tmp_path / "mine")]) == 2 and name in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_save_replaces_its_own_code_unless_it_was_changed(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    pipe.save_pretrained(tmp_path)
    assert json.loads((tmp_path / MANIFEST).read_text())["files"].keys() == contents(tmp_path).keys() - {
        "notes.txt",
        MANIFEST,
    }
    (tmp_path / "models/memory.py").write_text("# mine")
    with pytest.raises(FileExistsError, match="has models/memory.py, which Stream-T1 did not write or which was"):
        pipe.save_pretrained(tmp_path)
    assert (tmp_path / "models/memory.py").read_text() == "# mine" and (tmp_path / "notes.txt").read_text() == "mine"


def test_code_that_is_exported_into_a_saved_folder_leaves_the_model(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    before = contents(tmp_path)
    write_code(tmp_path)
    assert contents(tmp_path) == before and loads_as(tmp_path, pipe)


def test_older_code_of_ours_is_replaced(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    code = (tmp_path / "pipeline.py").read_text()
    (tmp_path / "pipeline.py").write_text("# as an older version wrote it")
    write_manifest(tmp_path)
    pipe.save_pretrained(tmp_path)
    assert (tmp_path / "pipeline.py").read_text() == code


@pytest.mark.parametrize("name", ["transformer", "models"])
def test_a_save_does_not_follow_links_out_of_its_folder(tmp_path, pipe, name):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError, match=f"{name} must be a folder"):
        pipe.save_pretrained(tmp_path / "mine")
    assert not list((tmp_path / "elsewhere").iterdir()) and contents(tmp_path).keys() == {f"mine/{name}"}


@pytest.mark.parametrize("kind", ["a file", "a symbolic link"])
def test_a_save_is_into_a_folder(tmp_path, pipe, kind):
    (tmp_path / "folder").mkdir()
    (tmp_path / "place").symlink_to("folder") if "link" in kind else (tmp_path / "place").write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(NotADirectoryError, match=f"which is {kind}; give a folder"):
        pipe.save_pretrained(tmp_path / "place")
    assert contents(tmp_path) == before


def test_a_save_that_fails_leaves_nothing(tmp_path, pipe):
    with largest_file(10_000), pytest.raises(Exception, match="too large"):
        pipe.save_pretrained(tmp_path / "new/and/deep")
    assert not list(tmp_path.iterdir())
    pipe.save_pretrained(tmp_path / "old")
    before = contents(tmp_path)
    with largest_file(10_000), pytest.raises(Exception, match="too large"):
        pipe.save_pretrained(tmp_path / "old")
    assert contents(tmp_path) == before


def loads_as(folder: Path, pipe: StreamT1Pipeline) -> bool:
    loaded = StreamT1Pipeline.from_pretrained(folder)
    pairs = ((loaded.transformer, pipe.transformer), (loaded.vae, pipe.vae))
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x.parameters(), y.parameters(), strict=True))


@pytest.mark.parametrize(
    "shards, safe",
    [
        ((20_000, None), (True, True)),
        ((None, 20_000), (True, True)),
        ((40_000, 20_000), (True, True)),
        ((20_000, None), (True, False)),
        ((None, 20_000), (False, True)),
    ],
)
def test_a_save_beside_another_ones_shards_and_weights_loads(tmp_path, shards, safe):
    for seed in (0, 1):
        torch.manual_seed(seed)
        pipe = StreamT1Pipeline(None, None, toy_transformer(), toy_vae(z_dim=4), FewStepFlowMatchScheduler())
        torch.nn.init.normal_(pipe.transformer.patch_embedding.weight)
        pipe.save_pretrained(tmp_path, safe_serialization=safe[seed], max_shard_size=shards[seed])
        assert loads_as(tmp_path, pipe)
    ending = "safetensors" if safe[1] else "bin"
    weights = {path.name for path in (tmp_path / "transformer").iterdir() if "config" not in path.name}
    assert all(ending in name for name in weights) and (len(weights) == 1) == (shards[1] is None)


def test_a_folder_of_shards_that_is_loaded_and_saved_into_itself_loads(tmp_path, pipe):
    pipe.save_pretrained(tmp_path, max_shard_size=20_000)
    StreamT1Pipeline.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert loads_as(tmp_path, pipe) and not list(tmp_path.rglob("*.index.json"))


def test_a_save_of_a_variant_keeps_the_others(tmp_path, pipe):
    pipe.save_pretrained(tmp_path)
    pipe.save_pretrained(tmp_path, variant="fp16", max_shard_size=20_000)
    pipe.save_pretrained(tmp_path, variant="fp16")
    weights = {path.name for path in (tmp_path / "transformer").iterdir() if "config" not in path.name}
    assert weights == {"diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"}


@pytest.fixture
def converted(tmp_path, reference_transformer):
    """A conversion whose components are hard links to those of its base."""
    base = save_base(tmp_path / "base", reference_transformer)
    torch.save({"generator_ema": prefixed("model.")}, tmp_path / "base.pt")
    convert_self_forcing(tmp_path / "out", tmp_path / "base.pt", base=base, link=True)
    return tmp_path / "out"


def test_a_save_into_a_conversion_leaves_the_base_that_it_links_to(tmp_path, converted):
    before = contents(tmp_path / "base")
    pipe = StreamT1Pipeline.from_pretrained(converted)
    pipe.vae.register_to_config(latents_mean=[0.5] * 16)
    torch.nn.init.zeros_(next(pipe.vae.parameters()))
    pipe.save_pretrained(converted)
    assert contents(tmp_path / "base") == before and loads_as(converted, pipe)
    assert (converted / "README.md").is_file()


def test_a_conversion_replaces_a_folder_that_was_saved_into_but_not_one_with_files_of_the_users(tmp_path, converted):
    StreamT1Pipeline.from_pretrained(converted).save_pretrained(converted)
    options = {"base": tmp_path / "base", "overwrite": True}
    convert_self_forcing(converted, tmp_path / "base.pt", **options)
    (converted / "notes.txt").write_text("mine")
    before = contents(converted)
    with pytest.raises(FileExistsError, match="is not replaced: notes.txt"):
        convert_self_forcing(converted, tmp_path / "base.pt", **options)
    assert contents(converted) == before


def test_a_checkout_is_never_replaced_by_a_conversion(tmp_path, capsys):
    (tmp_path / "checkout").mkdir()
    for name in ("model_index.json", "README.md"):
        (tmp_path / "checkout" / name).write_text("{}")
    before = contents(tmp_path)
    command = ["convert", "longlive", "--checkpoint", "absent.pt", "-o", str(tmp_path / "checkout"), "--overwrite"]
    assert main(command) == 2 and contents(tmp_path) == before
    assert "checkout is not replaced: README.md" in capsys.readouterr().err


# LoRAs


@pytest.fixture
def with_lora():
    pipe = StreamT1Pipeline(None, None, toy_transformer(), toy_vae(z_dim=4), FewStepFlowMatchScheduler())
    pipe.transformer.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False))
    return pipe


def test_a_reward_may_carry_a_lora_since_it_is_not_saved(tmp_path, pipe, with_lora):
    pipe.image_reward = with_lora.transformer
    pipe.save_pretrained(tmp_path)
    assert loads_as(tmp_path, pipe)


@pytest.mark.parametrize("is_fused", [False, True])
def test_a_save_with_a_lora_is_refused_and_says_how(tmp_path, with_lora, is_fused):
    if is_fused:
        with_lora.fuse_lora()
    for save in (with_lora.save_pretrained, with_lora.push_to_hub):
        with pytest.raises(
            ValueError, match=r"`transformer` carries a LoRA.*`pipe.fuse_lora\(\)`, then `pipe.unload_"
        ):
            save(str(tmp_path / "folder"))
    assert not list(tmp_path.iterdir())


def test_a_lora_that_is_fused_and_unloaded_is_saved(tmp_path, with_lora):
    plain = toy_transformer().state_dict()["blocks.0.attn1.to_q.weight"]
    with_lora.fuse_lora()
    with_lora.unload_lora_weights()
    with_lora.save_pretrained(tmp_path)
    assert loads_as(tmp_path, with_lora)
    assert not torch.equal(with_lora.transformer.blocks[0].attn1.to_q.weight, plain)
