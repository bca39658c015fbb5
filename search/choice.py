"""What a search is, and what it gives.

A search is a callable, called once per chunk with `(steps, beams)`, that gives a `Choice`. `steps` is a
`stream_t1.chunk_steps.ChunkSteps`. A plain function will do; an object may say more by these attributes:

- `num_beams`: the most that it keeps; absent, 1;
- `most_beams`: the most that it keeps between chunks, where that is more than the `num_beams` it ends with;
- `drops`: whether it ever drops a candidate, for which it needs a reward; absent, True;
- `ranks`: whether it keeps the best first, so that `max_lag` can tell; absent, True;
- `num_lineages`: how many base seeds it draws, so that candidate i of chunk 0 and all that grows from it have the
  seeds of the i-th of so many calls; absent, 1;
- `compares_rounds`: whether candidates that are ranked together are scored in several calls, which scores that are
  normalised within a call do not allow; absent, False;
- `check(num_steps, num_chunks)`: raises ValueError for a run that it cannot serve; `num_chunks` is None for an endless
  stream;
- `depth`: chunks that it may go back, by `Choice(..., back=n)`; absent, 0;
- `scales`, of its class: the name of the number that a larger budget makes larger; absent, that of the search within
  it, if there is one;
- `work(chunk_index, num_parents)`, or `work(chunk_index, num_parents, num_chunks)` where the end matters: the least
  and the most `SearchWork` of a chunk, for estimates.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from . import beam, geometry, trace


@dataclass(frozen=True, eq=False)
class Choice:
    """All candidates that were tried at a chunk, and which are kept."""

    candidates: "Sequence[beam.Candidate]"
    kept: Sequence[int]  # indices into `candidates`, best first; one that is there twice gives two beams
    log_weights: Sequence[float] | None = None  # of the beams, as many as `kept`; None: 0 each
    reserve: Sequence[int] = ()  # who takes the places of those that `max_lag` drops, best first
    back: int | None = None  # nothing is kept, and the chunk so many before this one is made again; 0: this one
    notes: Sequence[str] = ()  # what the trace is to say of this chunk

    @property
    def survivors(self) -> "list[beam.Candidate]":
        """The kept candidates, best first."""
        return [self.candidates[index] for index in self.kept]

    def traces(self) -> "list[trace.CandidateTrace]":
        """The record of every candidate, and which beams it becomes."""
        places = [
            [place for place, kept in enumerate(self.kept) if kept == row] for row in range(len(self.candidates))
        ]
        return [trace.CandidateTrace.of(*each) for each in zip(self.candidates, places, strict=True)]

    def without_lost(self) -> "Choice":
        """The choice without kept candidates that were lost after it was made."""
        rows = [row for row, index in enumerate(self.kept) if self.candidates[index].lost is None]
        weights = None if self.log_weights is None else [self.log_weights[row] for row in rows]
        return replace(self, kept=[self.kept[row] for row in rows], log_weights=weights)


@dataclass(frozen=True)
class SearchPass:
    """Candidates that are denoised together, and then scored."""

    candidates: int
    first: int = 0  # steps that they had done before
    until: int | None = None  # and have done after it; None: all
    ahead: int = 0  # of a roll-out: chunks after the one that is made; each candidate is then a batch of its own


@dataclass(frozen=True)
class SearchWork:
    """What a search does at one chunk, for estimates."""

    passes: tuple[SearchPass, ...]
    kept: int
    batch: int | None = None  # the most candidates of one parent that are denoised together; None: all of them
    more_clean_passes: int = 0  # besides one of each that is kept: of roll-outs, and of chunks that are made again

    @classmethod
    def of(cls, candidates: int, kept: int, batch: int | None = None) -> "SearchWork":
        """The work of a search that denoises all candidates to the end."""
        return cls((SearchPass(candidates),), kept, batch)

    def chunk_forwards(self, num_steps: int, is_last: bool) -> int:
        """Forwards of the transformer, clean passes included, of which the last chunk has none."""
        steps = [(num_steps if each.until is None else each.until) - each.first for each in self.passes]
        denoised = sum(each.candidates * count for each, count in zip(self.passes, steps, strict=True))
        return denoised + self.more_clean_passes + (0 if is_last else self.kept)


def search_name(search: Callable) -> str:
    """A function's own name; otherwise its class's."""
    return getattr(search, "__name__", type(search).__name__)


def most_kept(search: Callable) -> int:
    """The most beams that a search keeps at any chunk."""
    return max(int(getattr(search, "most_beams", 1)), most_ended(search))


def most_ended(search: Callable) -> int:
    """The most beams that a search ends with."""
    return int(getattr(search, "num_beams", 1))


def check_search(search: object, argument: str = "search") -> None:
    """
    Raises:
        TypeError: `search` is a class, cannot be called, or says of itself what is no number, or not true or false.
        ValueError: it keeps no beam.
    """
    if isinstance(search, type):
        raise TypeError(
            f"`{argument}` is the class {search.__name__}; give an object of it, such as {search.__name__}()."
        )
    if not callable(search):
        raise TypeError(
            f"`{argument}` is a {type(search).__name__}; it must be a callable `search(steps, beams)` that gives a "
            "`Choice`, such as BeamSearch(2, 4)."
        )
    check_takes(argument, search, ("steps", "beams"))
    of = f" of {search_name(search)}"
    for name, least in {"num_beams": 1, "most_beams": 1, "num_lineages": 1, "depth": 0}.items():
        geometry.whole_number(name, getattr(search, name, least), least=least, of=of)
    for name in ("drops", "ranks", "compares_rounds"):
        geometry.true_or_false(name, getattr(search, name, True), of)


def check_takes(name: str, function: Callable, arguments: Sequence[str]) -> None:
    """
    Raises:
        TypeError: `function` cannot be called with so many arguments, as far as its signature is known.
    """
    try:
        signature = inspect.signature(function)  # of a module not its `forward`: hooks may come before that
    except (TypeError, ValueError):  # some of C's have none
        return
    try:
        signature.bind(*arguments)
    except TypeError as error:
        raise TypeError(
            f"`{name}` is {search_name(function)}{signature}; it is called with ({', '.join(arguments)}): {error}."
        ) from error


def search_work(
    search: Callable, chunk_index: int, num_parents: int, num_chunks: int | None = None
) -> tuple[SearchWork, SearchWork]:
    """The least and the most that a search does at a chunk.

    Args:
        num_chunks: of the video; None for an endless stream.

    Raises:
        ValueError: it does not say.
    """
    if not hasattr(search, "work"):
        raise ValueError(
            f"{search_name(search)} does not say what it does: an estimate needs its method "
            "`work(chunk_index, num_parents)`, which gives the least and the most `SearchWork`."
        )
    work = search.work(*(chunk_index, num_parents, num_chunks)[: _num_positional(search.work)])
    if not isinstance(work, tuple) or len(work) != 2 or not all(hasattr(each, "passes") for each in work):
        raise ValueError(f"`work` of {search_name(search)} gave {work!r}; it must give two `SearchWork`.")
    return work


def _num_positional(work: Callable) -> int:
    """2, or 3 where a search's `work` takes the number of chunks too."""
    try:
        inspect.signature(work).bind(0, 1, None)
    except (TypeError, ValueError):
        return 2
    return 3
