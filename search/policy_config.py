"""Memory policies as values of a pipeline's config, and what the loop asks of any policy."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from math import isfinite

from . import geometry, memory_sinking

SHIPPED_POLICIES = {
    policy.__name__: policy
    for policy in (
        memory_sinking.SlidingWindow,
        memory_sinking.StaticSink,
        memory_sinking.EMASink,
        memory_sinking.RewardRoutedSink,
    )
}


def check_policy(memory: object) -> None:
    """
    Raises:
        TypeError: `memory` lacks `route` or `evict`, or is a class.
        ValueError: its positions are of no known kind.
    """
    missing = [name for name in ("route", "evict") if not callable(getattr(memory, name, None))]
    if missing or isinstance(memory, type):
        given = f"the class {memory.__name__}" if isinstance(memory, type) else f"a {type(memory).__name__}"
        raise TypeError(
            f"`memory` is {given}, not a memory policy. Use SlidingWindow(), StaticSink(), EMASink() or "
            "RewardRoutedSink(), or an object with the methods `route` and `evict`."
        )
    memory_sinking.check_positions("memory.positions", policy_positions(memory))


def policy_positions(memory: object) -> str:
    """The policy's numbering of frames; absolute when it names none."""
    return getattr(memory, "positions", "absolute")


def policy_recache(memory: object, recache: str | None, argument: str = "recache") -> str:
    """What becomes of the past when the prompt changes; None: the policy's own choice.

    Args:
        argument: that brought `recache`, for messages.

    Raises:
        ValueError: the policy does not serve it, or names what there is not.
    """
    modes, name, known = getattr(memory, "recache_modes", None), type(memory).__name__, memory_sinking.RECACHE_MODES
    modes = known if modes is None else modes
    if not isinstance(modes, tuple) or not modes or not set(modes) <= set(known):
        raise ValueError(f"`recache_modes` of {name} is {modes!r}; it must be a tuple of some of {', '.join(known)}.")
    if recache is not None and recache not in modes:
        raise ValueError(f"`{argument}` is {recache!r}; {name} can do {' or '.join(map(repr, modes))}.")
    return modes[0] if recache is None else recache


def policy_sink_frames(memory: object, sink_frames: int) -> int:
    """How many first frames the policy keeps as sinks; the pipeline's `sink_frames` when it has no say.

    Raises:
        TypeError, ValueError: the policy says what is no number of frames, or cannot do with `sink_frames`.
    """
    if not hasattr(memory, "first_sink_frames"):
        return sink_frames
    frames, of = memory.first_sink_frames(sink_frames), f" of `memory`, {type(memory).__name__},"
    return geometry.whole_number("first_sink_frames", frames, least=0, of=of)


def policy_config(memory: "memory_sinking.MemoryPolicy | Mapping[str, str | float] | None") -> dict | None:
    """What a pipeline's config keeps of its policy: its name as `policy` and its numbers, all of them plain JSON.

    Args:
        memory: a shipped policy, or what this function made of one; None is kept as None.

    Raises:
        TypeError: a policy of the user's own, which a config can't bring back.
        ValueError: a name or number that no policy has, or a number that JSON has not.
    """
    if memory is None:
        return None
    policy = policy_from_config(memory) if isinstance(memory, Mapping) else memory
    check_policy(policy)
    if type(policy).__name__ not in SHIPPED_POLICIES:  # by name: the user's may be of another copy of the code
        raise TypeError(
            f"`memory` is a {type(policy).__name__}; a pipeline's config keeps {', '.join(SHIPPED_POLICIES)}. Give a "
            "policy of your own to the call."
        )
    numbers = asdict(policy)
    endless = [name for name, value in numbers.items() if isinstance(value, float) and not isfinite(value)]
    if endless:
        raise ValueError(f"`{endless[0]}` of `memory` is {numbers[endless[0]]}, which a config can't keep.")
    return {"policy": type(policy).__name__, **numbers}


def policy_from_config(config: Mapping[str, str | float] | None) -> "memory_sinking.MemoryPolicy":
    """The policy of `policy_config`; for None the method's own, with its defaults.

    Raises:
        ValueError: `config` names no shipped policy, or something that its policy has not.
    """
    if config is None:
        return memory_sinking.RewardRoutedSink()
    given = dict(config)
    name = given.pop("policy", None)
    if not isinstance(name, str) or name not in SHIPPED_POLICIES:
        raise ValueError(f"`memory` names the policy {name!r}; it must be one of {', '.join(SHIPPED_POLICIES)}.")
    allowed = [field.name for field in fields(SHIPPED_POLICIES[name])]
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"`memory` gives {name} {', '.join(map(str, unknown))}; it has {', '.join(allowed)}.")
    return SHIPPED_POLICIES[name](**given)
