"""`python -m stream_t1.demo.evaluate` as a user runs it, and what it finds of the shipped demo."""

import subprocess
import sys

import pytest
import torch
from tiny_rewards import save_reward, videoalign_reward

from stream_t1.demo import CHECKPOINT
from stream_t1.demo.evaluate import build_parser, load_demo, main
from stream_t1.demo.evaluation.report import SuiteRows
from stream_t1.demo.evaluation.results import read_rows
from stream_t1.demo.evaluation.suites import Suite, demo_tasks

METHODS = ["--methods", "single,best-of-chunks", "--budgets", "8", "--num-frames", "33"]


@pytest.fixture
def arguments(tmp_path):
    """A comparison of two methods on any model, with a reward that the model does not bring."""
    (tmp_path / "prompts.txt").write_text("a red circle\na blue cross\n")
    reward = save_reward(videoalign_reward(), tmp_path / "videoalign")
    model = ["--model", str(CHECKPOINT), "--prompts", str(tmp_path / "prompts.txt"), "--video-reward", str(reward)]
    metrics = ["--metric", "flicker=TemporalFlickerReward", "--metric", f"videoalign={reward}"]
    return ["--output", str(tmp_path / "results"), *model, *metrics, *METHODS]


def test_any_model_is_compared_with_any_rewards_and_metrics(arguments, tmp_path, capsys):
    main(arguments)
    rows = read_rows([tmp_path / "results"])
    assert [(row["method"], row["budget"]) for row in rows] == [("single", 4), ("best-of-chunks", 8)] * 2
    assert {"flicker", "videoalign", "videoalign.VQ", "videoalign.MQ", "videoalign.TA"} <= rows[0]["scores"].keys()
    report = tmp_path / "results" / "comparison.md"
    written = report.read_text()
    assert "| best-of-chunks | 8 | 2 | 0 |" in written and "## Parts of videoalign" in written

    report.unlink()
    capsys.readouterr()
    main([*arguments, "--report-only", "--sheet", "1", "--compare", str(tmp_path / "results")])
    assert report.read_text() == written
    assert (tmp_path / "results" / "comparison-sheet.png").stat().st_size > 5000
    assert "4 videos are in both, 0 of them differ" in capsys.readouterr().out


@pytest.mark.parametrize(
    "more, message",
    [
        (["--width", "128"], "another configuration: `width` is 64 there, 128 here"),
        (["--budgets", "10"], "can't spend a budget of 10"),
        (["--methods", "luck"], "no method 'luck'"),
        (["--prompts", "nowhere.txt"], "nowhere.txt"),
        (["--metric", "x=CLIPScoreReward"], "needs a model"),
        (["--suite", "main"], "--suite is of the demo's comparisons"),
        (["--num-seeds", "0"], "invalid count value"),
        (["--num-frames", "50"], "num_frames"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(arguments, tmp_path, capsys, more, message):
    (tmp_path / "results").mkdir()
    if more[0] == "--width":
        main(arguments)
    with pytest.raises(SystemExit) as exit_status:
        main([*arguments, *more])
    assert exit_status.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_options_that_would_do_nothing_and_comparisons_of_nothing_are_refused(tmp_path, capsys):
    output, model = ["--output", str(tmp_path / "results")], ["--model", str(CHECKPOINT)]
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    prompts = ["--prompts", str(tmp_path / "prompts.txt")]
    for arguments, message in (
        (["--methods", "full"], "--methods goes with --prompts"),
        ([*prompts, *model, "--methods", "single"], "Nothing is measured"),
        ([*prompts, *model, "--metric", "flicker=TemporalFlickerReward"], "needs a reward to search by"),
    ):
        with pytest.raises(SystemExit):
            main([*output, *arguments])
        assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "results").exists()


def test_two_processes_share_the_videos(arguments, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
    result = subprocess.run([*launch, "stream_t1.demo.evaluate", *arguments], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert sorted(path.name for path in (tmp_path / "results").glob("rows-*")) == ["rows-0.jsonl", "rows-1.jsonl"]
    shared = {row["prompt"]: row["frames_sha256"] for row in read_rows([tmp_path / "results"])}
    assert len(shared) == 2 and "| single | 4 | 2 | 0 |" in (tmp_path / "results" / "comparison.md").read_text()


def test_full_search_of_the_shipped_demo_finds_more_of_what_it_searches_and_loses_nothing_that_is_judged():
    tasks = tuple((prompt, 3_000_000 + index) for index, (prompt, _) in enumerate(demo_tasks(8)))
    suite = Suite("short", (("single", 4), ("full", 16)), tasks)
    evaluation = load_demo(build_parser().parse_args(["--output", "unused"]), torch.device("cpu"))
    found = SuiteRows(suite, [evaluation.make(job) for job in suite.jobs()])
    single, full = suite.entries
    # Among 5,000 draws of 8 of the 300 pairs of the kept evaluation the lowest were 0.007, -0.16, 0.28 and 0.25.
    assert found.difference(full, single, "video_reward").mean > 0.005
    assert found.difference(full, single, "judge.probability").mean > -0.2
    assert found.mean(full, "judge.probability").mean > 0.25 and found.mean(full, "judge").mean > 0.2
