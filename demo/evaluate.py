"""Compare ways to search on the demo at equal cost: `python -m stream_t1.demo.evaluate --output FOLDER`.

By default it makes all comparisons on the demo's held-out captions, which takes two cores a few hours; `--suite` and
`--limit` make fewer. `accelerate launch -m stream_t1.demo.evaluate ...` spreads the videos over processes, GPUs and
machines. The same command resumes a run that was killed. `stream-t1 evaluate` compares on any other model.

`--suite searches` compares all searches at equal cost. `--suite searches-tuning`, in a folder of its own, tries
settings for it on training captions: those of `demo/suites.py`, or of `--methods`. With `--report-only` its tables
have all that was ever tried in the folder.

FOLDER gets one line of JSON for every video (`rows-N.jsonl`), and tables and pictures of every suite.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..commands import run_command
from ..commands.evaluate import add_folder_arguments, count, counts, names, run_comparison
from ..evaluation.methods import find_method
from ..evaluation.metrics import searched_rewards
from ..evaluation.results import read_rows
from ..evaluation.running import Evaluation
from ..evaluation.suites import Suite
from ..search.geometry import VideoGeometry
from . import CHECKPOINT, load_pipeline
from .judge import load_judge
from .suites import BUDGETS, TUNING, demo_suites, search_entries, tuning_suite
from .verdicts import JudgeMetric, checker_metric


def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stream_t1.demo.evaluate",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_folder_arguments(parser)
    parser.add_argument(
        "--model", default=str(CHECKPOINT), help="folder or Hub id of a model that demo.train made; default: the demo"
    )
    parser.add_argument(
        "--suite",
        action="append",
        choices=[*demo_suites(), TUNING],
        help=f"default: all but the last, in this order; {TUNING} goes alone",
    )
    parser.add_argument("--limit", type=count, help="the first so many prompts of a suite")
    parser.add_argument(
        "--methods",
        type=names,
        help=f"of {TUNING}: searches, as in particles:strength=4,best-of-n; default: the settings of the comparison",
    )
    parser.add_argument("--budgets", type=counts, default=list(BUDGETS), help="of `--methods`; default: 8,16,32")
    parser.set_defaults(run=lambda options: run_comparison(options, load_demo, choose_suites))
    return parser


def load_demo(options: argparse.Namespace, device: torch.device) -> Evaluation:
    """Loads the demo, its own rewards to search by, and its verdicts."""
    pipe = load_pipeline(options.model)
    pipe.set_progress_bar_config(disable=True)
    pipe.to(device)
    seen = {"judge": JudgeMetric(load_judge()), "checker": checker_metric}
    return Evaluation(
        pipe,
        {**seen, **searched_rewards(pipe)},
        in_windows=tuple(seen),
        verdicts=tuple(f"{name}.lowest" for name in seen),  # a video is right when it is right throughout
        height=pipe.config.default_height,
        width=pipe.config.default_width,
    )


def choose_suites(options: argparse.Namespace, num_steps: int, geometry: VideoGeometry) -> list[Suite]:
    """The demo's comparisons that the options name.

    Raises:
        TypeError, ValueError: a method can't spend a budget, or the options are of another suite.
    """
    suites = demo_suites()
    if options.suite == [TUNING]:
        chosen = [tuning_suite(_tried(options))]
    elif TUNING in (options.suite or ()) or options.methods:
        raise ValueError(
            f"`--suite {TUNING}` goes alone, into a folder of its own, and `--methods` with nothing else."
        )
    else:
        chosen = [suites[name] for name in options.suite or suites]
    chosen = [suite.priced(num_steps, geometry.num_chunks(suite.num_frames)) for suite in chosen]
    return [replace(suite, tasks=suite.tasks[: options.limit]) for suite in chosen]


def _tried(options: argparse.Namespace) -> Sequence[tuple[str, int]]:
    """Settings to try; of a report, all that have rows."""
    if options.report_only:
        return list(dict.fromkeys((row["method"], row["budget"]) for row in read_rows([options.output])))
    if options.methods is None:
        return search_entries()
    return [(find_method(name).name, budget) for name in options.methods for budget in options.budgets]


if __name__ == "__main__":
    sys.exit(main())
