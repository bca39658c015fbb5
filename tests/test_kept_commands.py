"""`generate --save-to`, `resume` and `replay`, as they are typed."""

import json
import shlex

import pytest
from test_command_line import PROMPT, no_forward

from stream_t1.__main__ import COMMANDS, main
from stream_t1.commands.video import read_tag


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a video, its trace and the file of its run."""
    folder = tmp_path_factory.mktemp("made")
    arguments = ["generate", PROMPT, "--num-frames", "21", "-o", str(folder / "circle.mp4")]
    assert main([*arguments, "--save-to", str(folder / "circle.safetensors")]) == 0
    return folder


def test_a_finished_run_gives_its_video_again(made, tmp_path):
    assert main(["resume", str(made / "circle.safetensors"), "-o", str(tmp_path / "again.mp4")]) == 0
    assert (tmp_path / "again.mp4").read_bytes() == (made / "circle.mp4").read_bytes()


def test_a_replay_brings_its_trace_along(made, tmp_path):
    assert main(["replay", str(made / "circle.json"), "-o", str(tmp_path / "again.mp4")]) == 0
    assert read_tag(tmp_path / "again.mp4")[2] == 21
    assert (tmp_path / "again.json").read_bytes() == (made / "circle.json").read_bytes()


@pytest.mark.parametrize("name", ["resume", "replay"])
def test_the_example_of_the_help_runs(made, name, monkeypatch):
    monkeypatch.chdir(made)
    assert main([*shlex.split(COMMANDS[name][1])[1:], "--overwrite"]) == 0


def test_a_saved_run_is_known_to_inspect(made, capsys):
    assert main(["inspect", str(made / "circle.safetensors")]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "a saved run of version" in said[0] and said[1] == f"  2 of 2 chunks, 64x64, prompt: {PROMPT}"
    assert said[2].startswith("  gone on with by: stream-t1 resume ")


MISTAKES = {
    "generate onto a run": (["generate", PROMPT, "--save-to", "circle.safetensors"], "saved run: go on with it by"),
    "generate into no folder": (["generate", PROMPT, "--save-to", "none/a.safetensors"], "there is no folder none"),
    "resume nothing": (["resume", "none.safetensors"], "no such file"),
    "resume a trace": (["resume", "circle.json"], "is no saved run, or is cut short"),
    "resume a cut file": (["resume", "cut.safetensors"], "is no saved run, or is cut short"),
    "resume shorter": (["resume", "circle.safetensors", "--num-frames", "9"], "as many or more"),
    "resume from a chunk that is not there": (
        ["resume", "circle.safetensors", "--from-chunk", "3"],
        "`from_chunk` is 3",
    ),
    "replay nothing": (["replay", "none.json"], "no such file"),
    "replay no trace": (["replay", "other.json"], "is no trace, or a damaged one"),
}


@pytest.mark.parametrize("arguments, told", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_told_in_one_line_before_any_work(made, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(made)
    (made / "cut.safetensors").write_bytes((made / "circle.safetensors").read_bytes()[:-10])
    (made / "other.json").write_text(json.dumps({"a": 1}))
    with no_forward():
        assert main([*arguments, "-o", "new.mp4"]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert told in said and said.startswith("stream-t1: ")
    assert not (made / "new.mp4").exists()
