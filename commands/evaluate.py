"""`stream-t1 evaluate`: compares ways to search at equal cost, on any model.

`python -m stream_t1.demo.evaluate`, for the demo's own comparisons, is made of the same functions.
"""

import argparse
import contextlib
import re
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from ..evaluation.methods import METHODS, find_method
from ..evaluation.metrics import load_metrics, searched_rewards
from ..evaluation.pictures import draw_contact_sheet, load_pyplot
from ..evaluation.report import check_reports, write_report
from ..evaluation.results import (
    SURROUNDINGS,
    Job,
    Row,
    check_folder,
    check_same,
    differing_rows,
    only_evaluation,
    read_configuration,
    read_rows,
)
from ..evaluation.running import Evaluation
from ..evaluation.suites import NORMAL_FRAMES, Suite, comparison, read_prompts
from ..loaders.saving import filled_folder
from ..search.geometry import VideoGeometry
from ..search.shipped import SHIPPED_SEARCHES
from .generate import load_demo, load_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compares methods on any model, with any rewards and metrics. `accelerate launch -m stream_t1 evaluate ...` "
        "spreads the videos over processes, GPUs and machines. A run that was killed goes on with the same command; "
        "one that is started twice waits for the first."
    )
    parser.add_argument("--model", help="folder or Hub id that StreamT1Pipeline loads; default: the demo")
    prompts = parser.add_mutually_exclusive_group(required=True)
    prompts.add_argument("--prompts", type=Path, metavar="FILE", help="UTF-8, one prompt in each line")
    prompts.add_argument("--prompt", action="append", metavar="TEXT", help="repeat for more")
    add_folder_arguments(parser)
    parser.add_argument("--image-reward", help="folder or Hub id of a converted reward")
    parser.add_argument("--video-reward", help="likewise")
    parser.add_argument(
        "--metric",
        action="append",
        metavar="NAME=REWARD",
        help="measured of every video: a converted reward's folder or Hub id, a CLASS of stream_t1.rewards, or "
        "CLASS:MODEL; repeat for more; default: the searched rewards on whole videos",
    )
    parser.add_argument(
        "--methods",
        type=names,
        default="single,best-of-videos,best-of-chunks,full",
        help=f"of {', '.join(METHODS)}; or a search ({', '.join(SHIPPED_SEARCHES)}) with any of its arguments, as in "
        "particles:strength=4,potential=max: how many are tried may be left to the budget; default: %(default)s",
    )
    parser.add_argument(
        "--budgets",
        type=counts,
        default="16",
        help="denoising forwards per chunk, as in 8,16. A search with arguments may spend, in all, what the plain "
        "samples cost that these pay for, clean passes included; default: %(default)s",
    )
    parser.add_argument("--num-seeds", type=count, default=1, help="videos of each prompt; default: %(default)s")
    parser.add_argument("--num-frames", type=count, default=NORMAL_FRAMES, help="default: %(default)s")
    parser.add_argument("--height", type=count, help="default: the model's")
    parser.add_argument("--width", type=count, help="default: the model's")
    parser.set_defaults(run=evaluate)


def add_folder_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds what every comparison has: where its rows and reports go, and what is done with them."""
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="made, or gone on with; gets one line of JSON for every video (rows-N.jsonl), tables and pictures",
    )
    parser.add_argument("--report-only", action="store_true", help="make no video, write tables of what is there")
    parser.add_argument(
        "--merge", type=Path, action="append", default=[], metavar="FOLDER", help="read these rows too, for the report"
    )
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="say which rows differ from those kept there")
    parser.add_argument(
        "--sheet", type=count, metavar="N", help="draw the first N videos of the first suite's first and last method"
    )


def count(text: str) -> int:
    """Reads a whole number above 0.

    Raises:
        ValueError: the text is something else.
    """
    if int(text) < 1:
        raise ValueError
    return int(text)


def names(text: str) -> list[str]:
    """Reads a list with commas. "ARGUMENT=VALUE" belongs to the name before it.

    Raises:
        ValueError: nothing is in it.
    """
    found = [name.strip() for name in re.split(r",(?!\s*\w+=)", text) if name.strip()]
    if not found:
        raise ValueError
    return found


def counts(text: str) -> list[int]:
    """Reads whole numbers above 0 from a list with commas."""
    return [count(number) for number in names(text)]


def evaluate(options: argparse.Namespace) -> None:
    """Compares methods on a model."""
    options.prompts = options.prompt or read_prompts(options.prompts)
    run_comparison(options, load_evaluation, choose_suites)


def run_comparison(
    options: argparse.Namespace,
    load: Callable[[argparse.Namespace, torch.device], Evaluation],
    choose: Callable[[argparse.Namespace, int, VideoGeometry], list[Suite]],
) -> None:
    """Makes the videos that the folder lacks, then writes its reports.

    Args:
        options: of `add_folder_arguments`, and what `load` and `choose` read.
        load: gives the model with its metrics, on a device.
        choose: gives the suites, for a number of denoising steps and the model's chunks.

    Raises:
        ValueError, OSError: an option asks for something impossible.
        ImportError: matplotlib is missing.
    """
    load_pyplot()  # not when all videos are made
    check_folder(options.output)
    # Processes meet only when all are done, and the first may wait for the last for hours.
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7))
    evaluation = load(options, state.device) if options.sheet or not options.report_only else None
    kept = read_configuration(options.output) if evaluation is None else evaluation.configuration()
    lengths = kept["chunk_frames"], kept.get("first_chunk_frames"), kept["window_frames"]
    geometry = VideoGeometry.of(*lengths, None, None)  # a report has no model
    if evaluation is not None:
        geometry = evaluation.pipe.geometry
    suites = choose(options, len(kept["denoising_steps"]), geometry)
    check_reports(suites, options.output)
    if options.report_only:
        return write_reports(options, evaluation, suites, kept["verdicts"])
    with only_evaluation(options.output) if state.is_main_process else contextlib.nullcontext():
        make_videos(evaluation, options.output, suites, state)
        if state.is_main_process:
            write_reports(options, evaluation, suites, kept["verdicts"])


def write_reports(
    options: argparse.Namespace, evaluation: Evaluation | None, suites: Sequence[Suite], verdicts: Sequence[str]
) -> None:
    """Writes and prints what the rows say.

    Raises:
        ValueError: the rows are not those of the folder that `--compare` names.
    """
    rows = read_rows([options.output, *options.merge])
    for suite in suites:
        print(write_report(suite, rows, verdicts, options.output))
    if options.sheet:
        print(draw_pairs(evaluation, suites[0], rows, options.sheet, options.output))
    if options.compare is not None:
        compare_rows(options.output, rows, options.compare)


def make_videos(evaluation: Evaluation, folder: Path, suites: Sequence[Suite], state: PartialState) -> None:
    """Makes this process's share of the suites' videos and says how many are not finished."""
    try:
        num_unfinished = evaluation.run(folder, [job for suite in suites for job in suite.jobs()], state)
    except KeyboardInterrupt as interrupt:
        raise KeyboardInterrupt("the same command goes on") from interrupt
    if num_unfinished:
        print(f"{num_unfinished} videos lack something; their rows say what, and the same command tries them again.")


def load_evaluation(options: argparse.Namespace, device: torch.device) -> Evaluation:
    """The model with the rewards and metrics that the options name.

    Raises:
        ValueError: nothing is measured, or a method has no reward to search by.
    """
    pipe = load_demo() if options.model is None else load_model(options.model)
    for name in ("image_reward", "video_reward"):
        if getattr(options, name) is not None:
            setattr(pipe, name, getattr(options, name))
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    loaded = {options.image_reward: pipe.image_reward, options.video_reward: pipe.video_reward}  # not in memory twice
    metrics = load_metrics(options.metric or (), device, loaded) or searched_rewards(pipe)
    if not metrics:
        raise ValueError("Nothing is measured of the videos; name a `--metric`, or a reward to search by.")
    searching = [name for name in options.methods if find_method(name).has_rewards]
    if searching and pipe.image_reward is pipe.video_reward is None:
        raise ValueError(f"{searching[0]!r} needs a reward to search by; name `--image-reward` or `--video-reward`.")
    height, width = options.height or pipe.config.default_height, options.width or pipe.config.default_width
    return Evaluation(pipe, metrics, tuple(metrics), tuple(metrics), height, width)


def choose_suites(options: argparse.Namespace, num_steps: int, geometry: VideoGeometry) -> list[Suite]:
    """The one comparison that the options describe.

    Raises:
        TypeError, ValueError: there is no video of such a length, or a method can't spend a budget.
    """
    geometry.check_num_frames(options.num_frames)
    return [
        comparison(
            options.methods,
            options.budgets,
            options.prompts,
            num_seeds=options.num_seeds,
            num_frames=options.num_frames,
            num_steps=num_steps,
            num_chunks=geometry.num_chunks(options.num_frames),
        )
    ]


def draw_pairs(evaluation: Evaluation, suite: Suite, rows: Sequence[Row], num_tasks: int, folder: Path) -> Path:
    """A sheet of the suite's first tasks, not chosen ones: the first method's video over that of the last."""
    known = {Job.of(row): row for row in rows}
    strips, titles = [], []
    for prompt, seed in suite.tasks[:num_tasks]:
        for method, budget in (suite.entries[0], suite.entries[-1]):
            job = Job(method, budget, prompt, seed, suite.num_frames)
            video, row = evaluation.video(job), known.get(job)
            scores = {} if row is None else row["scores"]
            verdicts = ", ".join(f"{name} {scores[name]:g}" for name in evaluation.verdicts if name in scores)
            strips.append(video.frames.float() / 255)
            titles.append(f"{prompt} | {method}: {verdicts}")
    name = f"{suite.name}-sheet.png"
    with filled_folder(folder, lambda into: draw_contact_sheet(torch.stack(strips), titles, into / name)):
        pass
    return folder / name


def compare_rows(folder: Path, rows: Sequence[Row], other: Path) -> None:
    """Prints which rows are not those kept in another folder: none, where machine, versions and threads are the same.

    Raises:
        ValueError: the other folder's rows are of another configuration, or of no job that is here, or some differ.
    """
    ours, theirs = read_configuration(folder), read_configuration(other)
    check_same(ours, theirs, other)
    if ours[SURROUNDINGS] != theirs[SURROUNDINGS]:
        print(f"rows here were made with {ours[SURROUNDINGS]}, those in {other} with {theirs[SURROUNDINGS]}")
    kept = read_rows([other])
    shared = {Job.of(row) for row in rows} & {Job.of(row) for row in kept}
    differing = differing_rows(rows, kept)
    print(f"{len(shared)} videos are in both, {len(differing)} of them differ")
    for job in differing:
        print(f"  {job}")
    if differing or not shared:
        raise ValueError(f"The rows are not those of {other}.")
