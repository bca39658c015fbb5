"""Staged search: branching, rewards, judge's words and rule of keeping by chunk (after Video-T1, arXiv 2503.18942)."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from . import beam, beam_search, choice, geometry, noise_propagation, reward_pruning

Rule = Literal["best", "median", "bound"]
# What a stage may have instead of the call's, and under which names `steps.score` takes it.
OWN = {"image_reward": "image_reward", "video_reward": "video_reward", "reward_prompt": "prompt"}


@dataclass(frozen=True)
class StagedSearch:
    """A beam search whose numbers, rewards and words change from chunk to chunk.

    But for `budget`, every argument is one value for all chunks, or a list of one per chunk, whose last entry goes on.
    Video-T1 grows a tree of frames, with several branches at first and one at last, asks a judge other questions at
    its beginning, middle and end, and keeps what is no worse than the median, or passes. Its tree over the sampler's
    image pyramid, and its language model that splits a prompt into three, are not here: the parts of a prompt are
    given, in `reward_prompt`. All that a chunk tries is scored by that chunk's rewards and words; scores of different
    stages meet only in the beams' histories. The call still needs a reward, for the order of the last beams.

    Args:
        budget: a list of (K, M), as of `BeamSearch`: K times M are tried, and at most K are kept.
        keep: "best": the best K. "median": of these, those that score no less than the median of all. "bound": of
            these, those that reach `bound`; if none does, the best.
        bound: in units of the fused score; read where `keep` is "bound".
        image_reward, video_reward: instead of the call's; None is the call's, False none.
        reward_prompt: what rewards read instead of the call's words; None is those.

    Raises:
        TypeError, ValueError: one of the values is not of these, or a list is empty.
    """

    budget: "beam_search.Budget" = ((2, 2),)
    keep: Rule | Sequence[Rule] = "best"
    bound: float | Sequence[float] = -math.inf
    image_reward: Callable | bool | None | Sequence[Callable | bool | None] = None
    video_reward: Callable | bool | None | Sequence[Callable | bool | None] = None
    reward_prompt: str | None | Sequence[str | None] = None

    drops = True

    def __post_init__(self) -> None:
        of = " of StagedSearch"
        if callable(self.budget):
            raise TypeError("`budget` of StagedSearch is a function; give a list of (num_beams, num_candidates).")
        try:
            object.__setattr__(self, "_beams", beam_search.BeamSearch(budget=self.budget))
        except (TypeError, ValueError) as error:
            raise type(error)(str(error).replace("BeamSearch", "StagedSearch")) from None
        object.__setattr__(self, "budget", self._beams.budget)
        self._keep("bound", lambda name, each: geometry.real_number(name, each, of, may_be_infinite=True))
        self._keep("keep", _rule)
        for name in ("image_reward", "video_reward"):
            self._keep(name, _reward)
        self._keep("reward_prompt", _words)

    def _keep(self, name: str, checked: Callable[[str, object], object]) -> None:
        value = getattr(self, name)
        if not _is_list(value):
            object.__setattr__(self, name, checked(name, value))
            return
        if len(value) == 0:
            raise ValueError(
                f"`{name}` of StagedSearch is empty; give one value, or one for each of the first chunks."
            )
        object.__setattr__(self, name, tuple(checked(f"{name}[{row}]", each) for row, each in enumerate(value)))

    def _now(self, name: str, chunk_index: int) -> object:
        values = _listed(getattr(self, name))
        return values[min(chunk_index, len(values) - 1)]

    @property
    def num_beams(self) -> int:
        return self._beams.num_beams

    def __call__(self, steps: object, beams: "list[beam.Beam]") -> "choice.Choice":
        num_beams, num_candidates = self._beams.numbers(steps.chunk_index, beams)
        now = {name: self._now(name, steps.chunk_index) for name in ("keep", "bound", *OWN)}
        counts = noise_propagation.split_evenly(num_beams * num_candidates, len(beams))
        own = {argument: now[name] for name, argument in OWN.items() if now[name] is not None}
        candidates = steps.score(beams, steps.denoise(beams, steps.propose(beams, counts)), **own)
        ranked = reward_pruning.rank(candidates)
        scores = [candidates[index].score for index in ranked]
        least = -math.inf
        if scores and now["keep"] != "best":
            least = statistics.median(scores) if now["keep"] == "median" else min(now["bound"], scores[0])
        good = [index for index, score in zip(ranked, scores, strict=True) if score >= least]
        return choice.Choice(candidates, good[:num_beams], reserve=good[num_beams:])

    def work(self, chunk_index: int, num_parents: int) -> "tuple[choice.SearchWork, choice.SearchWork]":
        """That of the beam search with such a budget; rules other than "best" keep fewer beams at the least."""
        least, most = self._beams.work(chunk_index, num_parents)
        return (least if self._now("keep", chunk_index) == "best" else replace(least, kept=1)), most


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _listed(value: object) -> Sequence[object]:
    return value if _is_list(value) else (value,)


def _rule(name: str, value: object) -> str:
    if not isinstance(value, str) or value not in get_args(Rule):
        known = ", ".join(map(repr, get_args(Rule)))
        raise ValueError(f"`{name}` of StagedSearch is {value!r}; it must be one of {known}.")
    return str(value)


def _reward(name: str, value: object) -> Callable | bool | None:
    if isinstance(value, type) or not (value is None or value is False or callable(value)):
        raise TypeError(
            f"`{name}` of StagedSearch is {value!r}; it must be a callable `reward(frames, prompt, fps)`, False for "
            "none, or None for the call's."
        )
    return value


def _words(name: str, value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"`{name}` of StagedSearch is a {type(value).__name__}; it must be a text, or None.")
    return None if value is None else str(value)
