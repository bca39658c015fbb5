"""Which methods meet on which prompts: the demo's comparisons, and one for any other model.

The demo's prompts are its held-out captions in turn, every time with another seed; all suites count them from the
first, so that smaller ones are named subsets of the larger and share their rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from diffusers.utils import logging

from ..clips import held_out_captions
from .methods import find_method, num_candidates
from .results import Job

logger = logging.get_logger(__name__)

FIRST_SEED = 2_000_000  # no video of a seed from here on was looked at before the comparison
SEARCHES = ("best-of-videos", "best-of-chunks", "beam", "beam+noise", "beam+memory", "full")
PLAIN = ("single", "sliding-window", "ema-sink", "routed-sink")
CORRELATIONS = (-0.7, -0.5, -0.3, 0.3, 0.5, 0.7)  # beside 0, which is "beam", and the default -0.1
NORMAL_FRAMES, LONG_FRAMES = 81, 477  # 7 and 40 chunks
STEPS = 4  # of the demo


@dataclass(frozen=True)
class Suite:
    """One comparison: every entry makes every task's video."""

    name: str
    entries: tuple[tuple[str, int], ...]  # method and budget
    tasks: tuple[tuple[str, int], ...]  # prompt and seed
    num_frames: int = NORMAL_FRAMES
    baseline: tuple[str, int] = ("single", STEPS)  # of the entries; the others are compared with it
    num_lost: int = 0  # tasks that there should be besides, whose prompts could not be read
    groupings: tuple[str, ...] = ()  # attributes of the demo's captions by which the last entry is looked at closer

    def jobs(self) -> list[Job]:
        """Task by task, so that a run that ends early has pairs."""
        return [
            Job(method, budget, prompt, seed, self.num_frames)
            for prompt, seed in self.tasks
            for method, budget in self.entries
        ]

    def check(self, num_steps: int) -> None:
        """
        Raises:
            ValueError: a method is not known or can't spend its budget.
        """
        for name, budget in self.entries:
            num_candidates(find_method(name), budget, num_steps)


def demo_tasks(num_tasks: int) -> tuple[tuple[str, int], ...]:
    """Held-out captions in turn; every round has seeds of its own."""
    captions = held_out_captions()
    return tuple((captions[index % len(captions)].text, FIRST_SEED + index) for index in range(num_tasks))


def demo_suites() -> dict[str, Suite]:
    """The demo's comparisons, the most important first."""
    plain = tuple((name, STEPS) for name in PLAIN)
    suites = (
        Suite(
            "main",
            (*plain, *((name, 16) for name in SEARCHES)),
            demo_tasks(300),
            groupings=("motion", "shape"),
        ),
        Suite(
            "budgets",
            (
                ("single", STEPS),
                *((name, budget) for name in ("best-of-videos", "best-of-chunks", "full") for budget in (8, 16, 32)),
                *(("beam", budget) for budget in (16, 32)),  # of two candidates it is the best of chunks
            ),
            demo_tasks(48),
        ),
        Suite("growth", (("single", STEPS), *(("full", budget) for budget in (8, 16, 32))), demo_tasks(150)),
        Suite(
            "long",
            (*plain, *((name, 16) for name in ("best-of-chunks", "beam", "beam+memory", "beam+appends", "full"))),
            demo_tasks(12),
            num_frames=LONG_FRAMES,
        ),
        Suite(
            "betas",
            (("beam", 16), ("beam+noise", 16), *((f"beam+noise@{beta:g}", 16) for beta in CORRELATIONS)),
            demo_tasks(24),
            baseline=("beam", 16),
        ),
    )
    return {suite.name: suite for suite in suites}


def comparison(
    methods: Sequence[str], budgets: Sequence[int], prompts: Path, *, num_seeds: int, num_frames: int, num_steps: int
) -> Suite:
    """Methods at budgets on the prompts of a file; methods that try one candidate have the budget of one.

    Raises:
        ValueError: a method can't spend a budget, or there is no prompt.
    """
    texts = [line.strip() for line in prompts.read_text(encoding="utf-8").rstrip().splitlines()]
    for number, text in enumerate(texts, start=1):
        if not text:
            logger.warning(f"{prompts}, line {number} is empty: its prompt is missing.")
    present = list(dict.fromkeys(text for text in texts if text))
    if not present:
        raise ValueError(f"{prompts} has no prompts; it must have one in each line.")
    entries = {
        (name, num_steps if find_method(name).competition == "none" else budget): None
        for name in methods
        for budget in budgets
    }
    suite = Suite(
        "comparison",
        tuple(entries),
        tuple((text, seed) for text in present for seed in range(num_seeds)),
        num_frames=num_frames,
        baseline=next(iter(entries)),
        num_lost=texts.count("") * num_seeds,
    )
    suite.check(num_steps)
    return suite
