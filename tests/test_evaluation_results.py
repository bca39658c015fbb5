"""Rows, the run that makes them, and the tables made from them."""

import contextlib
import gzip
import json
import math
from dataclasses import replace

import pytest
import torch
from conftest import brightness, contrast

from stream_t1.demo import load_pipeline
from stream_t1.demo.suites import (
    BUDGETS,
    FIRST_SEED,
    demo_suites,
    demo_tasks,
    search_entries,
    shape_of,
    tuning_suite,
)
from stream_t1.evaluation import results
from stream_t1.evaluation.metrics import RewardMetric
from stream_t1.evaluation.report import (
    SuiteRows,
    agreement_table,
    all_tables,
    check_reports,
    rival_tables,
    score_table,
    write_report,
)
from stream_t1.evaluation.results import (
    Job,
    append_row,
    check_folder,
    differing_rows,
    is_finished,
    keep_configuration,
    new_row,
    read_rows,
)
from stream_t1.evaluation.running import Evaluation, share_of
from stream_t1.evaluation.statistics import difference, estimate, holm
from stream_t1.evaluation.suites import Suite, comparison, read_prompts
from stream_t1.models.fingerprint import fingerprint
from stream_t1.search.files import new_file
from stream_t1.search.search_names import SearchText
from stream_t1.search.shipped import SHIPPED_SEARCHES

TASKS = (("a red circle", 1), ("a blue cross", 2), ("a green triangle", 3))
SUITE = Suite("small", (("single", 4), ("full", 8)), TASKS, num_frames=33)


class OneProcess:
    """`accelerate.PartialState` of one process of several."""

    def __init__(self, process_index=0, num_processes=1):
        self.process_index, self.num_processes = process_index, num_processes
        self.is_main_process = self.is_local_main_process = process_index == 0

    def wait_for_everyone(self):
        pass


@pytest.fixture(scope="module")
def pipe():
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def evaluation(pipe):
    metrics = {"brightness": RewardMetric("brightness", brightness), "contrast": RewardMetric("contrast", contrast)}
    return Evaluation(pipe, metrics, ("brightness",), ("brightness",), 64, 64)


def without_seconds(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


def test_a_killed_run_goes_on_and_has_the_rows_of_a_whole_one(evaluation, tmp_path):
    jobs = SUITE.jobs()
    evaluation.run(tmp_path / "whole", jobs, OneProcess())
    whole = (tmp_path / "whole" / "rows-0.jsonl").read_text()
    assert len(whole.splitlines()) == 6

    keep_configuration(tmp_path / "killed", evaluation.configuration())
    cut = whole.splitlines(keepends=True)[0] + whole.splitlines()[1][:70]
    (tmp_path / "killed" / "rows-0.jsonl").write_text(cut)
    assert len(read_rows([tmp_path / "killed"])) == 1
    evaluation.run(tmp_path / "killed", jobs, OneProcess())
    assert len((tmp_path / "killed" / "rows-0.jsonl").read_text().splitlines()) == 7
    rows = [read_rows([tmp_path / name]) for name in ("whole", "killed")]
    assert without_seconds(rows[0]) == without_seconds(rows[1]) and len(rows[0]) == 6
    assert differing_rows(*rows) == []

    path = tmp_path / "whole" / "rows-0.jsonl"
    (tmp_path / "whole" / "rows-0.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert read_rows([tmp_path / "whole"]) == rows[0]


def test_processes_share_whole_tasks():
    jobs = SUITE.jobs() + SUITE.jobs()[:1]  # suites have tasks in common
    shares = [share_of(jobs, index, 2) for index in range(2)]
    assert [len(share) for share in shares] == [4, 2] and {*shares[0], *shares[1]} == set(jobs)
    assert not {job.task for job in shares[0]} & {job.task for job in shares[1]}


def test_a_reward_that_fails_on_one_video_costs_that_video_and_the_table_counts_it(pipe, tmp_path, caplog):
    def blind_to_crosses(frames, prompt, fps):
        if "cross" in prompt[0]:
            raise RuntimeError("no eyes for crosses")
        return brightness(frames, prompt, fps)

    evaluation = Evaluation(pipe, {"seen": RewardMetric("seen", blind_to_crosses)}, ("seen",), ("seen",), 64, 64)
    evaluation.run(tmp_path, SUITE.jobs(), OneProcess())
    rows = read_rows([tmp_path])
    assert "no eyes for crosses" in caplog.text
    assert [is_finished(row) for row in rows] == [True, True, False, False, True, True]
    table = all_tables(SuiteRows(SUITE, rows), ["seen"])["Scores"]
    assert "| single | 4 | 3 | 1 |" in table and "| full | 8 | 3 | 1 |" in table


def test_a_video_that_cannot_be_made_is_named_tried_again_and_counted(evaluation, tmp_path, monkeypatch, caplog):
    make_one = Evaluation.video

    def fail(self, job):
        if job.seed == 2:
            raise ValueError("no room")
        return make_one(self, job)

    suite = replace(SUITE, entries=SUITE.entries[:1])
    monkeypatch.setattr(Evaluation, "video", fail)
    assert evaluation.run(tmp_path, suite.jobs(), OneProcess()) == 1
    rows = read_rows([tmp_path])
    assert "no room" in caplog.text and [row["error"] for row in rows] == [None, "ValueError: no room", None]
    assert "| single | 4 | 2 | 1 |" in all_tables(SuiteRows(suite, rows), ["brightness"])["Scores"]
    assert [is_finished(row) for row in rows] == [True, False, True]
    monkeypatch.setattr(Evaluation, "video", make_one)
    assert evaluation.run(tmp_path, suite.jobs(), OneProcess()) == 0
    assert [row["error"] for row in read_rows([tmp_path])] == [None, None, None]


def test_results_of_another_configuration_are_refused_and_say_what_differs(evaluation, tmp_path):
    keep_configuration(tmp_path, evaluation.configuration())
    other = replace(evaluation, height=128)
    with pytest.raises(ValueError, match="another configuration: `height` is 64 there, 128 here"):
        other.run(tmp_path, SUITE.jobs(), OneProcess())
    assert not list(tmp_path.glob("rows-*"))


def test_a_merged_folder_of_another_configuration_is_named_and_the_rest_goes_on(tmp_path, caplog):
    for name, height in (("a", 64), ("b", 128), ("c", 64)):
        keep_configuration(tmp_path / name, {"height": height, "made_with": {"device": name}})
        append_row(tmp_path / name / "rows-0.jsonl", new_row(Job("single", 4, name, 0, 33)))
    rows = read_rows([tmp_path / name for name in "abc"])
    assert [row["prompt"] for row in rows] == ["a", "c"]
    assert "`height` is 128 there, 64 here" in caplog.text
    with pytest.raises(ValueError, match="no results that can be read"):
        read_rows([tmp_path])


def test_a_line_that_is_no_row_is_named_and_left_out(tmp_path, caplog):
    keep_configuration(tmp_path, {"made_with": {}})
    path = tmp_path / "rows-3.jsonl"
    append_row(path, new_row(Job("single", 4, "a", 0, 33), seconds=1.23456789))
    with path.open("a") as file:
        file.write('[1]\n{"method": "single"}\n{"method": "sin')
    append_row(path, new_row(Job("single", 4, "b", 0, 33)))
    assert [(row["prompt"], row["seconds"]) for row in read_rows([tmp_path])] == [("a", 1.2346), ("b", None)]
    assert [f"line {number}" in caplog.text for number in range(1, 6)] == [False, True, True, True, False]


def test_a_video_that_was_made_counts_whichever_file_says_that_it_failed(tmp_path):
    keep_configuration(tmp_path, {"made_with": {}})
    job = Job("single", 4, "a", 0, 33)
    append_row(tmp_path / "rows-0.jsonl", new_row(job, frames_sha256="1"))
    append_row(tmp_path / "rows-1.jsonl", new_row(job, error="ValueError: no room"))
    append_row(tmp_path / "rows-2.jsonl", new_row(job, problems={"seen": "no eyes"}))
    assert [row["frames_sha256"] for row in read_rows([tmp_path])] == ["1"]
    append_row(tmp_path / "rows-3.jsonl", new_row(job, frames_sha256="2"))
    assert [row["frames_sha256"] for row in read_rows([tmp_path])] == ["2"]


def test_rows_without_a_configuration_are_not_resumed(tmp_path):
    append_row(tmp_path / "rows-0.jsonl", new_row(Job("single", 4, "a", 0, 33)))
    with pytest.raises(ValueError, match="nobody knows what they are of"):
        keep_configuration(tmp_path, {})


def test_a_run_on_another_device_or_version_warns_and_resumes(tmp_path, caplog):
    keep_configuration(tmp_path, {"made_with": {"threads": 1}})
    keep_configuration(tmp_path, {"made_with": {"threads": 2}})
    assert "'threads': 1}; now {'threads': 2}" in caplog.text


def test_videos_that_the_model_cannot_make_are_refused_before_any_is_made(evaluation, tmp_path):
    with pytest.raises(ValueError, match="num_frames"):
        evaluation.run(tmp_path, [Job("single", 4, "a", 0, 50)], OneProcess())
    with pytest.raises(ValueError, match="height"):
        replace(evaluation, height=60).run(tmp_path, SUITE.jobs(), OneProcess())
    assert list(tmp_path.iterdir()) == []


def test_rows_that_differ_are_found():
    job, other = Job("single", 4, "a", 0, 33), Job("full", 8, "a", 0, 33)
    rows = [new_row(job, frames_sha256="1", seconds=1.0), new_row(other, frames_sha256="2", seconds=1.0)]
    kept = [new_row(job, frames_sha256="1", seconds=2.0), new_row(other, frames_sha256="3", seconds=1.0)]
    assert differing_rows(rows, kept) == [other]


def test_a_fingerprint_is_of_every_weight_tensor(toy_models):
    transformer, _ = toy_models
    before = fingerprint(transformer)
    assert before == fingerprint(transformer)
    weight = transformer.blocks[1].ffn.net[2].bias
    with torch.no_grad():
        weight[0] += 1
        assert fingerprint(transformer) != before
        weight[0] -= 1


def test_means_are_of_videos_and_intervals_of_prompts():
    values, groups = [0.0, 0.0, 0.0, 1.0], ["a", "a", "a", "b"]
    found = estimate(values, groups)
    assert (found.mean, found.count) == (0.25, 4)
    assert (found.low, found.high) == (0.0, 1.0)  # two prompts: a redrawing has only one of them half of the time
    assert estimate([0.5] * 4, groups).low == estimate([0.5] * 4, groups).high == 0.5
    assert math.isnan(estimate([0.0, 1.0], ["a", "a"]).high)  # one prompt says nothing of others


def test_the_sign_test_counts_prompts_and_not_videos():
    many = difference([1.0] * 20, [0.0] * 20, list(range(20)))
    assert many.mean == 1 and many.p < 0.001
    one = difference([1.0] * 20, [0.0] * 20, ["same"] * 20)
    assert one.mean == 1 and one.p == 1.0 and math.isnan(one.low)
    three = difference([1.0, 1.0, 1.0], [0.0] * 3, [1, 2, 3])
    assert three.p == pytest.approx(0.25, abs=0.02)  # two of the eight sign patterns lie as far from 0
    assert difference([1.0, 0.0], [0.0, 1.0], [1, 2]).p == 1.0


def test_holm_multiplies_the_smallest_p_by_all_tests_and_the_next_by_one_fewer():
    assert holm([0.04, 0.01, 0.5, 0.03]) == pytest.approx([0.09, 0.04, 0.5, 0.09])  # 3 x 0.03 stands for 2 x 0.04 too
    assert holm([0.7, 0.6]) == [1.0, 1.0] and holm([]) == []


def fabricated_rows():
    scores = {"single": (0.0, 0.0, 1.0), "full": (1.0, 0.0, 1.0)}
    costs = {"forwards": 12, "clean_passes": 2, "latents_decoded": 9, "frames_scored": 0}
    return [
        new_row(
            job,
            scores={"judge": scores[job.method][job.seed - 1], "judge.shape": 0.5, "reward": float(job.seed)},
            windows={"judge": [0.0, 1.0]},
            cost=costs,
            search={"spread": [0.5, 0.25]} if job.method == "full" else {},
            seconds=float(job.seed),
        )
        for job in SUITE.jobs()
    ]


def test_tables_say_what_the_rows_say(tmp_path):
    tables = all_tables(SuiteRows(SUITE, fabricated_rows()), ["judge"])
    assert "| single | 4 | 3 | 0 | 0.333 [0.000, 1.000] |  |  |" in tables["Scores"]
    assert "| full | 8 | 3 | 0 | 0.667 [0.000, 1.000] | +0.333 [+0.000, +1.000] | 1.0000 |" in tables["Scores"]
    assert "| full | 8 | 12 | 2 | 9 | 0 | 2.00 |" in tables["Cost of a video"]
    assert "| full | 8 | 0.500 | 0.250 |" in tables["Spread of the candidates' scores by chunk"]
    assert "| single | 4 | 0.500 [0.500, 0.500] |" in tables["Parts of judge"]
    assert not any("orders as" in title for title in tables)  # every prompt has one video
    assert not any("step" in title or "budget" in title or " by shape" in title for title in tables)
    by_shape = all_tables(SuiteRows(replace(SUITE, groupings={"shape": shape_of}), fabricated_rows()), ["judge"])
    assert "| circle | 1 | 0.000 | 1.000 |" in by_shape["Full and single by shape"]
    path = write_report(SUITE, fabricated_rows(), ["judge"], tmp_path)
    assert tables["Scores"] in path.read_text() and (tmp_path / "small-chunks.png").stat().st_size > 5000


def test_steps_and_budgets_are_compared_pair_by_pair(tmp_path):
    entries = tuple((name, budget) for name in ("best-of-chunks", "beam") for budget in (8, 16, 32))
    suite = Suite("steps", entries, TASKS)
    cost = dict.fromkeys(("forwards", "clean_passes", "latents_decoded", "frames_scored"), 1)
    rows = [
        new_row(job, scores={"judge": float(job.method == "beam" and job.budget > 8)}, cost=cost, seconds=1.0)
        for job in suite.jobs()
    ]
    tables = all_tables(SuiteRows(suite, rows), ["judge"])
    assert "| beam, 16 | best-of-chunks, 16 | +1.000 [+1.000, +1.000] | 0.2" in tables["What each step adds"]
    assert "| beam, 8 | best-of-chunks, 8 | +0.000 [+0.000, +0.000] | 1.0000 |" in tables["What each step adds"]
    assert "| beam, 32 | beam, 8 | +1.000" in tables["What a larger budget adds"]
    write_report(suite, rows, ["judge"], tmp_path)
    assert (tmp_path / "steps-forwards.png").stat().st_size > 5000


def test_searches_are_compared_with_each_rival_at_their_budget_by_what_they_spent():
    text = "particles:strength=4"
    entries = tuple((name, budget) for name in ("beam", "best-of-videos", text) for budget in (8, 16))
    tasks = tuple((f"prompt {number}", number) for number in range(12))
    suite = Suite("rivals", entries, tasks, rivals=("beam", "best-of-videos")).priced(4, 7)
    cost = {"forwards": 56, "clean_passes": 6, "latents_decoded": 1, "frames_scored": 1}
    rows = [
        new_row(
            job,
            scores={"judge": float(job.method == text and job.budget == 16)},
            cost=cost | ({"chunk_forwards": 130 + job.seed % 2} if job.method == text else {}),
            seconds=1.0,
        )
        for job in suite.jobs()
    ]
    table = rival_tables(SuiteRows(suite, rows), ["judge"])["judge at equal cost"]
    nothing = "+0.000 [+0.000, +0.000] | 1.0000 | 1.0000"
    assert f"| beam | 8 | 62.0 | 68 | 12 | 0 | 0.000 [0.000, 0.000] |  |  |  | {nothing} |" in table
    (found,) = (line.split(" | ") for line in table.splitlines() if f"| {text} | 16 | 130.5 | 136 | 12 | 0 |" in line)
    difference, raw, corrected = found[7:10]
    assert difference == "+1.000 [+1.000, +1.000]" and float(raw) < 0.005
    assert float(corrected) == pytest.approx(4 * float(raw), abs=2e-4)  # of four tests against the beam
    assert rival_tables(SuiteRows(replace(suite, rivals=()), rows), ["judge"]) == {}


def test_a_reward_is_blind_when_it_orders_half_of_the_pairs_of_a_prompt():
    suite = Suite("pairs", (("single", 4),), tuple((prompt, seed) for prompt in "ab" for seed in range(3)))
    judged = {"a": (1.0, 0.0, 0.0), "b": (0.0, 1.0, 1.0)}
    scored = {"a": (9.0, 7.0, 8.0), "b": (2.0, 1.0, 3.0)}  # alike: both pairs of a, one of two of b
    rows = [
        new_row(job, scores={"judge": judged[job.prompt][job.seed], "reward": scored[job.prompt][job.seed]})
        for job in suite.jobs()
    ]
    assert "| reward | 0.750 |" in agreement_table(SuiteRows(suite, rows), ["judge"])


def test_a_baseline_that_can_spend_the_entrys_budget_is_compared_at_it():
    suite = Suite("equal", tuple((n, b) for n in ("beam", "full") for b in (8, 16)), TASKS)
    rows = [new_row(job, scores={"judge": job.budget / 16 + (job.method == "full")}) for job in suite.jobs()]
    table = score_table(SuiteRows(suite, rows), ["judge"])
    assert "| beam | 16 | 3 | 0 | 1.000 [1.000, 1.000] |  |  |" in table
    assert "| full | 16 | 3 | 0 | 2.000 [2.000, 2.000] | +1.000 [+1.000, +1.000] |" in table


def test_the_demos_suites_count_the_same_held_out_prompts_from_the_first():
    suites = demo_suites()
    for suite in suites.values():
        assert suite.priced(num_steps=4, num_chunks=7).entries == suite.entries
        assert suite.tasks == demo_tasks(300)[: len(suite.tasks)]
    assert len(suites["main"].tasks) == len(set(suites["main"].tasks)) == 300
    assert len({prompt for prompt, _ in suites["main"].tasks}) == 48
    assert min(seed for _, seed in suites["main"].tasks) == FIRST_SEED
    assert {budget for _, budget in suites["budgets"].entries} == {4, 8, 16, 32}


def test_every_shipped_search_is_in_the_demos_comparison_of_searches():
    entries = search_entries()
    assert {SearchText.parse(text).name for text, _ in entries} == set(SHIPPED_SEARCHES)
    assert {budget for _, budget in entries} == set(BUDGETS) and len(set(entries)) == len(entries)


def test_settings_are_tuned_on_captions_and_seeds_that_are_not_reported():
    tuned = tuning_suite(search_entries()).priced(4, 7)
    assert not {prompt for prompt, _ in tuned.tasks} & {prompt for prompt, _ in demo_tasks(300)}
    assert max(seed for _, seed in tuned.tasks) < FIRST_SEED
    assert set(tuned.entries) == set(demo_suites()["searches"].entries)


def test_a_file_of_prompts_makes_a_comparison_and_empty_lines_are_missing_prompts(tmp_path, caplog):
    path = tmp_path / "prompts.txt"
    path.write_text("a cat\n\na dog\na cat\n\n")
    prompts = read_prompts(path)
    suite = comparison(["single", "full"], [8, 16], prompts, num_seeds=2, num_frames=33, num_steps=4, num_chunks=3)
    assert suite.entries == (("single", 4), ("full", 8), ("full", 16)) and suite.baseline == ("single", 4)
    assert suite.tasks == (("a cat", 0), ("a cat", 1), ("a dog", 0), ("a dog", 1)) and suite.num_lost == 2
    assert "line 2 is empty" in caplog.text
    assert "| single | 4 | 0 | 6 |" in all_tables(SuiteRows(suite, []), ["judge"])["Scores"]
    path.write_text("\n")
    with pytest.raises(ValueError, match="no prompts"):
        read_prompts(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfa cat\n\na d\xc3\xb6g\n",
        b"a cat\r\n\r\na d\xc3\xb6g\r\n",
        b"\xef\xbb\xbfa cat\r\n\r\na d\xc3\xb6g",
        b" a cat\r\ra d\xc3\xb6g \r",
    ],
    ids=["mark", "carriage returns", "both", "carriage returns alone"],
)
def test_how_a_file_of_prompts_was_saved_changes_no_prompt(tmp_path, content):
    (tmp_path / "prompts.txt").write_bytes(content)
    assert read_prompts(tmp_path / "prompts.txt") == ["a cat", "", "a dög"]


@pytest.mark.parametrize("text, line", [("a cat\na dög\n".encode("latin-1"), 2), ("a cat\n".encode("utf-16"), 1)])
def test_a_file_of_prompts_in_another_encoding_is_told_with_its_name_and_line(tmp_path, text, line):
    (tmp_path / "prompts.txt").write_bytes(text)
    with pytest.raises(ValueError, match=f"prompts.txt, line {line} is no UTF-8.*Save the file as UTF-8"):
        read_prompts(tmp_path / "prompts.txt")


def test_a_report_replaces_earlier_ones_and_no_file_of_the_users(tmp_path):
    path = write_report(SUITE, fabricated_rows(), ["judge"], tmp_path)
    write_report(SUITE, fabricated_rows()[:-1], ["judge"], tmp_path)
    path.write_text("mine")
    for write in (
        lambda: write_report(SUITE, fabricated_rows(), ["judge"], tmp_path),
        lambda: check_reports([SUITE], tmp_path),
    ):
        with pytest.raises(
            FileExistsError, match=f"has {path.name}, which Stream-T1 did not write or which was changed"
        ):
            write()
    assert path.read_text() == "mine"


def test_of_two_that_begin_at_once_the_second_is_held_to_the_first_ones_configuration(tmp_path, monkeypatch):
    first, second = ({"height": height, "made_with": {}} for height in (64, 128))
    monkeypatch.setattr(results, "new_file", lambda path: new_file_after(path, first))
    with pytest.raises(ValueError, match="`height` is 64 there, 128 here"):
        keep_configuration(tmp_path, second)
    assert [path.name for path in tmp_path.iterdir()] == ["configuration.json"]


@contextlib.contextmanager
def new_file_after(path, faster):
    with new_file(path) as written:
        yield written
        path.write_text(json.dumps(faster))


@pytest.mark.parametrize("name", ["file", "file/results", "x" * 256])
def test_a_folder_that_cannot_be_made_is_refused_first(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"{name.split('/')[-1][:20]}|file"):
        check_folder(tmp_path / name)
    check_folder(tmp_path / "absent/results")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
