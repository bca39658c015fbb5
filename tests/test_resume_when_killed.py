"""A run of changing prompts whose process is killed at some moment, and gone on with by `pipe.resume` in another.

The process that is killed is a forked child, and moments are counted in calls of functions, so that one is the same on
every machine. A setting is asked for one moment that a seed chooses; the slow test for twenty.
"""

import random
import signal
import threading

import pytest
import torch
from conftest import toy_transformer, toy_vae
from test_files_when_killed import in_child
from test_resume import APPENDING, REWARDS, asked, assert_same, file_content
from tqdm.auto import tqdm

from stream_t1 import FewStepFlowMatchScheduler, PromptTimeline, StreamT1Pipeline
from stream_t1.search import EMASink, ParticleSearch, RewardRoutedSink, SlidingWindow, StaticSink

BEAMS = {"num_beams": 3, "num_candidates": 2}
RUNS = {
    "sliding": {"memory": SlidingWindow(), **BEAMS},
    "static": {"memory": StaticSink(), **BEAMS},
    "averages": {"memory": EMASink(), **BEAMS},
    "routed": {"memory": RewardRoutedSink(), **BEAMS},
    "appends": {"memory": APPENDING, **BEAMS},
    "particles": {"search": ParticleSearch(3, strength=200.0, threshold=1.0)},
}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """By setting: a pipeline, arguments, what the whole run gives, its file, and how many calls it makes."""
    folder, known = tmp_path_factory.mktemp("whole"), {}
    embeds = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))
    pipe = StreamT1Pipeline(
        None,
        None,
        toy_transformer(),
        toy_vae(z_dim=4),
        FewStepFlowMatchScheduler(),
        window_frames=9,
        default_height=16,
        default_width=16,
    )
    pipe.set_progress_bar_config(disable=True)

    def prepare(name):
        if name not in known:
            arguments = {"prompt": PromptTimeline({0: embeds, 21: embeds + 1}), **RUNS[name]}
            whole = pipe(save_to=folder / name, **asked(**arguments))
            status, num_calls = in_child(lambda: run(pipe, folder / f"{name}-again", arguments))
            assert status == 0
            known[name] = pipe, arguments, whole, file_content(folder / name), num_calls
        return known[name]

    return prepare


def run(pipe, path, arguments):
    """The run in a child. The lock of progress bars, which is shared with the parent, must not be held at the kill."""
    tqdm.set_lock(threading.RLock())
    return pipe(save_to=path, **asked(**arguments))


def kill_and_resume(prepared, path, name, share):
    """Kills the run after a share of its calls; what is there then is gone on with, or nothing is there."""
    pipe, arguments, whole, whole_file, num_calls = prepared(name)
    moment = 1 + int(share * (num_calls - 1))
    status, _ = in_child(lambda: run(pipe, path, arguments), signal.SIGKILL, moment)
    assert status in (0, -signal.SIGKILL)
    if path.exists():
        assert_same(pipe.resume(path, **REWARDS), whole)
    else:  # the first chunk was not finished
        assert_same(pipe(save_to=path, **asked(**arguments)), whole)
    assert file_content(path) == whole_file


@pytest.mark.parametrize("name", ["routed", "particles"])
def test_a_run_that_is_killed_goes_on_bit_for_bit(prepared, tmp_path, name):
    kill_and_resume(prepared, tmp_path / "run", name, random.Random(name).uniform(0.3, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("twentieth", range(20))
@pytest.mark.parametrize("name", RUNS)
def test_twenty_moments_of_a_kill(prepared, tmp_path, name, twentieth):
    share = (twentieth + random.Random(f"{name} {twentieth}").random()) / 20
    kill_and_resume(prepared, tmp_path / "run", name, share)
