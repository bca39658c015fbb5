"""Results of an evaluation: a folder with `configuration.json` and one line of JSON for every video.

Every process appends to a file of its own, `rows-N.jsonl`, and reads those of all. So a run that was killed goes on
where it was, with any number of processes, and the folders of several machines are merged by reading them together.
Files that are kept for good may be gzipped.
"""

import contextlib
import gzip
import json
import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TextIO

from diffusers.utils import logging

from ..checkpoints.reading import read_json
from ..search.files import check_place, new_file

logger = logging.get_logger(__name__)

CONFIGURATION = "configuration.json"
LOCK = ".stream-t1.lock"
ROW_FILES = "rows-*.jsonl*"
SURROUNDINGS = "made_with"  # of a configuration: what may differ among rows that are compared
UNREPEATABLE = ("seconds",)  # of a row: not the same twice

Row = dict  # as `new_row` makes it


@dataclass(frozen=True)
class Job:
    """One video to make."""

    method: str
    budget: int  # denoising forwards per chunk
    prompt: str
    seed: int
    num_frames: int

    @property
    def task(self) -> tuple[str, int, int]:
        """The inputs that all methods share."""
        return self.prompt, self.seed, self.num_frames

    @classmethod
    def of(cls, row: Row) -> "Job":
        return cls(**{name: row[name] for name in cls.__dataclass_fields__})


def keep_configuration(folder: Path, configuration: dict) -> None:
    """Writes the configuration into a new folder.

    Raises:
        ValueError: the folder has rows of another one, or of none; the message says what differs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIGURATION
    if not path.exists() and any(folder.glob(ROW_FILES)):
        raise ValueError(
            f"{folder} has rows and no {CONFIGURATION}: nobody knows what they are of. Use another folder."
        )
    with contextlib.suppress(FileExistsError):  # of an earlier run, or of one that began at the same time
        with new_file(path) as file:
            file.write_text(json.dumps(configuration, indent=1) + "\n")
        return
    kept = read_configuration(folder)
    check_same(configuration, kept, folder)
    if kept[SURROUNDINGS] != configuration[SURROUNDINGS]:
        logger.warning(f"{folder} has rows made with {kept[SURROUNDINGS]}; now {configuration[SURROUNDINGS]}.")


def check_folder(folder: Path) -> None:
    """Tries that files can be written into a folder, or that it can be made.

    Raises:
        OSError: they can't, or it can't.
    """
    place = folder / CONFIGURATION
    while not place.parent.exists():
        place = place.parent
    check_place(place, replace=True)


@contextlib.contextmanager
def only_evaluation(folder: Path) -> Iterator[None]:
    """Makes a folder if need be, and waits while another evaluation is at work in it, on any machine that shares it.

    The lock is the system's and goes with the process, however that ends; the file that is left then locks nothing.

    Raises:
        OSError: the folder takes no file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = _locked(folder / LOCK)
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {platform.node()}")
        file.flush()
        yield
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        file.close()


def _locked(path: Path) -> TextIO:
    """The file at `path`, open and locked."""
    try:
        fcntl = import_module("fcntl")
    except ImportError:
        logger.warning(f"This system has no file locks: start no second evaluation on {path.parent} beside this one.")
        return path.open("a+")
    is_told = False
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not is_told:
                file.seek(0)
                logger.warning(f"{path.parent}: {file.read() or 'another process'} evaluates there; waiting for it.")
            is_told = True
            fcntl.flock(file, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # who had it before has deleted it


def read_configuration(folder: Path) -> dict:
    """
    Raises:
        ValueError: the folder has none, or a damaged one.
    """
    try:
        return read_json(folder / CONFIGURATION)
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder} holds no results that can be read: {CONFIGURATION}: {error}") from error


def check_same(wanted: dict, kept: dict, folder: Path) -> None:
    """
    Raises:
        ValueError: rows of the two can't stand in one table.
    """
    wanted = json.loads(json.dumps(wanted))
    names = [name for name in {**kept, **wanted} if name != SURROUNDINGS and kept.get(name) != wanted.get(name)]
    if names:
        differences = "; ".join(f"`{name}` is {kept.get(name)!r} there, {wanted.get(name)!r} here" for name in names)
        raise ValueError(f"{folder} holds results of another configuration: {differences}.")


def append_row(path: Path, row: Row) -> None:
    """Adds a line; one that a kill cut in two is left alone on its own."""
    with path.open("a+b") as file:
        if file.tell() > 0:
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(json.dumps(_rounded(row)).encode() + b"\n")


def read_rows(folders: Iterable[Path]) -> list[Row]:
    """The row of every job; a video that was made counts, whichever file says that it failed.

    Lines that are no rows, and folders whose configuration is not that of the first, are named and left out.

    Raises:
        ValueError: the first folder holds no results.
    """
    first, *others = folders
    configuration, rows = read_configuration(first), {}
    for folder in (first, *others):
        try:
            check_same(configuration, read_configuration(folder), folder)
        except ValueError as error:
            logger.warning(f"{error} Its rows are left out.")
            continue
        for path in sorted(folder.glob(ROW_FILES)):
            for number, line in enumerate(_read(path).splitlines(), start=1):
                try:
                    row = json.loads(line)
                    job, is_whole = Job.of(row), is_finished(row)
                except (json.JSONDecodeError, KeyError, TypeError):
                    logger.warning(f"{path}, line {number} is no row and is left out.")
                    continue
                if is_whole or job not in rows or not is_finished(rows[job]):
                    rows[job] = row
    return list(rows.values())


def is_finished(row: Row) -> bool:
    """Tells whether the video was made and all metrics read it; otherwise it is tried again."""
    return row["error"] is None and not row["problems"]


def differing_rows(rows: Sequence[Row], others: Sequence[Row]) -> list[Job]:
    """Jobs that are in both and whose rows differ in what can be repeated."""
    known = {Job.of(row): _repeatable(row) for row in others}
    return [job for row in rows if (job := Job.of(row)) in known and known[job] != _repeatable(row)]


def new_row(job: Job, **contents: object) -> Row:
    """A row in full; `contents` fills what there is to say."""
    empty = {"scores": {}, "windows": {}, "cost": {}, "search": {}, "frames_sha256": None, "problems": {}}
    return {**asdict(job), **empty, "seconds": None, "error": None, **contents}


def _read(path: Path) -> str:
    """The text of a file, with signs in the place of damaged letters.

    Raises:
        ValueError: a gzipped file is damaged.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"{path} is damaged: {error}") from error
    return content.decode(errors="replace")


def _repeatable(row: Row) -> Row:
    return {name: value for name, value in row.items() if name not in UNREPEATABLE}


def _rounded(value: object) -> object:
    """Numbers as they are kept: five digits are more than any table shows."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list | tuple) else value
