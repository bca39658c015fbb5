"""Tables and pictures of a suite, from its rows alone."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..loaders.saving import check_replaceable, filled_folder
from .metrics import WINDOW_CHUNKS
from .pictures import load_pyplot
from .results import Job, Row
from .statistics import Difference, Estimate, difference, estimate, holm
from .suites import Suite

Entry = tuple[str, int]  # method and budget

# Pairs of methods, compared at equal budgets: the first adds something to the second.
STEPS_OF_THE_METHOD = (
    ("best-of-chunks", "best-of-videos"),
    ("beam", "best-of-chunks"),
    ("beam+noise", "beam"),
    ("beam+memory", "beam"),
    ("beam+appends", "beam"),
    ("full", "beam"),
    ("full", "beam+memory"),
    ("full", "beam+noise"),
)
LOWEST = ".lowest"  # of the windows; a curve is of the windows themselves
COSTS = ("forwards", "clean_passes", "latents_decoded", "frames_scored")


class SuiteRows:
    """The rows of one suite, looked up by entry and task.

    Args:
        suite: says which rows there should be.
        rows: of any suites.
    """

    def __init__(self, suite: Suite, rows: Sequence[Row]) -> None:
        self.suite = suite
        made = {Job.of(row): row for row in rows if row["error"] is None}
        self.rows: dict[Entry, dict[tuple[str, int], Row]] = {entry: {} for entry in suite.entries}
        for job in suite.jobs():
            if job in made:
                self.rows[job.method, job.budget][job.prompt, job.seed] = made[job]

    def num_missing(self, entry: Entry, name: str) -> int:
        """Tasks without a row, or whose row has no such score."""
        return len(self.suite.tasks) + self.suite.num_lost - len(self.values(entry, name))

    def values(self, entry: Entry, name: str) -> dict[tuple[str, int], float]:
        """A score by task, where there is one."""
        rows = self.rows[entry].items()
        return {task: row["scores"][name] for task, row in rows if row["scores"].get(name) is not None}

    def mean(self, entry: Entry, name: str) -> Estimate | None:
        values = self.values(entry, name)
        return estimate(list(values.values()), [prompt for prompt, _ in values]) if values else None

    def difference(self, entry: Entry, other: Entry, name: str) -> Difference | None:
        """Returns the paired difference over the tasks that both entries have; None without any."""
        ours, theirs = self.values(entry, name), self.values(other, name)
        both = [task for task in ours if task in theirs]
        if not both:
            return None
        return difference([ours[t] for t in both], [theirs[t] for t in both], [prompt for prompt, _ in both])

    def curve(self, entry: Entry, name: str) -> list[Estimate]:
        """A verdict over the windows of the videos, one estimate per chunk from the third on."""
        rows = {task: row["windows"].get(name) for task, row in self.rows[entry].items()}
        rows = {task: windows for task, windows in rows.items() if windows}
        groups = [prompt for prompt, _ in rows]
        return [estimate(values, groups) for values in zip(*rows.values(), strict=True)] if rows else []

    def score_names(self) -> list[str]:
        """Returns the names of the scores that any row has, in order of appearance."""
        rows = [row for by_task in self.rows.values() for row in by_task.values()]
        return list({name: None for row in rows for name in row["scores"]})


def write_report(suite: Suite, rows: Sequence[Row], verdicts: Sequence[str], folder: Path) -> Path:
    """Writes `SUITE.md` with the suite's tables, and its pictures beside it; returns its path.

    Raises:
        FileExistsError: a file of such a name in `folder` is not of an earlier report, or was changed.
    """
    found = SuiteRows(suite, rows)
    pictures = _pictures(suite)
    sections = [f"## {title}\n\n{table}" for title, table in all_tables(found, verdicts).items()]
    sections += [f"![{name.removesuffix('.png')}]({name})" for name in pictures]

    def write(into: Path) -> None:
        (into / f"{suite.name}.md").write_text(
            "\n\n".join([f"# {suite.name}: {suite.num_frames} frames", *sections]) + "\n"
        )
        for name, draw in pictures.items():
            draw(found, verdicts, into / name)

    with filled_folder(folder, write):
        pass
    return folder / f"{suite.name}.md"


def check_reports(suites: Sequence[Suite], folder: Path) -> None:
    """Checks that the files of the reports, sheets included, may be written into a folder.

    Raises:
        FileExistsError: one would replace a file that is not of an earlier report, or that was changed.
    """
    names = [name for suite in suites for name in (f"{suite.name}.md", f"{suite.name}-sheet.png", *_pictures(suite))]
    check_replaceable(folder, names)


def _pictures(suite: Suite) -> dict[str, Callable[[SuiteRows, Sequence[str], Path], None]]:
    pictures = {f"{suite.name}-chunks.png": draw_chunks}
    if len({budget for _, budget in suite.entries}) > 2:
        pictures[f"{suite.name}-forwards.png"] = draw_budgets
    return pictures


def all_tables(found: SuiteRows, verdicts: Sequence[str]) -> dict[str, str]:
    """The tables that are not empty, by title."""
    tables = {
        **rival_tables(found, verdicts),
        "Scores": score_table(found, verdicts),
        "Scores of whole videos": score_table(found, [v.removesuffix(LOWEST) for v in verdicts if v.endswith(LOWEST)]),
        "What each step adds": step_table(found, verdicts),
        "What a larger budget adds": growth_table(found, verdicts),
        "Cost of a video": cost_table(found),
        **group_tables(found, verdicts),
        "Pairs of the baseline's videos of a prompt that a reward orders as a verdict does": agreement_table(
            found, verdicts
        ),
        "Spread of the candidates' scores by chunk": spread_table(found),
        **part_tables(found, verdicts),
    }
    return {title: table for title, table in tables.items() if table}


def score_table(found: SuiteRows, verdicts: Sequence[str]) -> str:
    """Every entry's verdicts with intervals, and their difference from the baseline, at the same budget if it has one.

    Missing are tasks that lack a video or one of the verdicts.
    """
    if not verdicts:
        return ""
    suite = found.suite
    header = ["method", "forwards per chunk", "videos", "missing"]
    for name in verdicts:
        header += [name, f"{name}, against {suite.baseline[0]}", "p"]
    lines = []
    for entry in suite.entries:
        missing = max(found.num_missing(entry, name) for name in verdicts)
        cells = [entry[0], str(entry[1]), str(len(found.rows[entry])), str(missing)]
        peer = (suite.baseline[0], entry[1])
        baseline = peer if peer in suite.entries else suite.baseline
        for name in verdicts:
            cells.append(_interval(found.mean(entry, name)))
            cells += ["", ""] if entry == baseline else _tested(found.difference(entry, baseline, name))
        lines.append(cells)
    return _markdown(header, lines)


def rival_tables(found: SuiteRows, verdicts: Sequence[str]) -> dict[str, str]:
    """One table per verdict: every entry, what it spent, and its difference from each rival at the same budget.

    Spent are all chunk forwards of a video, mean, of those that the budget allows. The second p is corrected for all
    tests against the same rival in the table (Holm). Empty for a suite without rivals.
    """
    suite, tables = found.suite, {}
    if not suite.rivals:
        return {}
    for name in verdicts:
        header = ["method", "forwards per chunk", "chunk forwards of a video", "allowed", "videos", "missing", name]
        lines = []
        for entry in suite.entries:
            rows, allowed = found.rows[entry].values(), suite.allowed.get(entry[1])
            spent = f"{np.mean([chunk_forwards(row) for row in rows]):.1f}" if rows else ""
            cells = [entry[0], str(entry[1]), spent, "" if allowed is None else str(allowed), str(len(rows))]
            lines.append([*cells, str(found.num_missing(entry, name)), _interval(found.mean(entry, name))])
        for rival in suite.rivals:
            header += [f"against {rival}", "p", "p, Holm"]
            others = [None if entry[0] == rival else (rival, entry[1]) for entry in suite.entries]
            pairs = zip(suite.entries, others, strict=True)
            tested = [other and other in found.rows and found.difference(entry, other, name) for entry, other in pairs]
            corrected = iter(holm([each.p for each in tested if each]))
            for line, each in zip(lines, tested, strict=True):
                line += [*_tested(each), f"{next(corrected):.4f}"] if each else [""] * 3
        tables[f"{name} at equal cost"] = _markdown(header, lines)
    return tables


def chunk_forwards(row: Row) -> int:
    """All forwards of the transformer that a video took; methods without a search text have no others than these."""
    return row["cost"].get("chunk_forwards", row["cost"]["forwards"] + row["cost"]["clean_passes"])


def step_table(found: SuiteRows, verdicts: Sequence[str]) -> str:
    """Paired differences between methods that differ in one thing, or in all."""
    budgets = dict.fromkeys(budget for _, budget in found.suite.entries)
    pairs = [((first, budget), (second, budget)) for first, second in STEPS_OF_THE_METHOD for budget in budgets]
    return _pair_table(found, verdicts, [pair for pair in pairs if set(pair) <= set(found.suite.entries)])


def growth_table(found: SuiteRows, verdicts: Sequence[str]) -> str:
    """Every method's largest budget against its smallest."""
    budgets: dict[str, list[int]] = {}
    for name, budget in found.suite.entries:
        budgets.setdefault(name, []).append(budget)
    pairs = [((name, max(given)), (name, min(given))) for name, given in budgets.items() if len(given) > 1]
    return _pair_table(found, verdicts, pairs)


def group_tables(found: SuiteRows, verdicts: Sequence[str]) -> dict[str, str]:
    """Compares the last entry's verdicts with the baseline's, group of prompts by group."""
    baseline, last, tables = found.suite.baseline, found.suite.entries[-1], {}
    for grouping, group_of in found.suite.groupings.items():
        groups: dict[str, set[str]] = {}
        for prompt, _ in found.suite.tasks:
            groups.setdefault(group_of(prompt), set()).add(prompt)
        lines = []
        for group, prompts in sorted(groups.items()):
            cells = [group]
            for name in verdicts:
                values = [found.values(entry, name) for entry in (baseline, last)]
                both = [task for task in values[0] if task in values[1] and task[0] in prompts]
                cells += [str(len(both)), *(f"{np.mean([v[t] for t in both]):.3f}" if both else "" for v in values)]
            lines.append(cells)
        header = [grouping]
        for name in verdicts:
            header += ["videos", f"{name}: {baseline[0]}", f"{name}: {last[0]}"]
        tables[f"{last[0].capitalize()} and {baseline[0]} by {grouping}"] = _markdown(header, lines)
    return tables


def agreement_table(found: SuiteRows, verdicts: Sequence[str]) -> str:
    """Share of the pairs of one prompt that a reward orders as a verdict does; 0.5 is chance.

    Pairs that the verdict finds equal are left out. Empty where no prompt has several videos.
    """
    baseline, lines = found.suite.baseline, []
    metrics = {verdict.removesuffix(LOWEST) for verdict in verdicts}
    for name in found.score_names():
        if name.split(".")[0] in metrics:
            continue
        cells = [name]
        for verdict in verdicts:
            judged, scores = found.values(baseline, verdict), found.values(baseline, name)
            both = [task for task in judged if task in scores]
            prompts = np.array([prompt for prompt, _ in both])
            better = np.subtract.outer([judged[t] for t in both], [judged[t] for t in both]) > 0
            better &= prompts[:, None] == prompts[None, :]
            higher = np.sign(np.subtract.outer([scores[t] for t in both], [scores[t] for t in both]))
            cells.append(f"{(higher[better].mean() + 1) / 2:.3f}" if better.any() else "")
        lines.append(cells)
    return _markdown(["reward", *verdicts], lines) if any(cell for line in lines for cell in line[1:]) else ""


def cost_table(found: SuiteRows) -> str:
    """Means per video, and the median of the seconds of making it, measuring not included."""
    header = ["method", "forwards per chunk", *(name.replace("_", " ") for name in COSTS), "seconds (median)"]
    lines = []
    for entry, by_task in found.rows.items():
        if by_task:
            means = [np.mean([row["cost"][name] for row in by_task.values()]) for name in COSTS]
            seconds = np.median([row["seconds"] for row in by_task.values()])
            lines.append([entry[0], str(entry[1]), *(f"{mean:.0f}" for mean in means), f"{seconds:.2f}"])
    return _markdown(header, lines) if lines else ""


def part_tables(found: SuiteRows, verdicts: Sequence[str]) -> dict[str, str]:
    """Tables of all other scores: one for the parts of every verdict, and one for what belongs to none."""
    titles: dict[str, list[str]] = {}
    metrics = {verdict.removesuffix(LOWEST) for verdict in verdicts}
    for name in found.score_names():
        if name not in verdicts:
            owner = name.split(".")[0] if name.split(".")[0] in metrics else None
            titles.setdefault(f"Parts of {owner}" if owner else "Other scores", []).append(name)
    tables = {}
    for title, names in titles.items():
        lines = [
            [entry[0], str(entry[1]), *(_interval(found.mean(entry, name)) for name in names)]
            for entry in found.suite.entries
            if found.rows[entry]
        ]
        tables[title] = _markdown(["method", "forwards per chunk", *names], lines)
    return tables


def spread_table(found: SuiteRows) -> str:
    """Spread of the candidates' fused scores, best minus worst, mean over the videos."""
    lines, num_chunks = [], 0
    for entry, by_task in found.rows.items():
        spreads = [row["search"]["spread"] for row in by_task.values() if row["search"]]
        if spreads and any(map(any, spreads)):
            means = np.mean(spreads, axis=0)
            num_chunks = len(means)
            lines.append([entry[0], str(entry[1]), *(f"{mean:.3f}" for mean in means)])
    if not 0 < num_chunks <= 12:  # more columns than a page has
        return ""
    return _markdown(["method", "forwards per chunk", *(str(chunk) for chunk in range(num_chunks))], lines)


def draw_budgets(found: SuiteRows, verdicts: Sequence[str], path: Path) -> None:
    """Every verdict against forwards per chunk, one line per method, the baseline a level."""

    def draw(axis: object, name: str) -> None:
        methods: dict[str, list[int]] = {}
        for method, budget in found.suite.entries:
            methods.setdefault(method, []).append(budget)
        for index, (method, budgets) in enumerate(methods.items()):
            points = {budget: found.mean((method, budget), name) for budget in sorted(budgets)}
            points = {budget: point for budget, point in points.items() if point is not None}
            if (method, *budgets) == found.suite.baseline and points:
                axis.axhline(points[budgets[0]].mean, color="gray", linestyle="--", label=method)
            elif points:
                means = [point.mean for point in points.values()]
                reach = [[p.mean - p.low for p in points.values()], [p.high - p.mean for p in points.values()]]
                places = [budget * 1.02**index for budget in points]  # side by side, so that intervals can be read
                axis.errorbar(places, means, reach, marker="o", capsize=2, label=method)
        axis.set_xscale("log", base=2)
        ticks = sorted({budget for _, budget in found.suite.entries})
        axis.set_xticks(ticks, [str(tick) for tick in ticks])
        axis.set(title=name, xlabel="denoising forwards per chunk", ylabel="mean over videos, 95% interval")

    _draw(verdicts, draw, path)


def draw_chunks(found: SuiteRows, verdicts: Sequence[str], path: Path) -> None:
    """Every verdict against the chunk at which a window of three ends, one line per entry; the baseline and the last
    entry with their intervals."""

    def draw(axis: object, name: str) -> None:
        for method, budget in found.suite.entries:
            curve = found.curve((method, budget), name.removesuffix(LOWEST))
            chunks = range(WINDOW_CHUNKS - 1, WINDOW_CHUNKS - 1 + len(curve))
            if curve:
                (line,) = axis.plot(chunks, [point.mean for point in curve], label=f"{method}, {budget}")
            if curve and (method, budget) in (found.suite.baseline, found.suite.entries[-1]):
                low, high = [point.low for point in curve], [point.high for point in curve]
                axis.fill_between(chunks, low, high, color=line.get_color(), alpha=0.12)
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.set(
            title=name.removesuffix(LOWEST), xlabel="last chunk of the window", ylabel="mean over videos, 95% interval"
        )

    _draw(verdicts, draw, path)


def _draw(verdicts: Sequence[str], draw: Callable[[object, str], None], path: Path) -> None:
    """One picture with an axis for every verdict, and one legend."""
    pyplot = load_pyplot()
    figure, axes = pyplot.subplots(1, len(verdicts), figsize=(6 * len(verdicts) + 2, 4.5), squeeze=False)
    for axis, name in zip(axes[0], verdicts, strict=True):
        draw(axis, name)
    if axes[0, -1].get_legend_handles_labels()[0]:
        axes[0, -1].legend(loc="center left", bbox_to_anchor=(1.02, 0.5), fontsize="small")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _pair_table(found: SuiteRows, verdicts: Sequence[str], pairs: Sequence[tuple[Entry, Entry]]) -> str:
    if not pairs:
        return ""
    header = ["method", "against"]
    for name in verdicts:
        header += [name, "p"]
    lines = []
    for first, second in pairs:
        cells = [f"{method}, {budget}" for method, budget in (first, second)]
        for name in verdicts:
            cells += _tested(found.difference(first, second, name))
        lines.append(cells)
    return _markdown(header, lines)


def _markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _interval(value: Estimate | None) -> str:
    if value is None:
        return ""
    return f"{value.mean:.3f}" + ("" if math.isnan(value.low) else f" [{value.low:.3f}, {value.high:.3f}]")


def _tested(value: Difference | None) -> list[str]:
    if value is None:
        return ["", ""]
    interval = "" if math.isnan(value.low) else f" [{value.low:+.3f}, {value.high:+.3f}]"
    return [f"{value.mean:+.3f}{interval}", f"{value.p:.4f}"]
