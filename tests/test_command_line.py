"""The command line itself: help, words that are no command, options of searches, what `inspect` says and advises."""

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_rewards import save_reward, videoalign_reward
from torch.nn.modules.module import register_module_forward_pre_hook

import stream_t1
from stream_t1 import PromptTimeline, StreamT1Pipeline
from stream_t1.__main__ import COMMANDS, build_parser, main
from stream_t1.commands import generate
from stream_t1.commands.video import write_video
from stream_t1.demo import CHECKPOINT, load_pipeline, vocabulary_note
from stream_t1.search import SearchTrace
from stream_t1.search.beam_search import BeamSearch
from stream_t1.search.early_stop import EarlyStop
from stream_t1.search.particle_search import ParticleSearch
from stream_t1.search.request import VideoRequest
from stream_t1.search.shipped import SHIPPED_SEARCHES

ROOT = Path(stream_t1.__file__).parent
PROMPT = "a red circle moving left on a white background"
SLOW = ("torch", "numpy", "diffusers", "transformers", "PIL", "safetensors", "huggingface_hub")


def parsed(command: str):
    program, name, *rest = shlex.split(command)
    assert program == "stream-t1"
    return build_parser(name).parse_args([name, *rest])


@contextlib.contextmanager
def no_forward():
    handle = register_module_forward_pre_hook(lambda *_: pytest.fail("a model ran"))
    try:
        yield
    finally:
        handle.remove()


def said(capsys, *arguments) -> str:
    assert main(list(arguments)) == 0
    return capsys.readouterr().out


def test_help_names_every_command_with_a_line_and_an_example_that_parses(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, (summary, example) in COMMANDS.items():
        place = lines.index(name)
        assert lines[place + 1 : place + 3] == [f"  {summary}:", f"    {example}"]
        assert parsed(example).run.__module__ == f"stream_t1.commands.{name.replace('-', '_')}"


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["inspekt"], ["convert", "--help"]])
def test_help_and_version_import_nothing_that_is_slow(arguments):
    code = "import sys; from stream_t1.__main__ import main\ntry: main(sys.argv[1:])\nexcept SystemExit: pass\n"
    code += f"found = set({SLOW}) & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)


def test_version_is_the_packages(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--version"])
    assert capsys.readouterr().out == f"stream-t1 {stream_t1.__version__}\n"


# The first fetches gigabytes, and the others need files of another command: tests/test_kept_commands.py.
EXAMPLES = [name for name in COMMANDS if name not in ("convert", "resume", "replay")]


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_example_of_a_command_runs_as_it_stands(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.file_download.hf_hub_download", lambda *_: pytest.fail("fetched"))
    assert main(shlex.split(COMMANDS[name][1])[1:]) == 0


@pytest.mark.parametrize(
    "word, nearest", [("inspekt", "inspect"), ("exportcode", "export-code"), ("evalute", "evaluate"), ("a", "")]
)
@pytest.mark.parametrize("more", [[], ["file.pt", "--link"]])
def test_a_first_word_that_is_no_command_is_told_with_the_nearest(capsys, word, nearest, more):
    assert main([word, *more]) == 2
    told = capsys.readouterr().err
    assert f"'{word}' is no command" in told and f"nearest is `{nearest}" in told and "stream-t1 generate" in told


def test_so_it_is_after_options(capsys):
    assert main(["-o", "a.mp4", "--seed", "3", "inspekt"]) == 2
    assert "nearest is `inspect`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["a red circle", "--seed", "3", "--overwrite"],
        ["--seed", "3", "--overwrite", "a red circle"],
        ["--seed=3", "--overwrite", "generate", "a red circle"],
        ["--overwrite", "generate", "--seed", "3", "a red circle"],
        ["--seed", "3", "--overwrite", "generate", "a red circle"],
        ["a\tred circle", "--seed", "3", "--overwrite", "-o", "generate"],
        ["-o", "generate", "--seed", "3", "--overwrite", "a red circle"],
        ["-o", "convert", "--seed", "3", "--overwrite", "a red circle"],
    ],
)
def test_a_prompt_with_a_blank_is_one_and_options_may_come_first(monkeypatch, arguments):
    given = []
    monkeypatch.setattr(generate, "generate", given.append)
    assert main(arguments) == 0
    assert (given[0].prompt.split(), given[0].seed, given[0].overwrite) == (["a", "red", "circle"], 3, True)


def test_a_word_after_generate_is_a_prompt(monkeypatch):
    given = []
    monkeypatch.setattr(generate, "generate", given.append)
    assert main(["generate", "circle"]) == 0 and given[0].prompt == "circle"


BLUE = PROMPT.replace("red", "blue")


def prompts_of(folder) -> list[str]:
    trace = SearchTrace.load(folder / "a.json")
    return [chunk.prompt for chunk in trace.chunks]


def test_a_timeline_says_the_prompts_and_how_long_the_video_is(tmp_path, capsys):
    text = f"{PROMPT} [0.75s] | {BLUE} [1.5s]"
    told = said(capsys, "generate", "--timeline", text, "--transition", "2", "-o", str(tmp_path / "a.mp4"))
    assert "33 frames" in told and prompts_of(tmp_path) == [PROMPT, BLUE, BLUE]
    assert SearchTrace.load(tmp_path / "a.json").config["transition"] == 2


def test_a_timeline_may_be_a_file_and_options_come_first(tmp_path, capsys):
    timeline = PromptTimeline({0: PROMPT, 9: BLUE})
    (tmp_path / "timeline.json").write_text(timeline.to_json())
    given = ["--num-frames", "21", "--recache", "all", "--timeline", str(tmp_path / "timeline.json")]
    assert "21 frames" in said(capsys, *given, "-o", str(tmp_path / "a.mp4"))
    assert prompts_of(tmp_path) == [PROMPT, BLUE]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--seed", "3"], "Give a prompt, or `--timeline`"),
        (["a red circle", "--timeline", "a | b"], "and not both"),
        (["--timeline", "a red circle | b"], "does not say for how long"),
        (["--timeline", "no/such.json"], "`--timeline` is no/such.json, which can't be read"),
        (["a red circle", "--num-frames", "0"], "`num_frames` is 0"),
    ],
)
def test_a_timeline_that_cannot_be_read_is_told_before_anything_runs(arguments, message, tmp_path, capsys):
    with no_forward():
        assert main(["generate", *arguments, "-o", str(tmp_path / "a.mp4")]) == 2
    assert message in capsys.readouterr().err and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "prompt, unread",
    [
        (PROMPT, None),
        ("The yellow cross, moving in circles; a black background!", None),
        ("a red dragon moving left", "dragon"),
        ("a fluffy red circle moving left over the sea", "fluffy, sea"),
        ("a black circle on a red background", "black, red"),
        ("ein roter Kreis", "ein, roter, kreis"),
        ("2 круга", "2, круга"),
    ],
)
def test_every_word_that_the_demo_does_not_read_is_told_with_those_it_does(prompt, unread):
    note = vocabulary_note(prompt)
    if unread is None:
        assert note is None
    else:
        assert note.startswith(f"The demo model does not read {unread}. It knows the shapes circle, ")


def test_a_prompt_that_names_nothing_gets_the_words():
    assert vocabulary_note("on the").startswith("The demo model knows the shapes")


# searches and rewards


@pytest.fixture
def called(monkeypatch):
    """What the pipeline is called with."""

    calls = []

    def call(self, *_, **arguments):
        calls.append(arguments)
        raise ValueError("called")

    monkeypatch.setattr(StreamT1Pipeline, "__call__", call)
    return calls


@pytest.mark.parametrize(
    "options, search",
    [
        ("--search beam --num-beams 3", BeamSearch(num_beams=3)),
        ("--search best-of-n --num-videos 4", SHIPPED_SEARCHES["best-of-n"](4)),
        ("--search early-stop --margin 0.5 --patience 2", EarlyStop(BeamSearch(), margin=0.5, patience=2)),
        ("--search early-stop --num-candidates 4", EarlyStop(BeamSearch(num_candidates=4))),
        (
            "--search early-stop --inner best-of-n(num_videos=3) --margin inf",
            EarlyStop(SHIPPED_SEARCHES["best-of-n"](3)),
        ),
        ("--search beam --budget 2x8/2x2", BeamSearch(budget=[(2, 8), (2, 2)])),
        ("--search particles:strength=4 --num-particles 3 --potential max", ParticleSearch(3, 4, "max")),
    ],
)
def test_a_shipped_search_is_named_with_its_numbers(called, tmp_path, options, search):
    assert main([PROMPT, "-o", str(tmp_path / "a.mp4"), *options.split()]) == 2
    assert called[0]["search"] == search and "num_beams" not in called[0]


def test_a_call_is_told_only_what_was_given(called, tmp_path):
    assert main([PROMPT, "-o", str(tmp_path / "a.mp4"), "--num-beams", "3"]) == 2
    assert called[0].keys() == {"num_frames", "generator", "num_beams"}
    assert called[0]["num_frames"] == VideoRequest.num_frames


@pytest.mark.parametrize(
    "options, message",
    [
        ("--search best-of-n", "which needs `num_videos`"),
        ("--search best-of-n --num-videos 2 --num-beams 3", "'best-of-n', which has no `num_beams`"),
        ("--search beam --patience 2 --margin 1", "has no `margin` and no `patience`"),
        ("--num-videos 3", "say `--search best-of-n`"),
        ("--search beem", "The nearest is 'beam'"),
        ("--search beam:num_beams=3 --num-beams 2", "`num_beams` of the search 'beam' is given twice"),
        ("--num-beams two", "`num_beams` of the search 'beam' is 'two'; it must be a whole number"),
        ("--search best-of-n --num-videos 0", "`num_videos` of BestOfN is 0"),
    ],
)
def test_numbers_that_a_search_lacks_are_told_before_a_model_is_loaded(
    tmp_path, capsys, monkeypatch, options, message
):
    monkeypatch.setattr(generate, "load_demo", lambda prompt: pytest.fail("loaded"))
    assert main([PROMPT, "-o", str(tmp_path / "a.mp4"), *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_a_new_search_and_a_new_number_are_options_by_being_registered(monkeypatch, tmp_path, called):
    @dataclasses.dataclass(frozen=True)
    class Luck:
        wheel_spins: int = 3
        hope: float = 0.5

        def __call__(self, steps, beams):
            raise NotImplementedError

    monkeypatch.setitem(SHIPPED_SEARCHES, "luck", Luck)
    assert main([PROMPT, "-o", str(tmp_path / "a.mp4"), *"--search luck --wheel-spins 7 --hope 1".split()]) == 2
    assert called[0]["search"] == Luck(7, 1.0)


@pytest.fixture
def plain_model(tmp_path):
    """The demo's model as a folder, which brings no rewards."""
    load_pipeline().save_pretrained(tmp_path / "model")
    return ["--model", str(tmp_path / "model"), "-o", str(tmp_path / "a.mp4"), "--num-frames", "9"]


def test_without_a_reward_the_command_makes_a_plain_sample_and_says_so(plain_model, capsys, tmp_path):
    told = said(capsys, PROMPT, *plain_model)
    assert "a.mp4: 9 frames, a plain sample, with no reward to choose by, found in" in told
    assert [len(chunk.candidates) for chunk in SearchTrace.load(tmp_path / "a.json").chunks] == [1]


@pytest.mark.parametrize(
    "options, message",
    [
        ("--num-candidates 3", "there is no reward to say which"),
        ("--num-beams 2", "keeps 2 videos, and there is no reward to choose one"),
        ("--search best-of-n --num-videos 2", "keeps 2 videos, and there is no reward to choose one"),
        ("--search beam", "there is no reward to say which"),
    ],
)
def test_without_a_reward_numbers_that_would_drop_something_are_refused(plain_model, capsys, options, message):
    with no_forward():
        assert main([PROMPT, *plain_model, *options.split()]) == 2
    assert message in capsys.readouterr().err


def test_the_last_line_says_which_rewards_chose_among_how_many(tmp_path, capsys):
    told = said(capsys, PROMPT, "-o", str(tmp_path / "a.mp4"), "--num-frames", "9")
    chosen = "the best of 4 candidates by image_reward LegibilityReward and video_reward MotionReward"
    assert f"9 frames, {chosen}, found in" in told
    told = said(
        capsys, PROMPT, "-o", str(tmp_path / "b.mp4"), *"--num-frames 9 --num-beams 1 --num-candidates 1".split()
    )
    assert "a plain sample, scored by image_reward LegibilityReward and video_reward MotionReward" in told


# `inspect`


@pytest.fixture(scope="module")
def things(tmp_path_factory):
    """One of each thing that `inspect` knows, in a folder whose name must be quoted."""
    folder = tmp_path_factory.mktemp("of a user's")
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    output = pipe(PROMPT, num_frames=9, num_beams=1, num_candidates=2, height=32, width=32)
    write_video((output.frames[0] * 255).astype(np.uint8), folder / "a.mp4", 16, ".mp4")
    output.trace.save(folder / "a.json")
    pipe.save_pretrained(folder / "model")
    save_reward(videoalign_reward(), folder / "reward")
    assert main(["export-code", str(folder / "code")]) == 0
    linear = pipe.transformer.blocks[0].attn1.to_q
    name = "diffusion_model.blocks.0.self_attn.q.lora_"
    lora = {f"{name}A.weight": torch.zeros(4, linear.in_features), f"{name}B.weight": torch.zeros(96, 4)}
    save_file(lora, folder / "lora.safetensors")
    save_file(pipe.transformer.state_dict(), folder / "weights.safetensors")
    shutil.copytree(folder / "model", folder / "wan", ignore=shutil.ignore_patterns("*.py"))
    index = json.loads((folder / "wan" / "model_index.json").read_text())
    (folder / "wan" / "model_index.json").write_text(json.dumps({**index, "_class_name": "WanPipeline"}))
    return folder


KNOWN = {
    "a.json": ["the trace of a search", f"prompt: {PROMPT}", "1 chunks, 2 candidates, 32x32", "as it was written"],
    "a.mp4": ["a video that Stream-T1 wrote, 9 frames, 32x32", "16 a second"],
    "code": ["Stream-T1's code without a model", "custom_pipeline="],
    "model": ["a diffusers folder of `StreamT1Pipeline`", "transformer, `WanTransformer3DModel`: ", "loads as it is"],
    "reward": ["a converted reward, which loads as it is"],
    "weights.safetensors": ["a Wan transformer of 6 layers", "converted by: stream-t1 convert reward-forcing "],
    "wan": ["a diffusers folder of `WanPipeline`", "the base of a conversion"],
    "lora.safetensors": ["a LoRA of rank 4 on 1 modules"],
}


def advised(told: str) -> list[str]:
    return re.findall(r"stream-t1 .*$", told, re.MULTILINE)


@pytest.mark.parametrize("name", KNOWN)
def test_inspect_knows_a_thing_and_what_it_advises_can_be_pasted(things, capsys, name):
    told = said(capsys, "inspect", str(things / name))
    assert all(words in told for words in KNOWN[name])
    for command in advised(told):
        paths = [word for word in vars(parsed(command)).values() if str(things) in str(word)]
        assert paths and all(Path(path).exists() for path in paths)
    assert advised(told)


def test_inspect_knows_a_clone_of_this_repository(capsys):
    told = said(capsys, "inspect", str(ROOT))
    assert "a clone of Stream-T1's repository" in told
    assert [parsed(command).path for command in advised(told) if " inspect " in command] == [str(CHECKPOINT)]


@pytest.mark.parametrize(
    "name, message",
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", "the base of conversions"),
        ("gdhe17/Self-Forcing", "Self-Forcing, as its authors published it"),
        ("org/unknown", "not one of the models that are known here"),
        ("org/unknown:a/file.pt", "hf download org/unknown a/file.pt"),
    ],
)
def test_inspect_says_what_it_can_of_a_hub_id_and_fetches_nothing(capsys, monkeypatch, name, message):
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("connected"))
    told = said(capsys, "inspect", name)
    assert message in told and "nothing was fetched" in told
    for command in advised(told):
        parsed(command)


def test_inspect_tells_what_is_no_such_thing(things, capsys, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps({"mine": 1}))
    (tmp_path / "a.mp4").write_bytes(b"not a video")
    for name, message in (("a.json", "no trace that Stream-T1 wrote"), ("a.mp4", "is no video, or a damaged one")):
        assert main(["inspect", str(tmp_path / name)]) == 2 and message in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nothing" / "here")]) == 2
    assert "There is no checkpoint or other file at" in capsys.readouterr().err


def test_inspect_knows_an_evaluation(capsys, tmp_path):
    command = ["evaluate", "--prompt", "a red circle", "--methods", "single", "--num-frames", "9"]
    assert main([*command, "--output", str(tmp_path / "results")]) == 0
    capsys.readouterr()
    assert "an evaluation, 1 videos of 1 prompts" in said(capsys, "inspect", str(tmp_path / "results"))


def test_inspect_runs_no_model(things, capsys):
    with no_forward():
        for name in KNOWN:
            said(capsys, "inspect", str(things / name))
