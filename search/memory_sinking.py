"""Unit 3, memory sinking: rewards decide what becomes of a chunk that leaves the window (paper section 3.3).

A policy is a value. It decides a chunk's route when the chunk is made, and turns the sinks into new sinks when the
chunk leaves. To write one, give a class these members (deriving from `MemoryPolicy` supplies all of them):

- `route(short_scores, long_scores)`: the route of the newest chunk, from the scores of its beam's chunks so far;
- `evict(sinks, chunk, route)`: the sinks after `chunk` has left the window;
- `positions`: "absolute" (the default) or "relative";
- `first_sink_frames(sink_frames)`: how many of the video's first frames are sinks, given the pipeline's setting;
- `recache_modes`: what it can do with the past when the prompt changes, its own choice first; absent, everything.

`sinks` is a tuple of values with `num_frames`, `start_frame`, and `average(chunk, decay)`, which gives a new sink.
"""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar, Literal, Protocol, TypeVar

from . import geometry

Positions = Literal["absolute", "relative"]
RECACHE_MODES = ("window", "all", "none", "flush")
Memory = TypeVar("Memory")


class Route(str, Enum):
    """What becomes of a chunk that leaves the window. Equals its name as a string, also across copies of the code."""

    DISCARD = "discard"
    EMA = "ema"
    APPEND = "append"


class Sink(Protocol):
    """What a policy sees of a remembered chunk."""

    num_frames: int
    start_frame: int

    def average(self, evicted: "Sink", decay: float) -> "Sink": ...


@dataclass(frozen=True)
class MemoryPolicy:
    """Base of the policies: first chunks are sinks, every other chunk is forgotten when it leaves the window.

    Args:
        positions: "absolute" keeps the rotary position of every frame, up to the end of the model's table; "relative"
            numbers the context from 0 at every chunk, so a stream has no longest length.
    """

    positions: Positions = "absolute"
    recache_modes: ClassVar[tuple[str, ...]] = RECACHE_MODES

    def __post_init__(self) -> None:
        check_positions("positions", self.positions)

    def _keep(self, name: str, value: float) -> None:
        object.__setattr__(self, name, value)

    def first_sink_frames(self, sink_frames: int) -> int:
        return sink_frames

    def route(self, short_scores: Sequence[float], long_scores: Sequence[float]) -> Route:
        return Route.DISCARD

    def evict(self, sinks: tuple[Sink, ...], chunk: Sink, route: Route) -> tuple[Sink, ...]:
        return sinks


@dataclass(frozen=True)
class SlidingWindow(MemoryPolicy):
    """Only the window, no sinks (Self-Forcing, Huang et al. 2025)."""

    def first_sink_frames(self, sink_frames: int) -> int:
        return 0


@dataclass(frozen=True)
class StaticSink(MemoryPolicy):
    """The first chunk stays for ever (LongLive, Yang et al. 2025; its endless mode has relative positions)."""


@dataclass(frozen=True)
class _AveragingPolicy(MemoryPolicy):
    """What averages into sinks needs one to begin with, and a decay."""

    averages = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep("ema_decay", geometry.real_number("ema_decay", self.ema_decay))
        if not 0.0 <= self.ema_decay <= 1.0:
            raise ValueError(f"`ema_decay` is {self.ema_decay}; it must lie in [0, 1]. Near 1 a sink changes slowly.")

    def first_sink_frames(self, sink_frames: int) -> int:
        if sink_frames == 0:
            raise ValueError(
                f"`sink_frames` is 0, and {type(self).__name__} averages chunks into a sink. Load the pipeline with "
                "`sink_frames` of one chunk or more, or use SlidingWindow()."
            )
        return sink_frames


@dataclass(frozen=True)
class EMASink(_AveragingPolicy):
    """Every chunk that leaves is averaged into the sink (Reward Forcing, Lu et al. 2025).

    Args:
        ema_decay: alpha of `alpha * sink + (1 - alpha) * chunk`.
    """

    positions: Positions = "relative"
    ema_decay: float = 0.999

    def route(self, short_scores: Sequence[float], long_scores: Sequence[float]) -> Route:
        return Route.EMA

    def evict(self, sinks: tuple[Sink, ...], chunk: Sink, route: Route) -> tuple[Sink, ...]:
        return (*sinks[:-1], sinks[-1].average(chunk, self.ema_decay))


@dataclass(frozen=True)
class RewardRoutedSink(_AveragingPolicy):
    """Stream-T1: good chunks are averaged in, good chunks at a transition become sinks, the rest is forgotten.

    A chunk is good when its short score exceeds the mean of all the short scores before it by more than
    `quality_threshold`. (The paper speaks of a moving average; the authors' code takes the whole past.) A transition
    is a fall of the long score by more than `transition_threshold`.

    Args:
        quality_threshold: in units of the image reward; may be infinite.
        transition_threshold: in units of the video reward; may be infinite.
        max_sink_frames: latent frames that the sinks may hold, the first sink included; when a chunk would exceed it,
            it is averaged in instead of appended.
        ema_decay: alpha of `alpha * sink + (1 - alpha) * chunk`, on the sink appended last.
    """

    quality_threshold: float = 0.0
    transition_threshold: float = 0.2
    max_sink_frames: int = 15
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("quality_threshold", "transition_threshold"):
            self._keep(name, geometry.real_number(name, getattr(self, name), may_be_infinite=True))
        self._keep("max_sink_frames", geometry.whole_number("max_sink_frames", self.max_sink_frames, least=0))

    def route(self, short_scores: Sequence[float], long_scores: Sequence[float]) -> Route:
        *past, newest = short_scores
        if not past or not newest - sum(past) / len(past) > self.quality_threshold:
            return Route.DISCARD
        is_transition = long_scores[-2] - long_scores[-1] > self.transition_threshold
        return Route.APPEND if is_transition else Route.EMA

    def evict(self, sinks: tuple[Sink, ...], chunk: Sink, route: Route) -> tuple[Sink, ...]:
        if route == Route.DISCARD:
            return sinks
        if route == Route.APPEND and sum(s.num_frames for s in sinks) + chunk.num_frames <= self.max_sink_frames:
            return (*sinks, chunk)
        return (*sinks[:-1], sinks[-1].average(chunk, self.ema_decay))


def check_positions(name: str, positions: object) -> None:
    """
    Raises:
        ValueError: they are of neither kind.
    """
    if not isinstance(positions, str) or positions not in ("absolute", "relative"):
        raise ValueError(f'`{name}` is {positions!r}; it must be "absolute" or "relative".')


def decided_route(
    policy: MemoryPolicy, short_scores: Sequence[float], long_scores: Sequence[float], since: int = 0
) -> str | None:
    """The name of the newest chunk's route by `policy`; None for chunk 0, which has none.

    Args:
        since: chunk of the last change of the prompt: scores before it are of other words. The first chunk under new
            words is discarded, since a route compares.

    Raises:
        ValueError: the policy gave no route.
    """
    if len(short_scores) == 1:
        return None
    short_scores, long_scores = short_scores[since:], long_scores[since:]
    if len(short_scores) == 1:
        return Route.DISCARD.value
    route = policy.route(short_scores, long_scores)
    names = [possible.value for possible in Route]
    if not isinstance(route, str) or route not in names:
        raise ValueError(f"`route` of {type(policy).__name__} gave {route!r}; it must give one of {', '.join(names)}.")
    return Route(route).value


def make_room(
    memory: Memory, policy: MemoryPolicy, routes: Sequence[str | None], rolling_frames: int, incoming_frames: int
) -> tuple[Memory, list[tuple[int, Route, Route]]]:
    """The memory after as many of its oldest chunks have left as the next one needs, and what became of them.

    Args:
        memory: of one beam; it has `window`, `window_frames`, `sinks` and `evict_oldest(new_sinks)`.
        routes: of the beam's chunks, in order; None, for chunk 0, discards.
        rolling_frames: frames of the window with the incoming chunk, without the first sinks.
        incoming_frames: of the next chunk.

    Returns:
        The new memory, and for every chunk that left: its index, its route, and what was really done.

    Raises:
        TypeError: the policy gave no sinks.
    """

    def new_sinks(sinks: tuple[Sink, ...], chunk: Sink) -> tuple[Sink, ...]:
        made = policy.evict(sinks, chunk, Route(routes[chunk.index] or Route.DISCARD))
        if not isinstance(made, tuple | list) or not all(isinstance(sink, type(chunk)) for sink in made):
            raise TypeError(
                f"`evict` of {type(policy).__name__} gave {type(made).__name__}; it must give a tuple of sinks."
            )
        return tuple(made)

    left = []
    while memory.window_frames + incoming_frames > rolling_frames:
        oldest, sinks = memory.window[0], memory.sinks
        route = Route(routes[oldest.index] or Route.DISCARD)
        memory = memory.evict_oldest(new_sinks)
        left.append((oldest.index, route, route_taken(sinks, memory.sinks)))
    return memory, left


def route_taken(before: Sequence[Sink], after: Sequence[Sink]) -> Route:
    """What a policy really did to the sinks, which a full sink or a user's policy may make differ from the route."""
    if len(after) > len(before):
        return Route.APPEND
    unchanged = len(after) == len(before) and all(map(operator.is_, before, after))
    return Route.DISCARD if unchanged else Route.EMA
