"""How soon a changed prompt is seen: `python -m stream_t1.demo.prompt_changes --output FOLDER`.

Every change is a held-out caption of which the motion, the colour or both become others at frame 57. The judge reads
the two seconds from the beginning of every chunk on; a change takes as many chunks as pass before the judge sees what
was changed. Every `recache` makes the same changes with the same seeds, as a single sample and in a search.
So does a video that has the later prompt from its beginning: how often that is right bounds the others.

FOLDER gets one line of JSON for every video. The same command resumes a run that was stopped.
"""

import argparse
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..evaluation.results import (
    SURROUNDINGS,
    Job,
    Row,
    append_row,
    is_finished,
    keep_configuration,
    new_row,
    read_rows,
)
from ..evaluation.running import fingerprint
from ..pipeline_stream_t1 import StreamT1Pipeline, __version__
from ..search.beam_search import BeamSearch
from ..search.memory_sinking import RECACHE_MODES
from ..search.timeline import PromptTimeline
from . import load_pipeline
from .clips import COLORS, MOTIONS, Caption, held_out_captions
from .judge import WINDOW_FRAMES, WINDOW_STRIDE, Judge, load_judge

CHANGE_FRAME = 57  # past the window: an earlier "window" is "all", as in LongLive
CHANGED = (("motion",), ("color",), ("motion", "color"))  # in turn
FROM_THE_BEGINNING = "no change"
SEARCHES = {"single": BeamSearch(1, 1), "search": BeamSearch(2, 2)}
FIRST_SEED = 4_000_000


@dataclass(frozen=True)
class Change:
    """One change of a prompt."""

    before: Caption
    after: Caption
    attributes: tuple[str, ...]  # that differ
    seed: int

    @classmethod
    def numbered(cls, number: int) -> "Change":
        """The same change for everybody."""
        captions, generator = held_out_captions(), random.Random(number)
        before, attributes = captions[number % len(captions)], CHANGED[number % len(CHANGED)]
        others = {"motion": MOTIONS, "color": tuple(COLORS)}
        drawn = {
            name: generator.choice([value for value in others[name] if value != getattr(before, name)])
            for name in attributes
        }
        return cls(before, replace(before, **drawn), attributes, FIRST_SEED + number)

    def job(self, recache: str, search: str, num_windows: int) -> Job:
        """What its row is known by."""
        forwards = 4 * SEARCHES[search].num_beams * SEARCHES[search].num_candidates
        num_frames = CHANGE_FRAME + WINDOW_STRIDE * (num_windows + 2)
        text = f"{self.before.text} | {self.after.text}"
        return Job(f"{recache}, {search}", forwards, text, self.seed, num_frames)


def make_row(pipe: StreamT1Pipeline, judge: Judge, change: Change, recache: str, search: str, num_windows: int) -> Row:
    """Makes a video and its row: which windows show what was changed, and which show all that the prompt says."""
    job = change.job(recache, search, num_windows)
    prompt: str | PromptTimeline = change.after.text
    if recache != FROM_THE_BEGINNING:
        prompt = PromptTimeline({0: change.before.text, CHANGE_FRAME: prompt})
    output = pipe(
        prompt,
        num_frames=job.num_frames,
        search=SEARCHES[search],
        recache=None if recache == FROM_THE_BEGINNING else recache,
        generator=torch.Generator().manual_seed(change.seed),
        output_type="pt",
    )
    changed, everything = [], []
    for begin in range(CHANGE_FRAME, CHANGE_FRAME + WINDOW_STRIDE * num_windows, WINDOW_STRIDE):
        reading = judge.read(output.frames[0, begin : begin + WINDOW_FRAMES])
        seen = {name: reading.follows(change.after, name) for name in ("motion", "color", "shape", "background")}
        changed.append(int(all(seen[name] for name in change.attributes)))
        everything.append(int(all(seen.values())))
    work = [chunk.work for chunk in output.trace.chunks]
    cost = {"forwards": sum(w.forwards for w in work), "recached_chunks": sum(w.recached_chunks for w in work)}
    scores = {"chunks": chunks_before(changed)}
    return new_row(job, scores=scores, windows={"changed": changed, "everything": everything}, cost=cost)


def chunks_before(seen: Sequence[int]) -> int | None:
    """Chunks that pass before something is seen; None when it never is."""
    return next((index for index, is_seen in enumerate(seen) if is_seen), None)


def measure_changes(
    folder: Path,
    num_changes: int = 100,
    *,
    num_windows: int = 7,
    recaches: Sequence[str] = (*RECACHE_MODES, FROM_THE_BEGINNING),
    searches: Sequence[str] = tuple(SEARCHES),
) -> list[Row]:
    """Makes the videos that the folder lacks; returns the rows of those asked for.

    Raises:
        ValueError: the folder has rows of another model or judge.
    """
    pipe, judge = load_pipeline(), load_judge()
    pipe.set_progress_bar_config(disable=True)
    weights = {name: fingerprint(getattr(pipe, name)) for name in ("text_encoder", "transformer", "vae")}
    surroundings = {"version": __version__, "torch": torch.__version__, "threads": torch.get_num_threads()}
    keep_configuration(folder, {"weights": weights, "judge": fingerprint(judge), SURROUNDINGS: surroundings})
    finished, wanted = {Job.of(row) for row in read_rows([folder]) if is_finished(row)}, set()
    for number in range(num_changes):
        change = Change.numbered(number)
        for search in searches:
            for recache in recaches:
                job = change.job(recache, search, num_windows)
                wanted.add(job)
                if job not in finished:
                    row = make_row(pipe, judge, change, recache, search, num_windows)
                    append_row(folder / "rows-0.jsonl", row)
        print(f"{number + 1} of {num_changes} changes", flush=True)
    return [row for row in read_rows([folder]) if Job.of(row) in wanted]


def table(rows: Iterable[Row]) -> str:
    """How many changes are seen after how many chunks, and the share of windows that show everything, by method."""
    by_method: dict[str, list[Row]] = {}
    for row in rows:
        by_method.setdefault(row["method"], []).append(row)
    lines = [f"{'':20} {'changes':>8} {'at once':>8} {'1 chunk':>8} {'2 chunks':>8} {'never':>8} {'all right':>9}"]
    for method, own in by_method.items():
        taken = [row["scores"]["chunks"] for row in own]
        counts = [taken.count(number) for number in (0, 1, 2, None)]
        shares = [sum(row["windows"]["everything"]) / len(row["windows"]["everything"]) for row in own]
        told = " ".join(f"{count:8}" for count in (len(own), *counts))
        lines.append(f"{method:20} {told} {sum(shares) / len(own):9.3f}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m stream_t1.demo.prompt_changes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the rows")
    parser.add_argument("--num-changes", type=int, default=100, help="default: %(default)s")
    options = parser.parse_args(arguments)
    print(table(measure_changes(options.output, options.num_changes)))


if __name__ == "__main__":
    main()
