"""The prompt templates of the reward models, read from the user's own copy of the original packages.

A template is part of the original's source, so it is not in this repository. The file that holds it is parsed and
never run.
"""

import ast
import hashlib
import string
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..rewards.loading import Template

FIELD = "text_prompt"  # where both originals put the prompt


@dataclass(frozen=True)
class TemplateOrigin:
    """Place of a template in an original's code."""

    title: str
    file: str  # in the package or repository, by its last parts
    formatted: str  # the string constant with the prompt's place in it
    appended: str | None  # the one that comes after it, if any
    sha256: str  # of both together, as the weights were trained with
    how_to_get: str


@dataclass(frozen=True)
class FoundTemplate:
    """A template and the file that it was read from."""

    template: Template
    file: str  # its path in the package
    sha256: str


def read_template(source: str | Path, origin: TemplateOrigin, *, accept_changed: bool = False) -> FoundTemplate:
    """Reads the template from a copy of the original.

    Args:
        source: the Python file itself, a folder that holds it somewhere, or a wheel or another zip file with it.
        accept_changed: accepts a template that is not the original's, for weights that were trained with it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the template is not in it, or is not the one that the weights were trained with.
    """
    try:
        name, code = _read_source(Path(source), origin)
    except (UnicodeDecodeError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: zips
        raise ValueError(
            f"{source} is neither Python code nor a whole zip file, or is damaged ({error}). {origin.how_to_get}"
        ) from error
    constants = _string_constants(code, name)
    wanted = [constant for constant in (origin.formatted, origin.appended) if constant is not None]
    absent = [constant for constant in wanted if constant not in constants]
    if absent:
        raise ValueError(f"{name} has no text {' and no '.join(absent)}: {_changed(origin)}")
    words = "".join(constants[constant] for constant in wanted)
    sha256 = hashlib.sha256(words.encode()).hexdigest()
    if sha256 != origin.sha256 and not accept_changed:
        raise ValueError(
            f"The template in {name} has the SHA-256 {sha256[:12]}..., not {origin.sha256[:12]}...: "
            f"{_changed(origin)} For weights that were trained with this one, accept it: "
            "`accept_changed_template=True`, or --accept-changed-template."
        )
    before, after = _split(constants[origin.formatted], name, origin)
    return FoundTemplate(Template(before, after + constants.get(origin.appended, "")), name, sha256)


def _read_source(source: Path, origin: TemplateOrigin) -> tuple[str, str]:
    """Returns name and code of the file with the template."""
    if not source.exists():
        raise FileNotFoundError(f"There is no {source} to read the prompt template from. {origin.how_to_get}")
    if source.is_file() and zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            names = [name for name in archive.namelist() if f"/{name}".endswith(f"/{origin.file}")]
            if len(names) == 1:
                return names[0], archive.read(names[0]).decode("utf-8")
    elif source.is_file():
        return source.name, source.read_text(encoding="utf-8")
    else:
        paths = [path.resolve() for path in source.rglob(Path(origin.file).name)]
        names = [path for path in paths if path.as_posix().endswith(f"/{origin.file}")]
        if len(names) == 1:
            return origin.file, names[0].read_text(encoding="utf-8")
    raise ValueError(f"{source} holds {len(names)} files {origin.file}, and one is needed. {origin.how_to_get}")


def _string_constants(code: str, name: str) -> Mapping[str, str]:
    """String constants of a file's top level, by name."""
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError) as error:  # ValueError: null bytes, before Python 3.12
        raise ValueError(f"{name} is not a Python file: {error}.") from error
    return {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _split(text: str, name: str, origin: TemplateOrigin) -> tuple[str, str]:
    """Splits a text for `str.format` at the prompt's place."""
    halves = [""]
    try:
        for literal, field, spec, conversion in string.Formatter().parse(text):
            halves[-1] += literal
            if field is not None:
                if field != FIELD or spec or conversion:
                    raise ValueError(f"has the place {{{field}}}")
                halves.append("")
        if len(halves) != 2:
            raise ValueError(f"has {len(halves) - 1} places for the prompt, and 1 is needed")
    except ValueError as error:  # also of the parser, for a brace without its other half
        raise ValueError(f"{origin.formatted} of {name} {error}: {_changed(origin)}") from None
    return halves[0], halves[1]


def _changed(origin: TemplateOrigin) -> str:
    return f"it is not the prompt template that {origin.title} was trained with. {origin.how_to_get}"
