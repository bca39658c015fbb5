"""Unit 3: what becomes of a chunk that leaves the window."""

from dataclasses import dataclass, replace

import pytest

from stream_t1.search import EMASink, MemoryPolicy, RewardRoutedSink, Route, SlidingWindow, StaticSink
from stream_t1.search.memory_sinking import make_room


@dataclass(frozen=True)
class Sink:
    """A chunk whose content is a number."""

    value: float
    start_frame: int = 0
    num_frames: int = 3

    @property
    def index(self):
        return self.start_frame // 3

    def average(self, evicted, decay):
        return replace(self, value=decay * self.value + (1 - decay) * evicted.value)


@dataclass(frozen=True)
class Memory:
    sinks: tuple
    window: tuple

    @property
    def window_frames(self):
        return 3 * len(self.window)

    def evict_oldest(self, new_sinks):
        return Memory(new_sinks(self.sinks, self.window[0]), self.window[1:])


POLICY = RewardRoutedSink(ema_decay=0.5)


@pytest.mark.parametrize(
    "short, long, route",
    [
        ([1.0, 2.0], [0.0, 0.0], "ema"),  # better than before
        ([1.0, 2.0], [0.5, 0.2], "append"),  # and the long score fell by 0.3
        ([1.0, 2.0], [0.5, 0.31], "ema"),  # by less than 0.2
        ([1.0, 1.0], [0.5, 0.0], "discard"),  # not better
        ([0.0, 2.0, 1.5], [0.0, 0.0, 0.0], "ema"),  # better than the mean of all the past, 1.0
        ([4.0, 0.0, 1.5], [0.0, 0.0, 0.0], "discard"),  # worse than the mean of all, 2.0
    ],
)
def test_rewards_route_a_chunk_along_its_beams_history(short, long, route):
    assert POLICY.route(short, long) == route


def test_an_appended_chunk_becomes_a_sink_at_its_own_position():
    assert POLICY.evict((Sink(0.0),), Sink(4.0, start_frame=9), Route.APPEND) == (Sink(0.0), Sink(4.0, start_frame=9))


def test_averages_go_into_the_sink_appended_last():
    sinks = POLICY.evict((Sink(0.0), Sink(2.0, 9)), Sink(4.0, 12), Route.EMA)
    assert sinks == (Sink(0.0), Sink(3.0, 9))


def test_a_full_sink_makes_an_average_of_an_append():
    policy = RewardRoutedSink(max_sink_frames=6, ema_decay=0.5)
    assert policy.evict((Sink(0.0), Sink(2.0, 9)), Sink(4.0, 12), Route.APPEND) == (Sink(0.0), Sink(3.0, 9))


def test_a_discarded_chunk_leaves_the_sinks_as_they_are():
    sinks = (Sink(0.0),)
    assert POLICY.evict(sinks, Sink(4.0, 9), Route.DISCARD) is sinks


def test_ema_sink_averages_every_chunk_and_static_sink_none():
    assert EMASink(ema_decay=0.5).evict((Sink(0.0),), Sink(4.0, 9), EMASink().route([1], [1])) == (Sink(2.0),)
    assert StaticSink().evict((Sink(0.0),), Sink(4.0, 9), StaticSink().route([1], [1])) == (Sink(0.0),)


def test_positions_are_those_of_each_policys_system():
    policies = (SlidingWindow(), StaticSink(), EMASink(), RewardRoutedSink())
    assert [policy.positions for policy in policies] == ["absolute", "absolute", "relative", "absolute"]


def test_a_sliding_window_has_no_sink_whatever_the_pipeline_says():
    assert SlidingWindow().first_sink_frames(3) == 0
    assert StaticSink().first_sink_frames(6) == 6


@pytest.mark.parametrize("policy", [EMASink(), RewardRoutedSink()])
def test_policies_that_average_need_a_sink(policy):
    with pytest.raises(ValueError, match="sink_frames.*SlidingWindow"):
        policy.first_sink_frames(0)


@pytest.mark.parametrize("arguments", [{"positions": "rotary"}, {"ema_decay": 1.5}])
def test_impossible_policies_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        EMASink(**arguments)


def test_the_oldest_chunk_leaves_only_when_the_next_one_needs_the_room():
    memory = Memory(sinks=(Sink(0.0),), window=(Sink(1.0, 3),))
    assert make_room(memory, POLICY, [None, "ema"], rolling_frames=9, incoming_frames=3) == (memory, [])


def test_the_route_taken_is_returned_beside_the_route_decided():
    full = RewardRoutedSink(max_sink_frames=3, ema_decay=0.5)
    memory = Memory(sinks=(Sink(0.0),), window=(Sink(1.0, 3), Sink(2.0, 6), Sink(3.0, 9)))
    routes = [None, "append", "discard", "ema"]
    memory, left = make_room(memory, full, routes, rolling_frames=6, incoming_frames=3)
    assert left == [(1, Route.APPEND, Route.EMA), (2, Route.DISCARD, Route.DISCARD)]
    assert memory.sinks == (Sink(0.5),) and memory.window == (Sink(3.0, 9),)


def test_a_policy_of_ones_own_is_a_few_lines():
    @dataclass(frozen=True)
    class KeepEveryOther(MemoryPolicy):
        def route(self, short_scores, long_scores):
            return Route.APPEND if len(short_scores) % 2 == 0 else Route.DISCARD

        def evict(self, sinks, chunk, route):
            return (*sinks, chunk) if route == Route.APPEND else sinks

    memory = Memory(sinks=(), window=tuple(Sink(float(i), 3 * i) for i in range(4)))
    memory, left = make_room(memory, KeepEveryOther(), [None, "append", "discard", "append"], 3, 3)
    assert [route.value for _, route, _ in left] == ["discard", "append", "discard", "append"]
    assert [sink.index for sink in memory.sinks] == [1, 3]
