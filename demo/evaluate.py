"""Compare ways to search at equal cost: `python -m stream_t1.demo.evaluate --output FOLDER`.

Without more it makes the demo's comparisons on its held-out captions, which takes two cores a few hours; `--suite` and
`--limit` make less of it. With `--model` and `--prompts` it compares methods on any model, with any rewards and
metrics. `accelerate launch -m stream_t1.demo.evaluate ...` spreads the videos over processes, GPUs and machines. A
run that was killed goes on with the same command.

FOLDER gets one line of JSON for every video (`rows-N.jsonl`), and tables and pictures of every suite.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import PartialState

from ..commands.generate import load_model
from ..pipeline_stream_t1 import StreamT1Pipeline
from . import CHECKPOINT, load_pipeline
from .card import draw_contact_sheet, load_pyplot
from .evaluation.methods import METHODS, find_method
from .evaluation.metrics import JudgeMetric, Metric, RewardMetric, checker_metric, load_metrics
from .evaluation.report import write_report
from .evaluation.results import SURROUNDINGS, Job, Row, check_same, differing_rows, read_configuration, read_rows
from .evaluation.running import Evaluation
from .evaluation.suites import NORMAL_FRAMES, Suite, comparison, demo_suites
from .judge import load_judge


def main(arguments: Sequence[str] | None = None) -> None:
    parser = build_parser()
    options = parser.parse_args(arguments)
    try:
        check_options(parser, options)
        load_pyplot()  # not when all videos are made
        # Processes meet only when all are done, and the first may wait for the last for hours.
        run(options, PartialState(cpu=not torch.accelerator.is_available(), timeout=timedelta(days=7)))
    except (ValueError, OSError, ImportError) as error:
        parser.exit(2, f"{parser.prog}: {error}\n")
    except KeyboardInterrupt:
        parser.exit(130, f"{parser.prog}: interrupted; the same command goes on\n")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stream_t1.demo.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="made, or gone on with")
    parser.add_argument("--report-only", action="store_true", help="make no video, write tables of what is there")
    parser.add_argument(
        "--merge", type=Path, action="append", default=[], metavar="FOLDER", help="read these rows too, for the report"
    )
    parser.add_argument("--compare", type=Path, metavar="FOLDER", help="say which rows differ from those kept there")
    parser.add_argument(
        "--model", default=str(CHECKPOINT), help="folder or Hub id; without --prompts one of the demo's training"
    )
    parser.add_argument(
        "--sheet", type=count, metavar="N", help="draw the first N videos of the first suite's first and last method"
    )
    demo = parser.add_argument_group("the demo's comparisons")
    demo.add_argument("--suite", action="append", choices=list(demo_suites()), help="default: all, in this order")
    demo.add_argument("--limit", type=count, help="the first so many prompts of a suite")
    other = parser.add_argument_group("a comparison on any model")
    other.add_argument("--prompts", type=Path, metavar="FILE", help="one prompt in each line")
    other.add_argument("--image-reward", help="folder or Hub id of a converted reward")
    other.add_argument("--video-reward", help="likewise")
    other.add_argument(
        "--metric",
        action="append",
        metavar="NAME=REWARD",
        help="measured of every video: a converted reward's folder or Hub id, a CLASS of stream_t1.rewards, or "
        "CLASS:MODEL; repeat for more; default: the searched rewards on whole videos",
    )
    other.add_argument(
        "--methods", type=names, default="single,best-of-videos,best-of-chunks,full", help=f"of {', '.join(METHODS)}"
    )
    other.add_argument("--budgets", type=counts, default="16", help="denoising forwards per chunk, as in 8,16")
    other.add_argument("--num-seeds", type=count, default=1, help="videos of each prompt; default: %(default)s")
    other.add_argument("--num-frames", type=count, default=NORMAL_FRAMES, help="default: %(default)s")
    other.add_argument("--height", type=count, help="default: the model's")
    other.add_argument("--width", type=count, help="default: the model's")
    return parser


def count(text: str) -> int:
    """A whole number above 0, of an argument.

    Raises:
        ValueError: it is none.
    """
    if int(text) < 1:
        raise ValueError
    return int(text)


def names(text: str) -> list[str]:
    """Of an argument that lists them with commas."""
    return [name.strip() for name in text.split(",") if name.strip()]


def counts(text: str) -> list[int]:
    """Whole numbers above 0, of an argument that lists them with commas."""
    return [count(number) for number in names(text)]


def check_options(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: an option would do nothing.
    """
    of_the_demo = ("suite", "limit")
    of_others = ("image_reward", "video_reward", "metric", "methods", "budgets", "num_seeds", "num_frames")
    idle = (*of_others, "height", "width") if options.prompts is None else of_the_demo
    defaults = parser.parse_args(["--output", "unused"])
    given = [f"--{name.replace('_', '-')}" for name in idle if getattr(options, name) != getattr(defaults, name)]
    if given:
        wanted = (
            "goes with --prompts" if options.prompts is None else "is of the demo's comparisons, without --prompts"
        )
        raise ValueError(f"{given[0]} {wanted}.")


def run(options: argparse.Namespace, state: PartialState) -> None:
    """What the command does.

    Raises:
        ValueError, OSError: it was asked for what can't be; the message says what.
    """
    is_demo = options.prompts is None
    evaluation = None
    if options.sheet or not options.report_only:
        evaluation = (load_demo if is_demo else load_evaluation)(options, state.device)
    kept = read_configuration(options.output) if evaluation is None else evaluation.configuration()
    suites = choose_suites(options, num_steps=len(kept["denoising_steps"]))
    if not options.report_only:
        num_unfinished = evaluation.run(options.output, [job for suite in suites for job in suite.jobs()], state)
        if num_unfinished:
            print(
                f"{num_unfinished} videos lack something; their rows say what, and the same command tries them again."
            )
    if not state.is_main_process:
        return
    rows = read_rows([options.output, *options.merge])
    for suite in suites:
        print(write_report(suite, rows, kept["verdicts"], options.output))
    if options.sheet:
        print(draw_pairs(evaluation, suites[0], rows, options.sheet, options.output))
    if options.compare is not None:
        compare_rows(options.output, rows, options.compare)


def load_demo(options: argparse.Namespace, device: torch.device) -> Evaluation:
    """The demo, its own rewards to search by, and its verdicts."""
    pipe = load_pipeline(options.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    seen = {"judge": JudgeMetric(load_judge()), "checker": checker_metric}
    return Evaluation(
        pipe,
        {**seen, **searched_rewards(pipe)},
        in_windows=tuple(seen),
        verdicts=tuple(f"{name}.lowest" for name in seen),  # a video is right when it is so throughout
        height=pipe.config.default_height,
        width=pipe.config.default_width,
    )


def load_evaluation(options: argparse.Namespace, device: torch.device) -> Evaluation:
    """Any model with any rewards and metrics."""
    pipe = load_model(options.model)
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


def searched_rewards(pipe: StreamT1Pipeline) -> dict[str, Metric]:
    """What is searched by, of finished videos: no verdict of the demo, but it tells if the rewards are blind."""
    rewards = {name: getattr(pipe, name) for name in ("image_reward", "video_reward")}
    return {name: RewardMetric(name, reward) for name, reward in rewards.items() if reward is not None}


def choose_suites(options: argparse.Namespace, num_steps: int) -> list[Suite]:
    """What the options ask for.

    Raises:
        ValueError: a method can't spend a budget, or there are no prompts.
    """
    if options.prompts is not None:
        return [
            comparison(
                options.methods,
                options.budgets,
                options.prompts,
                num_seeds=options.num_seeds,
                num_frames=options.num_frames,
                num_steps=num_steps,
            )
        ]
    suites = demo_suites()
    chosen = [suites[name] for name in options.suite or suites]
    for suite in chosen:
        suite.check(num_steps)
    return [replace(suite, tasks=suite.tasks[: options.limit]) for suite in chosen]


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
    path = folder / f"{suite.name}-sheet.png"
    draw_contact_sheet(torch.stack(strips), titles, path)
    return path


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


if __name__ == "__main__":
    main()
