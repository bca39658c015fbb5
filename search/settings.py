"""The numbers of a search, checked once, before any work."""

from dataclasses import asdict, dataclass
from math import isfinite
from numbers import Real
from typing import Literal

from . import geometry, memory_sinking, noise_propagation


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
