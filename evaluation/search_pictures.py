"""Pictures of how a search spends its forwards, drawn from the trace of a run."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..search.trace import CandidateTrace, ChunkTrace, SearchTrace
from .pictures import load_pyplot

BEST, KEPT, DROPPED, AHEAD, GIVEN_UP = "#1b6ac9", "#7fb2ea", "#c9ced6", "#f0a63c", "#e7b8b3"


@dataclass(frozen=True, eq=False)
class _Column:
    """One attempt at a chunk."""

    chunk: int
    record: ChunkTrace
    is_given_up: bool


def draw_search(trace: SearchTrace, path: Path) -> None:
    """Draws every candidate as a column of its denoising steps, in the order of chunks and candidates.

    Kept candidates are joined to their parents, the best video's are the darkest; roll-outs stand on the candidate
    that they are of, and attempts that were given up before the one that stands. Below each chunk: its denoising
    forwards, roll-outs included, and its clean passes.

    Raises:
        ImportError: matplotlib is missing.
    """
    pyplot = load_pyplot()
    columns = list(_columns(trace))
    best = {id(candidate) for candidate in trace.best_path()}
    rollout_steps = trace.config["search"].get("steps") or len(trace.config["levels"])
    figure, axes = pyplot.subplots(figsize=(min(1 + 0.15 * sum(map(_width, columns)), 12), 2.2))
    tops: list[tuple[float, float]] = []  # where the kept beams of the column before stand, best first
    left = 0.0
    for column in columns:
        grown: dict[int, tuple[float, float]] = {}
        for row, candidate in enumerate(column.record.candidates):
            x, steps = left + row, candidate.step or 0
            color = GIVEN_UP if column.is_given_up else _color(candidate, best)
            axes.bar([x] * steps, [0.86] * steps, bottom=range(steps), width=0.8, color=color)
            rolled = rollout_steps * sum(name.startswith("ahead.") for name in candidate.parts)
            axes.bar([x] * rolled, [0.86] * rolled, bottom=range(steps, steps + rolled), width=0.4, color=AHEAD)
            top = (x, steps + rolled)
            if candidate.kept and tops and not column.is_given_up:
                line = {
                    "arrowstyle": "-",
                    "connectionstyle": "arc3,rad=-0.15",
                    "color": color,
                    "shrinkA": 0,
                    "shrinkB": 0,
                }
                axes.annotate("", top, tops[candidate.parent], arrowprops=line)
            grown.update(dict.fromkeys(candidate.kept_as, top))
        if not column.is_given_up:
            tops = [grown[beam] for beam in sorted(grown)]
        work = column.record.work
        label = f"chunk {column.chunk}\n{work.forwards} + {work.clean_passes}"
        axes.text(left + (len(column.record.candidates) - 1) / 2, -0.4, label, ha="center", va="top", fontsize=7)
        left += _width(column)
    axes.set_xlim(-1, left - 1)
    axes.set_ylim(top=axes.get_ylim()[1] + 1.5)  # room for the lines
    axes.axis("off")
    figure.savefig(path, dpi=110, bbox_inches="tight", metadata={"Software": None})
    pyplot.close(figure)


def _columns(trace: SearchTrace) -> Iterator[_Column]:
    for index, chunk in enumerate(trace.chunks):
        for attempt in trace.given_up:
            if attempt.chunk == index:
                yield _Column(index, attempt.record, is_given_up=True)
        yield _Column(index, chunk, is_given_up=False)


def _width(column: _Column) -> int:
    return max(len(column.record.candidates), 3) + 2


def _color(candidate: CandidateTrace, best: set[int]) -> str:
    if not candidate.kept:
        return DROPPED
    return BEST if id(candidate) in best else KEPT
