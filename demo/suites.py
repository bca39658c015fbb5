"""The demo's comparisons.

Their prompts are its held-out captions in turn, with new seeds in every round; all suites count them from the first,
so that smaller ones are subsets of the larger and share their rows.
"""

from collections.abc import Mapping, Sequence

from ..evaluation.methods import find_method
from ..evaluation.suites import Suite
from .clips import held_out_captions, parse_caption, train_captions

FIRST_SEED = 2_000_000  # no video of a seed from here on was looked at before the comparison
FIRST_TUNING_SEED = 1_000_000  # and those from here on were looked at, to choose settings
SEARCHES = ("best-of-videos", "best-of-chunks", "beam", "beam+noise", "beam+memory", "full")
PLAIN = ("single", "sliding-window", "ema-sink", "routed-sink")
CORRELATIONS = (-0.7, -0.5, -0.3, 0.3, 0.5, 0.7)  # beside 0, which is "beam", and the default -0.1
LONG_FRAMES = 477  # 40 chunks
STEPS = 4  # denoising steps of a chunk
BUDGETS = (8, 16, 32)
RIVALS = ("beam", "best-of-videos")
TUNING = "searches-tuning"

# What the comparison of searches is made with: one text for all budgets, or one for each that the search can spend.
# Numbers that are not there are the budget's. Chosen at 16 forwards by `--suite searches-tuning`, on training captions
# alone (benchmarks/results/searches-tuning), and carried over to 8 and 32 at the same proportions.
SEARCH_SETTINGS: tuple[str | Mapping[int, str], ...] = (
    "best-of-n",
    "beam:num_beams=1",
    "beam:num_beams=1,prune_every=2",
    {16: "beam:num_beams=1,prune_every=3"},
    {16: "beam:num_beams=1,prune_every=7"},
    "particles:strength=20",
    {budget: "evolution:generations=2,elites=1,mutation=1,at_step=1" for budget in (16, 32)},
    {budget: f"early-pruning:keep={max(budget // 8, 1)},after_step=3" for budget in BUDGETS},
    {8: "staged:budget=1x9/1x1", 16: "staged:budget=1x20/1x2", 32: "staged:budget=1x42/1x4"},
    {budget: "lookahead:inner=beam(num_beams=1),steps=1" for budget in (16, 32)},
    {
        budget: f"backtracking:inner=beam(num_beams=1,num_candidates={number}),bound=0.7,depth=1,retries=1"
        for budget, number in ((8, 1), (16, 3), (32, 6))
    },
    {
        8: "early-stop:inner=beam(num_beams=1,num_candidates=1),margin=0.02,patience=2,max_rounds=2",
        16: "early-stop:inner=beam(num_beams=1,num_candidates=2),margin=0.02,patience=2,max_rounds=4",
        32: "early-stop:inner=beam(num_beams=1,num_candidates=4),margin=0.02,patience=2,max_rounds=4",
    },
    {
        8: "prompt-adaptive:num_beams=1,num_candidates=1,strength=1.3,max_candidates=2",
        16: "prompt-adaptive:num_beams=1,num_candidates=2,strength=1.65,max_candidates=5",
        32: "prompt-adaptive:num_beams=1,num_candidates=4,strength=1.6,max_candidates=10",
    },
)


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
        Suite("searches", (*_at(BUDGETS, RIVALS), *search_entries()), demo_tasks(60), rivals=RIVALS),
    )
    return {suite.name: suite for suite in suites}


def search_entries() -> tuple[tuple[str, int], ...]:
    """The searches of the comparison, each at the budgets that it can spend."""
    settings = ((dict.fromkeys(BUDGETS, each) if isinstance(each, str) else each) for each in SEARCH_SETTINGS)
    return tuple((find_method(text).name, budget) for each in settings for budget, text in each.items())


def tuning_suite(entries: Sequence[tuple[str, int]]) -> Suite:
    """A comparison of settings with the rivals at their budgets, on captions and seeds of which none is reported."""
    captions = train_captions()
    tasks = tuple((caption.text, FIRST_TUNING_SEED + index) for index, caption in enumerate(captions))
    budgets = sorted({budget for _, budget in entries})
    return Suite(TUNING, tuple(dict.fromkeys((*_at(budgets, RIVALS), *entries))), tasks, rivals=RIVALS)


def _at(budgets: Sequence[int], names: Sequence[str]) -> tuple[tuple[str, int], ...]:
    return tuple((name, budget) for name in names for budget in budgets)
