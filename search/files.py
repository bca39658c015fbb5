"""Files that appear under their names whole, or not at all, and never in place of what is not theirs to replace."""

import contextlib
import hashlib
import os
import re
import secrets
import signal
import stat
import threading
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

# A text that this project writes carries the seal near its beginning, with the hash of the text that has zeros there.
SEAL = f"stream-t1 sha256:{'0' * 64}"
SEAL_PATTERN = re.compile(rb"stream-t1 sha256:([0-9a-f]{64})")
SEAL_WITHIN = 1000  # bytes from the beginning


@contextlib.contextmanager
def new_file(
    path: str | PathLike, *, replace: bool = False, advice: str = "Name another file, or move that one."
) -> Iterator[Path]:
    """Gives a path to write to, in the same folder; when the block ends, the file there takes its name in one step.

    After an error, an interruption or SIGTERM it is deleted, and what was at `path` is as it was. What a kill leaves
    is named `.stream-t1-*.partial`.

    Raises:
        OSError: as `check_place`; or the file could not be written.
    """
    path = Path(path)
    check_place(path, replace=replace, advice=advice)
    partial = _partial_name(path)
    with finally_on_signals():
        try:
            yield partial
            with open(partial, "r+b") as file:
                os.fsync(file.fileno())
            if replace:
                os.replace(partial, path)
            else:
                _take_free_name(partial, path, advice)
        finally:
            try:
                partial.unlink(missing_ok=True)
            finally:
                partial.unlink(missing_ok=True)  # a signal may have stopped the first


def check_place(
    path: str | PathLike, *, replace: bool = False, advice: str = "Name another file, or move that one."
) -> None:
    """Tries whether a file can be written at `path`, by writing an empty one beside it.

    Args:
        replace: whether a file or a symbolic link that is there may be replaced.
        advice: what to do otherwise; ends the message.

    Raises:
        FileExistsError: something is there that may not be replaced.
        OSError: the name can't be one of a file, or the folder is absent or takes no file.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} can't be written: there is no folder {path.parent}.")
    with contextlib.suppress(FileNotFoundError):
        mode = os.lstat(path).st_mode  # also says that a name is too long
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(f"{path} is a folder; name a file.")
        if not (stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            raise FileExistsError(f"{path} is a device or a pipe; name a file.")
        if not replace:
            raise FileExistsError(f"{path} exists. {advice}")
    probe = _partial_name(path)
    with finally_on_signals():
        try:
            probe.touch(exist_ok=False)
        except OSError as error:
            raise type(error)(error.errno, f"{path.parent} takes no file, {error.strerror}", str(path)) from error
        finally:
            try:
                probe.unlink(missing_ok=True)
            finally:
                probe.unlink(missing_ok=True)  # a signal may have stopped the first


def sealed(text: str) -> bytes:
    """The text to write, whose first `SEAL` gets its hash."""
    content = text.encode()
    return content.replace(SEAL.encode(), _seal(content), 1)


def is_sealed(path: str | PathLike) -> bool:
    """Whether this project wrote the text at `path`; it may have been changed since. A link is none that it wrote."""
    return _found_seal(Path(path)) is not None


def is_unchanged(path: str | PathLike) -> bool:
    """Whether the text at `path` is as this project wrote it."""
    found = _found_seal(Path(path))
    return found is not None and _seal(Path(path).read_bytes().replace(found, SEAL.encode(), 1)) == found


@contextlib.contextmanager
def finally_on_signals() -> Iterator[None]:
    """Makes SIGTERM and SIGHUP raise SystemExit while the block lasts, so that it can tidy up.

    Handlers that somebody has set stay, and threads but the main one can set none.
    """
    unhandled = []
    if threading.current_thread() is threading.main_thread():
        known = (getattr(signal, name, None) for name in ("SIGTERM", "SIGHUP"))
        unhandled = [number for number in known if number and signal.getsignal(number) is signal.SIG_DFL]
    try:
        for number in unhandled:
            signal.signal(number, _exit)
        yield
    finally:
        for number in unhandled:
            signal.signal(number, signal.SIG_DFL)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def _partial_name(path: Path) -> Path:
    return path.with_name(
        f".stream-t1-{secrets.token_hex(6)}.partial"
    )  # short: the file's own name may be the longest


def _take_free_name(partial: Path, path: Path, advice: str) -> None:
    try:
        os.link(partial, path)  # a rename would replace what somebody has put there meanwhile
    except OSError as error:
        if os.path.lexists(path):
            raise FileExistsError(f"{path} exists. {advice}") from error
        os.replace(partial, path)  # no hard links on this disk


def _seal(content: bytes) -> bytes:
    return b"stream-t1 sha256:" + hashlib.sha256(content).hexdigest().encode()


def _found_seal(path: Path) -> bytes | None:
    try:
        if not stat.S_ISREG(os.lstat(path).st_mode):
            return None
        with open(path, "rb") as file:
            found = SEAL_PATTERN.search(file.read(SEAL_WITHIN))
    except OSError:  # nothing is there, or nothing that can be read
        return None
    return None if found is None else found.group()
