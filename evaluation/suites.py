"""Suites: comparisons of methods at budgets on prompts."""

import codecs
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from diffusers.utils import logging

from .budgets import allowed_forwards
from .methods import check_budget, find_method
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
    rivals: tuple[str, ...] = ()  # methods with which all others are compared at their budget
    allowed: Mapping[int, int] = field(default_factory=dict)  # chunk forwards of a video, by budget

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

    def priced(self, num_steps: int, num_chunks: int) -> "Suite":
        """The suite with what its budgets allow, all of its entries checked.

        Raises:
            TypeError, ValueError: a method is unknown or can't spend its budget.
        """
        for name, budget in self.entries:
            check_budget(find_method(name), budget, num_steps, num_chunks)
        budgets = dict.fromkeys(budget for _, budget in self.entries)
        return replace(self, allowed={each: allowed_forwards(each, num_steps, num_chunks) for each in budgets})


def read_prompts(path: Path) -> list[str]:
    """Reads one prompt from each line of a UTF-8 text; empty where a line is.

    A byte order mark at the beginning, and carriage returns at line ends, are not part of a prompt.

    Raises:
        OSError: the file can't be read.
        ValueError: it is not UTF-8, or has no prompt.
    """
    prompts = []
    lines = path.read_bytes().removeprefix(codecs.BOM_UTF8).rstrip().replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    for number, line in enumerate(lines.split(b"\n"), start=1):
        try:
            prompts.append(line.decode("utf-8").strip())
        except UnicodeDecodeError as error:
            raise ValueError(f"{path}, line {number} is no UTF-8: {error}. Save the file as UTF-8.") from error
        if not prompts[-1]:
            logger.warning(f"{path}, line {number} is empty: its prompt is missing.")
    if not any(prompts):
        raise ValueError(f"{path} has no prompts; it must have one in each line.")
    return prompts


def comparison(
    methods: Sequence[str],
    budgets: Sequence[int],
    prompts: Sequence[str],
    *,
    num_seeds: int,
    num_frames: int,
    num_steps: int,
    num_chunks: int,
) -> Suite:
    """Compares methods at budgets on prompts; methods that try one candidate have the budget of one.


    Args:
        prompts: an empty one counts as missing.

    Raises:
        ValueError: a method can't spend a budget.
    """
    present = list(dict.fromkeys(text for text in prompts if text))
    found = [find_method(name) for name in methods]
    entries = {
        (method.name, num_steps if method.competition == "none" else budget): None
        for method in found
        for budget in budgets
    }
    suite = Suite(
        "comparison",
        tuple(entries),
        tuple((text, seed) for text in present for seed in range(num_seeds)),
        num_frames=num_frames,
        num_lost=list(prompts).count("") * num_seeds,
    )
    return suite.priced(num_steps, num_chunks)
