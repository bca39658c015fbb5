"""Writers that are killed, or whose disk is full: old files stay or are replaced, and nothing half looks whole.

A writer runs in a forked child that sends a signal to itself at some moment, counted in calls of functions, so that a
moment is the same one on every machine. Each is asked for one moment that a seed chooses; the grid has ten.
"""

import functools
import os
import random
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoint_files import prefixed, save_base
from conftest import toy_transformer, toy_vae
from safetensors import SafetensorError
from test_files import contents

from stream_t1 import FewStepFlowMatchScheduler, StreamT1Pipeline
from stream_t1.checkpoints.generators import convert_self_forcing
from stream_t1.commands import generate
from stream_t1.loaders.folder import write_code
from stream_t1.loaders.saving import write_manifest
from stream_t1.search import SearchTrace

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
TEMPORARY = ".stream-t1-"


def some_trace(seed: int) -> SearchTrace:
    return SearchTrace(config={"prompt": "a dog"}, seed=seed, fps=16.0, version="0.0.0", chunks=[])


def save_trace(folder: Path, is_new: bool) -> Callable[[], object]:
    return functools.partial(some_trace(is_new).save, folder / "a.json")


def write_video_and_trace(folder: Path, is_new: bool) -> Callable[[], object]:
    frames = np.full((9, 32, 32, 3), 200 if is_new else 50, dtype=np.uint8)
    return functools.partial(generate.write, frames, some_trace(is_new), folder / "a.mp4", overwrite=True)


def save_pipeline(folder: Path, is_new: bool) -> Callable[[], object]:
    vae = toy_vae(z_dim=4, latents_mean=[float(is_new)] * 4)
    pipe = StreamT1Pipeline(None, None, toy_transformer(), vae, FewStepFlowMatchScheduler())
    return functools.partial(pipe.save_pretrained, folder, max_shard_size=None if is_new else 20_000)


def export_code(folder: Path, is_new: bool) -> Callable[[], object]:
    if not is_new:
        (folder / "mine.py").write_text("mine")
        (folder / "model_index.json").write_text("{}")
        (folder / "pipeline.py").write_text("# older code")
        write_manifest(folder)
    return functools.partial(write_code, folder)


def convert(folder: Path, is_new: bool) -> Callable[[], object]:
    base, dtype = folder.parent / "base", torch.float32 if is_new else torch.bfloat16
    options = {"base": base, "dtype": dtype, "overwrite": True}
    return functools.partial(convert_self_forcing, folder / "model", base / "checkpoint.pt", **options)


WRITERS = {make.__name__: make for make in (save_trace, write_video_and_trace, save_pipeline, export_code, convert)}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, reference_transformer):
    folder = tmp_path_factory.mktemp("killed")
    save_base(folder / "base", reference_transformer)
    torch.save({"generator_ema": prefixed("model.")}, folder / "base/checkpoint.pt")
    return folder


@pytest.fixture(scope="module")
def prepared(workplace):
    """A writer's folder in its old state, the states of old and new, and the number of calls between them."""
    known = {}

    def prepare(name: str) -> tuple[Path, dict, dict, int]:
        if name not in known:
            old, new = workplace / name, workplace / f"{name}-new"
            old.mkdir()
            WRITERS[name](old, False)()
            shutil.copytree(old, new)
            status, num_calls = in_child(WRITERS[name](new, True))
            assert status == 0
            known[name] = old, contents(old), contents(new), num_calls
        return known[name]

    return prepare


def in_child(write: Callable[[], object], signal_number: int = 0, moment: int = -1) -> tuple[int, int]:
    """Status of a child that writes and sends itself a signal, and the number of its calls if it was not killed."""
    reader, sender = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            torch.set_num_threads(1)  # a fork has no threads but one
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            num_calls = 0

            def count(*_: object) -> None:
                nonlocal num_calls
                num_calls += 1
                if num_calls == moment:
                    sys.setprofile(None)
                    os.kill(os.getpid(), signal_number)

            sys.setprofile(count)
            write()
            sys.setprofile(None)
            os.write(sender, struct.pack("q", num_calls))
            status = 0
        except BaseException:
            # As this block ends, so do the generators that the error held, as when a process ends.
            sys.setprofile(None)
        finally:
            os._exit(status)
    os.close(sender)
    sent = os.read(reader, 8)
    os.close(reader)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), struct.unpack("q", sent)[0] if sent else 0


def run(prepared: Callable, workplace: Path, name: str, signal_number: int, share: float) -> None:
    """Kills the writer after a share of its calls, and looks at what is in its folder."""
    old_folder, old, new, num_calls = prepared(name)
    folder = workplace / "run"
    shutil.copytree(old_folder, folder)
    try:
        ended, _ = in_child(WRITERS[name](folder, True), signal_number, 1 + int(share * (num_calls - 1)))
        found = contents(folder)
    finally:
        shutil.rmtree(folder)
    left = {path: value for path, value in found.items() if TEMPORARY in path}
    named = {path: value for path, value in found.items() if path not in left}
    assert ended in (0, 1, -signal_number)  # 0: the signal came after the end; 1: it became an exception
    assert signal_number == signal.SIGKILL or not left
    assert all(value in (old.get(path), new.get(path)) for path, value in named.items())  # each file is whole
    assert named == new or all(path in named or value in left.values() for path, value in old.items())  # none is lost
    if any(path.endswith("model_index.json") for path in named):
        assert named in (old, new)  # a folder that looks whole is


@pytest.mark.parametrize("signal_number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", WRITERS)
def test_a_writer_that_is_killed_leaves_what_was_there_or_what_is_new(prepared, workplace, name, signal_number):
    run(prepared, workplace, name, signal_number, random.Random(f"{name} {signal_number}").random())


@pytest.mark.slow
@pytest.mark.parametrize("tenth", range(10))
@pytest.mark.parametrize("signal_number", SIGNALS, ids=lambda number: number.name)
@pytest.mark.parametrize("name", WRITERS)
def test_ten_moments_of_a_kill(prepared, workplace, name, signal_number, tenth):
    run(prepared, workplace, name, signal_number, (tenth + random.Random(f"{name} {tenth}").random()) / 10)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB, where the system allows one."""
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", tmp_path], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount a small disk")
    yield tmp_path
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("room", [0, 500, 20_000, 200_000])
@pytest.mark.parametrize("name", WRITERS)
def test_a_full_disk_keeps_what_was_there(workplace, prepared, small_disk, name, room):
    old_folder, old, new, _ = prepared(name)
    folder = small_disk / name
    shutil.copytree(old_folder, folder)
    (small_disk / "base").symlink_to(workplace / "base")
    (small_disk / "rest").write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - room)))
    try:
        WRITERS[name](folder, True)()
    except (OSError, SafetensorError):
        assert contents(folder) == old
    else:
        assert contents(folder) == new and room > 0
