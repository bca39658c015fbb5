"""The numbers of a search, checked once, before any work."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from numbers import Real
from typing import Literal

from . import geometry, memory_sinking, noise_propagation

SHIPPED_POLICIES = {
    policy.__name__: policy
    for policy in (
        memory_sinking.SlidingWindow,
        memory_sinking.StaticSink,
        memory_sinking.EMASink,
        memory_sinking.RewardRoutedSink,
    )
}


@dataclass(frozen=True)
class SearchSettings:
    """What a call asks of the search; the names are those of `StreamT1Pipeline.__call__`."""

    num_beams: int = 2  # K, kept after each chunk
    num_candidates: int = 2  # M, tried per beam
    noise_correlation: float = -0.1  # beta of unit 1
    short_weight_cap: float = 0.4  # tau of unit 2
    score_normalization: Literal["zscore", "rank"] | None = None
    reward_window: int = 10  # chunks that the long score reads
    candidate_seeds: Literal["independent", "reference"] = "independent"
    final_selection: Literal["video_reward", "score"] = "video_reward"
    num_videos_per_prompt: int = 1
    max_lag: int | None = None  # chunks after which the beams must agree

    def __post_init__(self) -> None:
        for name in ("num_beams", "num_candidates", "reward_window", "num_videos_per_prompt"):
            geometry.check_whole_number(name, getattr(self, name), least=1)
        if self.max_lag is not None:
            geometry.check_whole_number("max_lag", self.max_lag, least=0)
            if self.max_lag == 0 and self.num_videos_per_prompt > 1:
                raise ValueError(
                    f"`num_videos_per_prompt` is {self.num_videos_per_prompt}, and `max_lag`, 0, keeps one beam. Use "
                    "1 video, or no `max_lag`."
                )
        if self.num_videos_per_prompt > self.num_beams:
            raise ValueError(
                f"`num_videos_per_prompt` is {self.num_videos_per_prompt}, and only `num_beams`, {self.num_beams}, "
                f"are kept. Use {self.num_beams} or fewer videos, or more beams."
            )
        for name in ("noise_correlation", "short_weight_cap"):
            if not isinstance(getattr(self, name), Real):
                raise TypeError(f"`{name}` is {getattr(self, name)!r}; it must be a number.")
        if not -1.0 < self.noise_correlation < 1.0:
            raise ValueError(
                f"`noise_correlation` is {self.noise_correlation}; it must lie between -1 and 1, both excluded. "
                "The paper's value is -0.1; 0 makes every chunk's noise independent."
            )
        if not 0.0 <= self.short_weight_cap <= 1.0:
            raise ValueError(f"`short_weight_cap` is {self.short_weight_cap}; it must lie in [0, 1].")
        self._check_choice("score_normalization", (None, "zscore", "rank"))
        self._check_choice("candidate_seeds", tuple(noise_propagation.SEED_MODES))
        self._check_choice("final_selection", ("video_reward", "score"))

    def _check_choice(self, name: str, allowed: tuple[str | None, ...]) -> None:
        value = getattr(self, name)
        if value not in allowed:
            raise ValueError(f"`{name}` is {value!r}; it must be one of {', '.join(map(repr, allowed))}.")

    def as_config(self, memory: "memory_sinking.MemoryPolicy") -> dict[str, object]:
        """What the trace keeps of the call."""
        policy = vars(memory) if hasattr(memory, "__dict__") else {}
        plain = {name: value for name, value in policy.items() if isinstance(value, bool | int | float | str | None)}
        # JSON has no infinity, and a threshold may well be infinite.
        plain = {n: str(v) if isinstance(v, float) and not isfinite(v) else v for n, v in plain.items()}
        return {**asdict(self), "memory": {"policy": type(memory).__name__, **plain}}


def check_policy(memory: object) -> None:
    """
    Raises:
        TypeError: `memory` has not what a memory policy has.
    """
    missing = [name for name in ("route", "evict") if not callable(getattr(memory, name, None))]
    if missing or isinstance(memory, type):
        given = f"the class {memory.__name__}" if isinstance(memory, type) else f"a {type(memory).__name__}"
        raise TypeError(
            f"`memory` is {given}, not a memory policy. Use SlidingWindow(), StaticSink(), EMASink() or "
            "RewardRoutedSink(), or an object with the methods `route` and `evict`."
        )
    if policy_positions(memory) not in ("absolute", "relative"):
        raise ValueError(f'`memory.positions` is {policy_positions(memory)!r}; it must be "absolute" or "relative".')


def policy_positions(memory: object) -> str:
    """The policy's numbering of frames; absolute when it names none."""
    return getattr(memory, "positions", "absolute")


def policy_sink_frames(memory: object, sink_frames: int) -> int:
    """How many first frames the policy keeps as sinks; the pipeline's `sink_frames` when it has no say."""
    return memory.first_sink_frames(sink_frames) if hasattr(memory, "first_sink_frames") else sink_frames


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
    if name not in SHIPPED_POLICIES:
        raise ValueError(f"`memory` names the policy {name!r}; it must be one of {', '.join(SHIPPED_POLICIES)}.")
    allowed = [field.name for field in fields(SHIPPED_POLICIES[name])]
    unknown = [key for key in given if key not in allowed]
    if unknown:
        raise ValueError(f"`memory` gives {name} {', '.join(unknown)}; it has {', '.join(allowed)}.")
    return SHIPPED_POLICIES[name](**given)
