"""The demo's comparisons.

Their prompts are its held-out captions in turn, with new seeds in every round; all suites count them from the first,
so that smaller ones are subsets of the larger and share their rows.
"""

from ..evaluation.suites import Suite
from .clips import held_out_captions, parse_caption

FIRST_SEED = 2_000_000  # no video of a seed from here on was looked at before the comparison
SEARCHES = ("best-of-videos", "best-of-chunks", "beam", "beam+noise", "beam+memory", "full")
PLAIN = ("single", "sliding-window", "ema-sink", "routed-sink")
CORRELATIONS = (-0.7, -0.5, -0.3, 0.3, 0.5, 0.7)  # beside 0, which is "beam", and the default -0.1
LONG_FRAMES = 477  # 40 chunks
STEPS = 4  # denoising steps of a chunk


def demo_tasks(num_tasks: int) -> tuple[tuple[str, int], ...]:
    """Held-out captions in turn; every round has seeds of its own."""
    captions = held_out_captions()
    return tuple((captions[index % len(captions)].text, FIRST_SEED + index) for index in range(num_tasks))


def motion_of(prompt: str) -> str:
    return parse_caption(prompt).motion


def shape_of(prompt: str) -> str:
    return parse_caption(prompt).shape


def demo_suites() -> dict[str, Suite]:
    """The demo's comparisons, the most important first."""
    plain = tuple((name, STEPS) for name in PLAIN)
    suites = (
        Suite(
            "main",
            (*plain, *((name, 16) for name in SEARCHES)),
            demo_tasks(300),
            groupings={"motion": motion_of, "shape": shape_of},
        ),
        Suite(
            "budgets",
            (
                ("single", STEPS),
                *((name, budget) for name in ("best-of-videos", "best-of-chunks", "full") for budget in (8, 16, 32)),
                *(("beam", budget) for budget in (16, 32)),  # with two candidates it is best-of-chunks
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
        ),
    )
    return {suite.name: suite for suite in suites}
