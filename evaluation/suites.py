"""Suites: comparisons of methods at budgets on prompts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from diffusers.utils import logging

from .methods import candidates_per_chunk, find_method
from .results import Job

logger = logging.get_logger(__name__)

NORMAL_FRAMES = 81  # of a video, unless a comparison says otherwise


@dataclass(frozen=True)
class Suite:
    """One comparison: every entry makes every task's video."""

    name: str
    entries: tuple[tuple[str, int], ...]  # method and budget
    tasks: tuple[tuple[str, int], ...]  # prompt and seed
    num_frames: int = NORMAL_FRAMES
    num_lost: int = 0  # further tasks, whose prompts could not be read
    groupings: Mapping[str, Callable[[str], str]] = field(default_factory=dict)  # title to the group of a prompt

    @property
    def baseline(self) -> tuple[str, int]:
        """The first entry, with which the others are compared."""
        return self.entries[0]

    def jobs(self) -> list[Job]:
        """Jobs task by task, so that a run that ends early has pairs."""
        return [
            Job(method, budget, prompt, seed, self.num_frames)
            for prompt, seed in self.tasks
            for method, budget in self.entries
        ]

    def check(self, num_steps: int) -> None:
        """Checks the methods of all entries.

        Raises:
            ValueError: one is unknown or can't spend its budget.
        """
        for name, budget in self.entries:
            candidates_per_chunk(find_method(name), budget, num_steps)


def comparison(
    methods: Sequence[str], budgets: Sequence[int], prompts: Path, *, num_seeds: int, num_frames: int, num_steps: int
) -> Suite:
    """Compares methods at budgets on the prompts of a file; methods that try one candidate have the budget of one.

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
        num_lost=texts.count("") * num_seeds,
    )
    suite.check(num_steps)
    return suite
