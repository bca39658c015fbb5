"""Compare ways to search on the demo at equal cost: `python -m stream_t1.demo.evaluate --output FOLDER`.

By default it makes all comparisons on the demo's held-out captions, which takes two cores a few hours; `--suite` and
`--limit` make fewer. `accelerate launch -m stream_t1.demo.evaluate ...` spreads the videos over processes, GPUs and
machines. The same command resumes a run that was killed. `stream-t1 evaluate` compares on any other model.

FOLDER gets one line of JSON for every video (`rows-N.jsonl`), and tables and pictures of every suite.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..commands import run_command
from ..commands.evaluate import add_folder_arguments, count, run_comparison
from ..evaluation.metrics import searched_rewards
from ..evaluation.running import Evaluation
from ..evaluation.suites import Suite
from . import CHECKPOINT, load_pipeline
from .judge import load_judge
from .suites import demo_suites
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
    parser.add_argument("--suite", action="append", choices=list(demo_suites()), help="default: all, in this order")
    parser.add_argument("--limit", type=count, help="the first so many prompts of a suite")
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


def choose_suites(options: argparse.Namespace, num_steps: int) -> list[Suite]:
    """The demo's comparisons that the options name.

    Raises:
        ValueError: a method can't spend a budget.
    """
    suites = demo_suites()
    chosen = [suites[name] for name in options.suite or suites]
    for suite in chosen:
        suite.check(num_steps)
    return [replace(suite, tasks=suite.tasks[: options.limit]) for suite in chosen]


if __name__ == "__main__":
    sys.exit(main())
