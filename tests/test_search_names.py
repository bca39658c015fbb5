"""Searches as texts, which commands, tables and configurations share."""

from dataclasses import dataclass
from typing import Literal, get_args

import pytest

from stream_t1.search import (
    Backtracking,
    BeamSearch,
    BestOfN,
    EarlyStop,
    EvolutionSearch,
    Lookahead,
    ParticleSearch,
    StagedSearch,
    parse_search,
    search_text,
)
from stream_t1.search.search_names import SearchText, argument_kinds
from stream_t1.search.shipped import SHIPPED_SEARCHES

SEARCHES = {
    "beam": BeamSearch(),
    "beam:num_beams=3": BeamSearch(3),
    "beam:num_candidates=8,budget=2x8/2x2": BeamSearch(budget=[(2, 8), (2, 2)]),
    "best-of-n:num_videos=4": BestOfN(4),
    "early-stop:patience=2": EarlyStop(BeamSearch(), patience=2),
    "early-stop:inner=beam(num_beams=1,num_candidates=4),margin=0.5": EarlyStop(BeamSearch(1, 4), margin=0.5),
    "early-stop:inner=early-stop(inner=best-of-n(num_videos=2))": EarlyStop(EarlyStop(BestOfN(2))),
    "evolution:generations=2,population=4,elites=1,mutation=0.5": EvolutionSearch(2, 4, 1, 0.5),
    "staged:budget=2x4/2x2,keep=best/median,bound=-inf/0.5,image_reward=false,reward_prompt=a/none": StagedSearch(
        [(2, 4), (2, 2)], ["best", "median"], [float("-inf"), 0.5], False, reward_prompt=["a", None]
    ),
    "staged:budget=1x4,keep=median/": StagedSearch([(1, 4)], ["median"]),
    "lookahead:inner=backtracking(bound=0.5),chunks=2": Lookahead(Backtracking(BeamSearch(), bound=0.5), chunks=2),
    "particles:num_particles=3,strength=1e-07": ParticleSearch(3, 1e-7),
    "particles:num_particles=3,strength=-4,potential=max,tempering=0.1": ParticleSearch(3, -4, "max", tempering=0.1),
}


@pytest.mark.parametrize("text", SEARCHES)
def test_a_search_has_one_text_and_a_text_one_search(text):
    assert search_text(SEARCHES[text]) == text and parse_search(text) == SEARCHES[text]


BOUND = {"elites": "1", "keep": "1", "max_candidates": "9"}  # no larger, or no smaller, than another number


@pytest.mark.parametrize("name", SHIPPED_SEARCHES)
def test_every_shipped_search_is_read_from_its_text_with_other_numbers(name):
    kinds, texts = argument_kinds(SHIPPED_SEARCHES[name]), {}
    for place, (argument, kind) in enumerate(reversed(kinds.items())):
        taken = {each for each in (int, float) if each in (kind, *get_args(kind))}
        if taken:
            texts[argument] = BOUND.get(argument, f"0.{place + 1}" if taken == {float} else f"{place + 2}")
    search = SearchText.parse(name, texts).build()
    assert type(search) is SHIPPED_SEARCHES[name] and parse_search(search_text(search)) == search
    assert {key: float(text) for key, text in texts.items()} == {key: getattr(search, key) for key in texts}


@pytest.mark.parametrize(
    "text, other",
    [
        (" beam ", "beam"),
        ("particles(strength=4, num_particles=3)", "particles:num_particles=3,strength=4.0"),
        (
            "early-stop:num_candidates=4,patience=2,num_beams=1",
            "early-stop:inner=beam(num_beams=1,num_candidates=4),patience=2",
        ),
        ("early-stop:inner=beam(num_beams=1),num_candidates=4", "early-stop:inner=beam(num_beams=1,num_candidates=4)"),
        ("early-stop:margin=inf,inner=best-of-n:num_videos=2", "early-stop:inner=best-of-n(num_videos=2)"),
    ],
)
def test_one_search_may_be_said_in_other_words(text, other):
    assert parse_search(text) == parse_search(other)


@pytest.mark.parametrize(
    "text, message",
    [
        ("beem:num_beams=2", r"no search 'beem'\. The nearest is 'beam'; there are .*beam, best-of-n"),
        (
            "particles:treshold=1",
            r"'particles', which has no `treshold`\. The nearest is `threshold`; it has `num_part",
        ),
        ("early-stop:num_beam=1", r"no `num_beam`\. The nearest is `num_beams`; it has `inner`, .*`num_candidates`"),
        ("particles:num_particles=3", "'particles', which needs `strength`"),
        ("particles:strength", "'strength' has no value"),
        (
            "particles:num_particles=3.5",
            "`num_particles` of the search 'particles' is '3.5'; it must be a whole number",
        ),
        ("particles:num_particles=3,strength=nan", "`strength` of ParticleSearch is nan"),
        ("particles:num_particles=3,strength=4,potential=big", "must be difference or max or sum"),
        ("particles:tempering=much", "must be `none` or a number"),
        ("beam:budget=2x8/2", "`none` or a list with / between, each a whole number x a whole number, as in 2x8"),
        ("early-stop:inner=beam(num_beams=2", "a bracket is not closed"),
        ("beam(num_beams=2", "a bracket is not closed"),
        ("early-stop:inner=beam(num_beams=1),num_beams=2", "`num_beams` of the search 'beam' is given twice"),
        ("beam:num_beams=2,num_beams=3", "`num_beams` of the search 'beam' is given twice"),
    ],
)
def test_a_mistake_in_a_text_is_told_with_the_nearest(text, message):
    with pytest.raises(ValueError, match=message):
        parse_search(text)


@pytest.mark.parametrize(
    "search, message",
    [
        (BeamSearch(budget=lambda chunk_index, beams: (1, 2)), "`budget` of the search 'beam' is .* has no text"),
        (EarlyStop(lambda steps, beams: None), "is no shipped search"),
        (max, "max is no shipped search"),
    ],
)
def test_what_has_no_text_says_so(search, message):
    with pytest.raises(ValueError, match=message):
        search_text(search)


@dataclass(frozen=True)
class Tables:
    """A search of every kind of argument."""

    widths: tuple[int, ...]
    bounds: list[float | None] | None = None
    words: tuple[str, ...] = ("a",)
    mode: Literal["top", "median"] = "top"
    is_kept: bool = True
    judge: object = None


@pytest.mark.parametrize(
    "text, values",
    [
        ("tables:widths=4/2/1", ((4, 2, 1),)),
        ("tables:widths=4,bounds=0.5/none/-inf", ((4,), (0.5, None, float("-inf")))),
        (
            "tables:widths=4,words=in the end/b,mode=median,is_kept=false",
            ((4,), None, ("in the end", "b"), "median", False),
        ),
    ],
)
def test_an_annotation_says_how_an_argument_is_written(monkeypatch, text, values):
    monkeypatch.setitem(SHIPPED_SEARCHES, "tables", Tables)
    assert parse_search(text) == Tables(*values) and search_text(Tables(*values)) == text
    assert "judge" not in argument_kinds(Tables)
    with pytest.raises(ValueError, match="has no text"):
        search_text(Tables((1,), words=("a, b",)))


def test_the_number_that_a_budget_pays_for_may_be_that_of_the_search_within():
    places = {
        "best-of-n": ("num_videos",),
        "particles:strength=4": ("num_particles",),
        "early-stop": ("inner", "num_candidates"),
        "early-stop:inner=particles(strength=4)": ("inner", "num_particles"),
    }
    for text, place in places.items():
        written = SearchText.parse(text)
        assert written.scale == place and written.at(place) is None
        assert written.having(place, 3).at(place) == 3
    assert str(SearchText.parse("early-stop").having(("inner", "num_candidates"), 3)) == (
        "early-stop:inner=beam(num_candidates=3)"
    )
