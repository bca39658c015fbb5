"""Saving into folders: files appear whole, and replace no file that this project did not write.

`stream_t1_manifest.json` lists what was written into a folder, by name with SHA-256. A file that is listed and has its
hash is ours and unchanged.
"""

import contextlib
import hashlib
import json
import os
import re
import secrets
import shutil
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from os import PathLike
from pathlib import Path

MANIFEST = "stream_t1_manifest.json"
INDEX = "model_index.json"  # a folder without it does not look whole
MADE_BY = "stream-t1"
WEIGHTS = re.compile(  # of a component: all in one file, a shard, or the index of shards; some with a variant's name
    r"(?:diffusion_pytorch_model|pytorch_model|model)(?:\.(?P<first>[^.]+?))?(?:-\d{5}-of-\d{5})?"
    r"(?:\.(?P<second>[^.]+))?\.(?:safetensors|bin)(?:\.index(?:\.(?P<third>[^.]+))?\.json)?"
)
BLOCK_BYTES = 2**24  # read at once


@contextlib.contextmanager
def filled_folder(target: str | PathLike, write_guarded: Callable[[Path], object]) -> Iterator[Path]:
    """Gives a folder to write into, whose files move into `target` when the block ends.

    `target` is made if it does not exist; other files in it stay, except weights of another save beside new ones.
    After an error, an interruption or SIGTERM, it is as it was. A kill leaves its files in `.stream-t1-*.partial` in
    `target`, which has no `model_index.json` while its files change.

    Args:
        write_guarded: writes the files that must not replace foreign ones. Files written in the block, as diffusers
            saves components, replace any file of their names.

    Raises:
        FileExistsError: a guarded file would replace one that is not ours, or was changed.
        NotADirectoryError: `target` is a file or a link.
        OSError: it can't be written to.
    """
    target = Path(target).absolute()
    _check_is_folder(target)
    with finally_on_signals():
        made = [folder for folder in (target, *target.parents) if not folder.exists()]
        target.mkdir(parents=True, exist_ok=True)
        partial = target / f".stream-t1-{secrets.token_hex(6)}.partial"
        new, old = partial / "new", partial / "old"
        try:
            new.mkdir(parents=True)
            write_guarded(new)
            _check_kinds(target, new)
            check_replaceable(target, [*file_names(new), MANIFEST], new)
            yield new
            _check_kinds(target, new)
            _write_merged_manifest(target, new)
            _exchange(target, new, old)
        finally:
            try:
                shutil.rmtree(partial, ignore_errors=True)
            finally:
                shutil.rmtree(partial, ignore_errors=True)  # a signal may have stopped the first
            with contextlib.suppress(OSError):  # the first has files now
                for folder in made:
                    folder.rmdir()


def file_names(folder: Path) -> list[str]:
    """Lists the files of a folder and its subfolders by relative path; links are listed, not followed."""
    return sorted(path.relative_to(folder).as_posix() for path in _walk(folder))


def write_manifest(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Writes the manifest of all files in a folder, and waits until they are on the disk.

    Args:
        known: further entries, of files that will be moved beside these.
    """
    hashes = {name: _sha256(folder / name, sync=True) for name in file_names(folder) if name != MANIFEST}
    content = {"made_by": MADE_BY, "files": dict(sorted({**(known or {}), **hashes}.items()))}
    with open(folder / MANIFEST, "w", encoding="utf-8") as file:
        file.write(json.dumps(content, indent=1) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that this project wrote into a folder, by name; empty without a manifest of its own."""
    path = folder / MANIFEST
    if path.is_symlink() or not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        is_ours = content["made_by"] == MADE_BY
        return {str(name): str(sha256) for name, sha256 in content["files"].items()} if is_ours else {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def foreign_files(folder: Path, names: Iterable[str]) -> list[str]:
    """Returns those of the named files that this project did not write, or that were changed since."""
    manifest = read_manifest(folder)
    return [name for name in names if not _is_ours(folder, name, manifest)]


def check_replaceable(target: Path, names: Iterable[str], new: Path | None = None) -> None:
    """Checks that no file of these names in `target` is foreign.

    Args:
        new: a folder with the files that would replace them; an identical one may be replaced.

    Raises:
        FileExistsError: files of these names in `target` are not ours, or were changed.
        NotADirectoryError: `target` is a file or a link.
    """
    _check_is_folder(target)
    there = [name for name in names if os.path.lexists(target / name)]
    if new is not None:
        there = [name for name in there if not _is_same(target / name, new / name)]
    foreign = foreign_files(target, there)
    if foreign:
        more = f" and {len(foreign) - 3} more" if len(foreign) > 3 else ""
        raise FileExistsError(
            f"{target} has {', '.join(foreign[:3])}{more}, which Stream-T1 did not write or which was changed since. "
            "Name another folder, or move what is there."
        )


def _is_ours(folder: Path, name: str, manifest: Mapping[str, str]) -> bool:
    path = folder / name
    if path.is_symlink() or not path.is_file():
        return False
    return bool(read_manifest(folder)) if name == MANIFEST else manifest.get(name) == _sha256(path)


def _is_same(path: Path, other: Path) -> bool:
    is_file = not path.is_symlink() and path.is_file() and other.is_file()
    return is_file and path.read_bytes() == other.read_bytes()


def _check_is_folder(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not target.is_dir()):
        kind = "a symbolic link" if target.is_symlink() else "a file"
        raise NotADirectoryError(f"The output is {target}, which is {kind}; give a folder, existing or new.")


def _check_kinds(target: Path, new: Path) -> None:
    """Checks that no file of `new` meets a folder in `target`, and no folder a file.

    Raises:
        FileExistsError: a folder of `new` is a file or a link in `target`, or a file is a folder.
    """
    for path in sorted(new.rglob("*")):
        place = target / path.relative_to(new)
        if path.is_dir() and os.path.lexists(place) and (place.is_symlink() or not place.is_dir()):
            raise FileExistsError(f"{place} must be a folder; name another one, or move what is there.")
        if not path.is_dir() and place.is_dir() and not place.is_symlink():
            raise FileExistsError(
                f"{place} is a folder, where a file must be; name another one, or move what is there."
            )


def _write_merged_manifest(target: Path, new: Path) -> None:
    """Writes the manifest of the new files and of the older ones that stay."""
    stale = set(_stale_weights(target, new))
    known = {name: sha256 for name, sha256 in read_manifest(target).items() if name not in stale}
    write_manifest(new, {name: sha256 for name, sha256 in known.items() if (target / name).is_file()})


def _stale_weights(target: Path, new: Path) -> list[str]:
    """Weights in `target` that a loader would take for part of the new ones, or instead of them."""
    stale = []
    for folder in {path.parent for path in _walk(new) if WEIGHTS.fullmatch(path.name)}:
        names = [path.name for path in folder.iterdir()]
        variants = {_variant(name) for name in names if WEIGHTS.fullmatch(name)}
        place = target / folder.relative_to(new)
        there = [path for path in place.iterdir() if WEIGHTS.fullmatch(path.name)] if place.is_dir() else []
        stale += [path for path in there if path.name not in names and _variant(path.name) in variants]
    return [path.relative_to(target).as_posix() for path in stale]


def _variant(name: str) -> str | None:
    return next(filter(None, WEIGHTS.fullmatch(name).groups()), None)


def _exchange(target: Path, new: Path, old: Path) -> None:
    """Moves the new files into `target`, and replaced files and stale weights into `old`: all or nothing."""
    names = sorted(file_names(new), key=lambda name: name == INDEX)  # the index comes last, and goes first
    leaving = [name for name in (INDEX, *names, *_stale_weights(target, new)) if os.path.lexists(target / name)]
    moves = [(target / name, old / name) for name in dict.fromkeys(leaving)]
    moves += [(new / name, target / name) for name in names]
    if INDEX in leaving and INDEX not in names:
        moves.append((old / INDEX, target / INDEX))
    done = []
    try:
        for source, place in moves:
            place.parent.mkdir(parents=True, exist_ok=True)
            done.append((source, place))
            source.rename(place)
    except BaseException:
        for source, place in reversed(done):
            if not os.path.lexists(source):
                place.rename(source)
        raise


def _walk(folder: Path) -> Iterator[Path]:
    for entry in sorted(folder.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            yield from _walk(entry)
        else:
            yield entry


def _sha256(path: Path, sync: bool = False) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        if sync:
            os.fsync(file.fileno())
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


@contextlib.contextmanager
def finally_on_signals() -> Iterator[None]:
    """Runs `finally` on SIGTERM too, as in search/files.py, which the Hub's loader does not let this folder import."""
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
