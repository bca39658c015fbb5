"""`stream-t1 evaluate` on any model and `python -m stream_t1.demo.evaluate` on the demo, as a user runs them."""

import select
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from tiny_rewards import save_reward, videoalign_reward

from stream_t1.__main__ import main
from stream_t1.demo import CHECKPOINT
from stream_t1.demo import evaluate as demo
from stream_t1.demo.suites import demo_tasks, tuning_suite
from stream_t1.evaluation.report import SuiteRows
from stream_t1.evaluation.results import read_rows
from stream_t1.evaluation.running import Evaluation
from stream_t1.evaluation.suites import Suite

METHODS = ["--methods", "single,best-of-chunks", "--budgets", "8", "--num-frames", "33"]


@pytest.fixture
def model(tmp_path):
    """The command on a model and two prompts, with nothing to search by or to measure yet."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    inputs = ["--model", str(CHECKPOINT), "--prompts", str(tmp_path / "prompts.txt")]
    return ["evaluate", *inputs, "--output", str(tmp_path / "results")]


@pytest.fixture
def arguments(model, tmp_path):
    """A comparison of two methods by a reward that the model does not bring."""
    reward = save_reward(videoalign_reward(), tmp_path / "videoalign")
    metrics = ["--metric", "flicker=TemporalFlickerReward", "--metric", f"videoalign={reward}"]
    return [*model, "--video-reward", str(reward), *metrics, *METHODS]


def test_any_model_is_compared_with_any_rewards_and_metrics(arguments, tmp_path, capsys):
    assert main(arguments) == 0
    rows = read_rows([tmp_path / "results"])
    assert [(row["method"], row["budget"]) for row in rows] == [("single", 4), ("best-of-chunks", 8)] * 2
    assert {"flicker", "videoalign", "videoalign.VQ", "videoalign.MQ", "videoalign.TA"} <= rows[0]["scores"].keys()
    report = tmp_path / "results" / "comparison.md"
    written = report.read_text()
    assert "| best-of-chunks | 8 | 2 | 0 |" in written and "## Parts of videoalign" in written

    report.unlink()
    capsys.readouterr()
    more = ["--report-only", "--sheet", "1", "--compare", str(tmp_path / "results")]
    assert main([*arguments, *more]) == 0
    assert report.read_text() == written
    assert (tmp_path / "results" / "comparison-sheet.png").stat().st_size > 5000
    assert "4 videos are in both, 0 of them differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (["--budgets", "10"], "can't spend a budget of 10"),
        (["--methods", "luck"], "no method 'luck'"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--metric", "x=CLIPScoreReward"], "needs a model"),
        (["--num-frames", "50"], "num_frames"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, capsys, more, message):
    assert main([*arguments, *more]) == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("stream-t1: ") and message in said


@pytest.mark.parametrize(
    "more, message",
    [
        (["--num-seeds", "0"], "invalid count value"),
        (["--methods", ","], "invalid names value"),
        (["--suite", "main"], "unrecognized arguments: --suite main"),
    ],
)
def test_an_argument_that_cannot_be_read_is_refused_by_the_parser(model, capsys, more, message):
    with pytest.raises(SystemExit) as exit_status:
        main([*model, *more])
    assert exit_status.value.code == 2 and message in capsys.readouterr().err.splitlines()[-1]


def test_prompts_are_read_before_the_model_is_loaded(model, tmp_path, capsys, monkeypatch):
    (tmp_path / "prompts.txt").write_bytes(b"a cat\na d\xf6g\n")
    monkeypatch.setattr("stream_t1.commands.evaluate.load_model", lambda name: pytest.fail("loaded"))
    assert main(model) == 2
    assert "prompts.txt, line 2 is no UTF-8" in capsys.readouterr().err.splitlines()[-1]


def test_two_evaluations_that_begin_at_once_on_one_new_folder_make_every_video_once(model, tmp_path):
    command = [sys.executable, "-m", "stream_t1", *model, "--methods", "single", "--num-frames", "9"]
    command += ["--metric", "flicker=TemporalFlickerReward", "--num-seeds", "3"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    lines = [line for path in (tmp_path / "results").glob("rows-*") for line in path.read_text().splitlines()]
    assert len(lines) == len(read_rows([tmp_path / "results"])) == 6
    assert sorted(path.name for path in (tmp_path / "results").iterdir() if path.name[0] == ".") == []
    assert (tmp_path / "results" / "comparison.md").is_file()


def test_an_evaluation_waits_for_one_that_is_at_work_and_not_for_one_that_was_killed(tmp_path):
    code = "import sys, pathlib; from stream_t1.evaluation.results import only_evaluation\n"
    code += "with only_evaluation(pathlib.Path(sys.argv[1])): print('at work', flush=True); sys.stdin.read()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    first, second = (subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], **pipes) for _ in range(2))
    ready, _, _ = select.select([first.stdout, second.stdout], [], [])
    working, waiting = (first, second) if first.stdout in ready else (second, first)
    assert working.stdout.readline() == "at work\n"
    while "waiting for it" not in (told := waiting.stderr.readline()):
        assert told
    assert f"process {working.pid} on " in told
    working.kill()
    assert waiting.stdout.readline() == "at work\n"
    assert waiting.communicate("")[1] is not None and waiting.returncode == 0 and not list(tmp_path.iterdir())
    working.communicate()


def test_results_of_another_size_are_not_gone_on_with(model, capsys):
    short = ["--methods", "single", "--num-frames", "9", "--metric", "flicker=TemporalFlickerReward"]
    assert main([*model, *short]) == 0
    assert main([*model, *short, "--width", "128"]) == 2
    assert "another configuration: `width` is 64 there, 128 here" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "more, message",
    [
        (["--methods", "single"], "Nothing is measured"),
        (["--metric", "flicker=TemporalFlickerReward"], "needs a reward to search by"),
    ],
)
def test_comparisons_of_nothing_are_refused(model, tmp_path, capsys, more, message):
    assert main([*model, *more]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "results").exists()


def test_an_interrupted_comparison_says_how_to_go_on(arguments, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Evaluation, "make", interrupt)
    assert main(arguments) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stream-t1: interrupted; the same command goes on"


def test_two_processes_share_the_videos(arguments, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    result = subprocess.run([*launch, "stream_t1", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "results").glob("rows-*")) == ["rows-0.jsonl", "rows-1.jsonl"]
    shared = {row["prompt"]: row["frames_sha256"] for row in read_rows([tmp_path / "results"])}
    assert len(shared) == 2 and "| single | 4 | 2 | 0 |" in (tmp_path / "results" / "comparison.md").read_text()


def test_the_demos_command_has_the_demos_verdicts_and_draws_the_first_pairs_of_a_suite(tmp_path, monkeypatch):
    entries, tasks = (("single", 4), ("best-of-chunks", 8)), tuple(demo_tasks(2))
    monkeypatch.setattr(demo, "demo_suites", lambda: {"betas": Suite("betas", entries, tasks, num_frames=33)})
    assert demo.main(["--output", str(tmp_path), "--suite", "betas", "--limit", "1", "--sheet", "1"]) == 0
    assert {"judge.lowest", "checker.lowest"} <= read_rows([tmp_path])[0]["scores"].keys()
    assert (tmp_path / "betas-sheet.png").stat().st_size > 5000


def test_any_search_with_any_numbers_is_a_method_and_two_texts_of_one_search_are_one(arguments, tmp_path):
    texts = "best-of-n,early-pruning:keep=1,after_step=1,best-of-n,particles:potential=max,strength=4"
    assert main([*arguments, "--num-frames", "9", "--budgets", "8", "--methods", texts]) == 0
    rows = read_rows([tmp_path / "results"])
    names = ["best-of-n", "early-pruning:keep=1,after_step=1", "particles:strength=4,potential=max"]
    assert [row["method"] for row in rows] == names * 2
    assert [row["cost"]["chunk_forwards"] for row in rows[:3]] == [8, 8, 8]
    assert main([*arguments, "--num-frames", "9", "--methods", "particles:strength=4,num_particles=9"]) == 2


def test_what_was_tried_for_the_demos_comparison_is_kept_with_its_rows(tmp_path, monkeypatch):
    def short(entries):
        return replace(tuning_suite(entries), num_frames=33)

    monkeypatch.setattr(demo, "tuning_suite", short)
    tuning = ["--output", str(tmp_path), "--suite", "searches-tuning", "--limit", "1"]
    for text in ("particles:strength=4", "particles:strength=400"):
        assert demo.main([*tuning, "--methods", text, "--budgets", "8"]) == 0
    assert len(read_rows([tmp_path])) == 4
    assert "| particles:strength=4 |" not in (tmp_path / "searches-tuning.md").read_text()
    assert demo.main([*tuning, "--report-only"]) == 0
    told = (tmp_path / "searches-tuning.md").read_text()
    assert "| particles:strength=4 | 8 |" in told and "| particles:strength=400 | 8 |" in told


@pytest.mark.parametrize(
    "more, message",
    [
        (["--suite", "searches-tuning", "--suite", "main"], "goes alone"),
        (["--suite", "searches", "--methods", "best-of-n"], "goes alone"),
        (["--suite", "searches-tuning", "--methods", "evolution:generations=2,elites=1,mutation=1"], "of 12 or more"),
    ],
)
def test_the_demos_suites_refuse_what_is_of_another(tmp_path, capsys, more, message):
    assert demo.main(["--output", str(tmp_path / "results"), *more]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1] and not (tmp_path / "results").exists()


def test_full_search_of_the_shipped_demo_finds_more_of_what_it_searches_and_loses_nothing_that_is_judged():
    tasks = tuple((prompt, 3_000_000 + index) for index, (prompt, _) in enumerate(demo_tasks(8)))
    suite = Suite("short", (("single", 4), ("full", 16)), tasks)
    evaluation = demo.load_demo(demo.build_parser().parse_args(["--output", "unused"]), torch.device("cpu"))
    found = SuiteRows(suite, [evaluation.make(job) for job in suite.jobs()])
    single, full = suite.entries
    # Among 5,000 draws of 8 of the 300 pairs of the kept evaluation the lowest were 0.007, -0.16, 0.28 and 0.25.
    assert found.difference(full, single, "video_reward").mean > 0.005
    assert found.difference(full, single, "judge.probability").mean > -0.2
    assert found.mean(full, "judge.probability").mean > 0.25 and found.mean(full, "judge").mean > 0.2
