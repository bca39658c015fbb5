"""A search as a text, for commands, tables and configurations.

    particles:strength=4,potential=max
    beam:budget=2x8/2x2
    early-stop:patience=2,inner=particles(strength=4,num_particles=4)

How an argument is written follows from its annotation, for every search alike: a number (`inf` too), a word, `none`,
`true` or `false`; a pair as `2x8`; a list with slashes between; a search as above, or in brackets where it stands
within another. Where a search wants another, that is the beam search, whose arguments may stand among its own. An
argument that can only be a function has no text.
"""

import collections.abc
import difflib
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import MISSING, dataclass, field, fields, replace

from . import choice, shipped

INNER = "beam"  # the search within another, unless it is named
RESERVED = ",/()=:@|"  # in no word: they part the text, and the tables in which it stands
SCALARS = {
    bool: "`true` or `false`",
    int: "a whole number",
    float: "a number",
    str: "a word",
    types.NoneType: "`none`",
}


@dataclass(frozen=True)
class SearchText:
    """A shipped search's name with some of its arguments; those that are not there have their defaults.

    Args:
        name: of `SHIPPED_SEARCHES`.
        arguments: values by name; that of a search within the search is a `SearchText`.
    """

    name: str
    arguments: Mapping[str, object] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str, more: Mapping[str, str] | None = None) -> "SearchText":
        """Reads a text.

        Args:
            more: further arguments, as texts by name.

        Raises:
            ValueError: there is no such search, or it has no such argument, or not with such a value.
        """
        name, arguments = _taken_apart(text)
        if name not in shipped.SHIPPED_SEARCHES:
            known = list(shipped.SHIPPED_SEARCHES)
            raise ValueError(
                f"`search` is {text!r}, and there is no search {name!r}. The nearest is {_nearest(name, known)!r}; "
                f"there are {', '.join(known)}."
            )
        pairs = [piece.partition("=") for piece in _pieces(arguments)] if arguments is not None else []
        for key, sign, value in pairs:
            if not sign or not value:
                raise ValueError(f"`search` is {text!r}; {key!r} has no value, as in {name}:ARGUMENT=VALUE.")
        given = [(key.strip(), value.strip()) for key, _, value in pairs]
        given += [(key.replace("-", "_"), value) for key, value in (more or {}).items()]
        twice = [key for key, _ in given if [other for other, _ in given].count(key) > 1]
        if twice:
            raise ValueError(f"`{twice[0]}` of the search {name!r} is given twice.")
        return cls(name).with_texts(dict(given))

    @classmethod
    def of(cls, search: object) -> "SearchText":
        """The text of a search, without the arguments that have their defaults.

        Raises:
            ValueError: it is not shipped, or an argument has no text.
        """
        names = [name for name, kind in shipped.SHIPPED_SEARCHES.items() if type(search) is kind]
        if not names:
            raise ValueError(f"{choice.search_name(search)} is no shipped search, and has no text.")
        kinds, arguments = argument_kinds(type(search)), {}
        for each in fields(search):
            value = getattr(search, each.name)
            if value == each.default:
                continue
            kind = kinds.get(each.name)
            if is_search(kind):
                value = cls.of(value)
                if _is_needed(each) and value == cls(INNER):
                    continue
            arguments[each.name] = value
            try:
                written(kind, value)
            except ValueError:
                raise ValueError(
                    f"`{each.name}` of the search {names[0]!r} is {value!r}, which has no text."
                ) from None
        return cls(names[0], arguments)

    def __str__(self) -> str:
        return f"{self.name}:{self._listed()}" if self.arguments else self.name

    def _listed(self) -> str:
        kinds = argument_kinds(self.search_class)
        names = [each.name for each in fields(self.search_class) if each.name in self.arguments]
        return ",".join(f"{name}={written(kinds[name], self.arguments[name])}" for name in names)

    @property
    def search_class(self) -> type:
        return shipped.SHIPPED_SEARCHES[self.name]

    def with_texts(self, texts: Mapping[str, str]) -> "SearchText":
        """The same with further arguments, each its own, or one of the search within it.

        Raises:
            ValueError: neither has an argument, or not with such a value.
        """
        kinds = argument_kinds(self.search_class)
        inner = [name for name, kind in kinds.items() if is_search(kind)]
        own = {name: text for name, text in texts.items() if name in kinds}
        rest = {name: text for name, text in texts.items() if name not in kinds}
        made = replace(self, arguments={**self.arguments, **{n: self._read(n, kinds[n], t) for n, t in own.items()}})
        if not rest:
            return made
        known = list(kinds)
        if inner:
            within = made.arguments.get(inner[0], SearchText(INNER))
            known += argument_kinds(within.search_class)
        unknown = [name for name in rest if name not in known]
        if unknown:
            raise ValueError(
                f"`search` is {self.name!r}, which has no {' and no '.join(f'`{name}`' for name in unknown)}. The "
                f"nearest is `{_nearest(unknown[0], known)}`; it has {', '.join(f'`{name}`' for name in known)}."
            )
        both = [name for name in rest if name in within.arguments]
        if both:
            raise ValueError(f"`{both[0]}` of the search {within.name!r} is given twice.")
        return replace(made, arguments={**made.arguments, inner[0]: within.with_texts(rest)})

    def _read(self, name: str, kind: object, text: str) -> object:
        try:
            return _read(kind, text)
        except _UnreadableError:
            raise ValueError(
                f"`{name}` of the search {self.name!r} is {text!r}; it must be {described(kind)}."
            ) from None

    def build(self) -> object:
        """The search itself.

        Raises:
            TypeError, ValueError: an argument without default is missing, or one is out of range.
        """
        kinds, needed = argument_kinds(self.search_class), [f.name for f in fields(self.search_class) if _is_needed(f)]
        given = {name: SearchText(INNER) for name in needed if is_search(kinds.get(name))} | dict(self.arguments)
        values = {name: each.build() if isinstance(each, SearchText) else each for name, each in given.items()}
        missing = [name for name in needed if name not in values]
        if missing:
            raise ValueError(
                f"`search` is {self.name!r}, which needs {' and '.join(f'`{each}`' for each in missing)}."
            )
        return self.search_class(**values)

    @property
    def scale(self) -> tuple[str, ...]:
        """Where the number is that a budget pays for, such as ("num_particles",) or ("inner", "num_candidates").

        A class names it by an attribute `scales`; absent, it is that of the search within, if there is one.
        """
        kinds = argument_kinds(self.search_class)
        own = getattr(self.search_class, "scales", None)
        if own in kinds:
            return (own,)
        inner = [name for name, kind in kinds.items() if is_search(kind)]
        within = self.arguments.get(inner[0], SearchText(INNER)).scale if inner else ()
        return (inner[0], *within) if within else ()

    def at(self, place: tuple[str, ...]) -> object | None:
        """The argument at a place as `scale` gives it; None where it is not given."""
        value = self.arguments.get(place[0])
        return value.at(place[1:]) if value is not None and len(place) > 1 else value

    def having(self, place: tuple[str, ...], value: object) -> "SearchText":
        """The same with another argument at a place."""
        if len(place) > 1:
            value = self.arguments.get(place[0], SearchText(INNER)).having(place[1:], value)
        return replace(self, arguments={**self.arguments, place[0]: value})


def parse_search(text: str) -> object:
    """The search of a text such as "particles:strength=4,num_particles=4".

    Raises:
        TypeError, ValueError: there is none, or it lacks an argument or does not take one.
    """
    return SearchText.parse(text).build()


def search_text(search: object) -> str:
    """The text of a search, which `parse_search` reads.

    Raises:
        ValueError: it is not shipped, or an argument has no text.
    """
    return str(SearchText.of(search))


def argument_kinds(search: type) -> dict[str, object]:
    """Annotations of the arguments that have a text, by name."""
    hints = typing.get_type_hints(search)
    kinds = {each.name: hints[each.name] for each in fields(search)}
    return {name: kind for name, kind in kinds.items() if set(_alternatives(kind)) - {types.NoneType}}


def is_search(kind: object) -> bool:
    """Tells whether an annotation takes a search: a callable that gives a `Choice`."""
    return any(_gives_choice(each) for each in _alternatives(kind))


def described(kind: object) -> str:
    """The texts that an argument of such an annotation takes, in words."""
    return " or ".join(_described(each) for each in _alternatives(kind))


def written(kind: object, value: object) -> str:
    """The text of a value, which reads as the same.

    Raises:
        ValueError: it has none.
    """
    if isinstance(value, SearchText):
        return f"{value.name}({value._listed()})" if value.arguments else value.name
    value = tuple(value) if isinstance(value, list) else value
    for each in _alternatives(kind):
        with suppress(ValueError):
            text = _written_as(each, value)
            for told in (text, f"{text}/"):  # a list of one may need its slash
                if _read(kind, told) == value:
                    return told
    raise ValueError(value)


class _UnreadableError(ValueError):
    """A text is not of a kind."""


def _gives_choice(kind: object) -> bool:
    return typing.get_origin(kind) is collections.abc.Callable and typing.get_args(kind)[-1] is choice.Choice


def _described(kind: object) -> str:
    if kind in SCALARS:
        return SCALARS[kind]
    if _gives_choice(kind):
        return "a search, as in beam(num_beams=2)"
    if typing.get_origin(kind) is typing.Literal:
        return " or ".join(map(str, typing.get_args(kind)))
    element = _element(kind)
    if element is not None:
        return f"a list with / between, each {described(element)}"
    return " x ".join(described(each) for each in typing.get_args(kind)) + ", as in 2x8"


def _alternatives(kind: object) -> list[object]:
    """The members of an annotation that have a text, in the order in which they are tried: words after what looks like
    one, lists last."""
    is_union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    found = [each for each in (typing.get_args(kind) if is_union else (kind,)) if _has_text(each)]
    return sorted(found, key=lambda each: (each not in SCALARS, each is str, each is not types.NoneType))


def _has_text(kind: object) -> bool:
    if kind in SCALARS or _gives_choice(kind) or typing.get_origin(kind) is typing.Literal:
        return True
    element = _element(kind)
    if element is not None:
        return bool(_alternatives(element))
    return typing.get_origin(kind) is tuple and all(map(_alternatives, typing.get_args(kind)))


def _element(kind: object) -> object | None:
    """What a list is of; None of what is no list."""
    arguments = typing.get_args(kind)
    if typing.get_origin(kind) in (list, collections.abc.Sequence):
        return arguments[0]
    return arguments[0] if typing.get_origin(kind) is tuple and arguments[1:] == (...,) else None


def _read(kind: object, text: str) -> object:
    """The value of a text; the first alternative that takes it counts."""
    alternatives = _alternatives(kind)
    for each in alternatives:
        with suppress(_UnreadableError):
            return _read_as(each, text)
    raise _UnreadableError(text)


def _read_as(kind: object, text: str) -> object:
    if _gives_choice(kind):
        return SearchText.parse(text)
    element = _element(kind)
    if element is not None:
        return tuple(_read(element, part) for part in text.removesuffix("/").split("/"))
    if typing.get_origin(kind) is tuple:
        parts, kinds = text.split("x"), typing.get_args(kind)
        if len(parts) == len(kinds):
            return tuple(map(_read, kinds, parts))
    with suppress(ValueError):
        if kind in (int, float):
            return kind(text)
    words = {"none": None} if kind is types.NoneType else {"true": True, "false": False} if kind is bool else {}
    if typing.get_origin(kind) is typing.Literal:
        words = {str(each): each for each in typing.get_args(kind)}
    if text in words:
        return words[text]
    if kind is str and text and not set(text) & set(RESERVED):
        return text
    raise _UnreadableError(text)


def _written_as(kind: object, value: object) -> str:
    if isinstance(value, tuple):
        element = _element(kind)
        if element is not None:
            return "/".join(written(element, each) for each in value)
        if len(typing.get_args(kind)) != len(value):
            raise ValueError(value)
        return "x".join(map(written, typing.get_args(kind), value))
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


def _is_needed(argument: object) -> bool:
    return argument.default is MISSING and argument.default_factory is MISSING


def _taken_apart(text: str) -> tuple[str, str | None]:
    """The name, and what stands after a colon or in brackets; None where nothing does."""
    name, colon, arguments = text.strip().partition(":")
    bracketed, bracket, rest = name.partition("(")
    if bracket:
        name, colon, arguments = bracketed, bracket, text.strip()[len(bracketed) + 1 :]
        if not arguments.endswith(")"):
            raise ValueError(f"`search` is {text!r}; a bracket is not closed.")
        arguments = arguments[:-1]
    return name.strip(), arguments if colon else None


def _pieces(text: str) -> list[str]:
    """The parts between commas that stand in no brackets."""
    pieces, depth = [""], 0
    for sign in text:
        depth += (sign == "(") - (sign == ")")
        if sign == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    if depth:
        raise ValueError(f"`search` has {text!r}; a bracket is not closed, or none was opened.")
    return pieces


def _nearest(name: str, known: list[str]) -> str:
    return difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
