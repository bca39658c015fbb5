"""Sources of checkpoints and base models: paths of this machine, or the Hub."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from huggingface_hub.utils import tqdm

HUB_ID = r"[\w.-]+/[\w.-]+"


@dataclass(frozen=True)
class Source:
    """A file or folder on this disk, and what to call it elsewhere."""

    path: Path
    name: str  # `hub_id:file`, `hub_id`, or the bare name of what the user has: never a path of this machine
    hub_id: str | None = None


def is_hub_id(given: str | Path) -> bool:
    """Tells whether a source has the form `org/name`."""
    return re.fullmatch(HUB_ID, str(given)) is not None


def find_file(given: str | Path) -> Source:
    """Finds a checkpoint file: a path, or `hub_id:file` to be downloaded.

    Raises:
        OSError: it is absent, or can't be downloaded.
    """
    path = Path(given)
    if path.exists():
        return Source(path, path.resolve().name)
    named = re.fullmatch(f"({HUB_ID}):(.+)", str(given))
    if named is None:
        raise FileNotFoundError(f"There is no file {given}. Give a path, or a file on the Hub as `org/name:file`.")
    hub_id, file = named.groups()
    try:
        return Source(Path(hf_hub_download(hub_id, file)), str(given), hub_id)
    except (OSError, ValueError) as error:
        raise _not_downloaded(given, error) from error


def find_beside(source: Source, name: str) -> Path | None:
    """Finds a file in the folder of a source that `find_file` gave; None where there is none.

    Raises:
        OSError: it can't be downloaded.
    """
    if source.hub_id is None:
        path = (source.path if source.path.is_dir() else source.path.parent) / name
        return path if path.is_file() else None
    file = str(PurePosixPath(source.name.partition(":")[2]).with_name(name))
    try:
        return Path(hf_hub_download(source.hub_id, file))
    except EntryNotFoundError:  # also where the Hub can't be asked, and the cache knows of none
        return None
    except (OSError, ValueError) as error:
        raise _not_downloaded(f"{source.hub_id}:{file}", error) from error


def find_folder(given: str | Path, patterns: list[str]) -> Source:
    """Finds a model's folder: a path, or a Hub id, of which the files that match `patterns` are downloaded.

    Raises:
        OSError: it is absent, or can't be downloaded.
    """
    path = Path(given)
    if path.is_dir():
        return Source(path, path.resolve().name)
    if path.exists() or not is_hub_id(given):
        raise FileNotFoundError(f"There is no folder {given}. Give a folder, or a model on the Hub as `org/name`.")
    try:
        return Source(Path(snapshot_download(str(given), allow_patterns=patterns)), str(given), str(given))
    except (OSError, ValueError) as error:
        raise _not_downloaded(given, error) from error


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal, as `sha256sum` prints it."""
    digest = hashlib.sha256()
    with (
        path.open("rb") as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"hash of {path.name}") as bar,
    ):
        while block := file.read(2**24):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def _not_downloaded(given: str | Path, error: Exception) -> OSError:
    reason = str(error).strip().splitlines()[0]
    return OSError(f"{given} is not on this disk, and could not be downloaded from the Hub: {reason}")
