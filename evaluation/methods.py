"""Methods to make a video: what competes, and which of the paper's units are on.

A budget is the denoising forwards that a chunk may cost. With n steps it pays for `budget / n` candidates of every
chunk, whatever competes: whole videos, chunks or beams. A search that is given as a text has what so many plain
samples cost in all, for the whole video, to spend as it likes.

Axes: F frames, H height, W width.
"""

import math
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from diffusers.utils import logging

from ..pipeline_stream_t1 import StreamT1Pipeline
from ..rewards.scoring import RewardScore, score_clips
from ..search.memory_sinking import EMASink, MemoryPolicy, RewardRoutedSink, SlidingWindow, StaticSink
from ..search.reward_pruning import fused_score, fusion_weight
from ..search.search_names import SearchText
from ..search.shipped import SHIPPED_SEARCHES
from ..search.trace import SearchTrace
from .budgets import search_within

logger = logging.get_logger(__name__)


@dataclass(frozen=True)
class Method:
    """One way to spend a budget."""

    name: str
    competition: str  # of COMPETITIONS, or "search"
    memory: MemoryPolicy = field(default_factory=StaticSink)
    noise_correlation: float = 0.0  # beta of unit 1
    has_rewards: bool = True
    search: SearchText | None = None  # of the competition "search"

    @property
    def is_guided(self) -> bool:
        """True where rewards score every chunk."""
        return self.has_rewards and self.competition != "videos"

    def with_correlation(self, noise_correlation: float) -> "Method":
        """The same method with another beta, which its name then states."""
        return replace(self, name=f"{self.name}@{noise_correlation:g}", noise_correlation=noise_correlation)


@dataclass(frozen=True, eq=False)
class Video:
    """A finished video and what it cost."""

    frames: torch.Tensor  # (F, 3, H, W) uint8
    trace: SearchTrace  # of the run that made it
    # Of all runs: forwards, clean_passes, latents_decoded, frames_scored; of a search's text chunk_forwards too.
    cost: dict[str, int]


METHODS = {
    method.name: method
    for method in (
        Method("single", "none", has_rewards=False),
        Method("sliding-window", "none", memory=SlidingWindow(), has_rewards=False),
        Method("ema-sink", "none", memory=EMASink(), has_rewards=False),
        Method("routed-sink", "none", memory=RewardRoutedSink()),
        Method("best-of-videos", "videos"),
        Method("best-of-chunks", "chunks"),
        Method("beam", "beams"),
        Method("beam+noise", "beams", noise_correlation=-0.1),
        Method("beam+memory", "beams", memory=RewardRoutedSink()),
        # The default threshold, 0.2, is on VideoAlign's scale; rewards in [0, 1] hardly ever fall so far.
        Method("beam+appends", "beams", memory=RewardRoutedSink(transition_threshold=0.01)),
        Method("full", "beams", memory=RewardRoutedSink(), noise_correlation=-0.1),
    )
}


def find_method(name: str) -> Method:
    """Returns the method of a name, or of a search's text; "NAME@BETA" is one with another noise correlation.

    Raises:
        ValueError: there is none, or no such search.
    """
    known, at, beta = name.rpartition("@") if "@" in name else (name, "", "")
    try:
        correlation = float(beta) if at else None
        if at and not -1 < correlation < 1:
            raise ValueError
        if known not in METHODS and re.split(r"[:(]", known)[0].strip() not in SHIPPED_SEARCHES:
            raise ValueError
    except ValueError:
        raise ValueError(
            f"There is no method {name!r}; it must be one of {', '.join(METHODS)}; or a search, "
            f"{', '.join(SHIPPED_SEARCHES)}, with arguments, as in particles:strength=4; or one of these with another "
            'noise correlation above -1 and below 1, as in "full@-0.3".'
        ) from None
    method = METHODS.get(known) or _method_of_search(SearchText.parse(known))
    return method.with_correlation(correlation) if at else method


def _method_of_search(written: SearchText) -> Method:
    return Method(str(written), "search", search=written)


def candidates_per_chunk(method: Method, budget: int, num_steps: int) -> int:
    """Number of candidates of a chunk that the budget pays for; for a search, of plain samples.

    Raises:
        ValueError: none, part of one, or a number that the method can't use.
    """
    count, rest = divmod(budget, num_steps)
    least, most = {"none": (1, 1), "search": (1, budget)}.get(method.competition, (2, budget))
    if rest or not least <= count <= most or (method.competition == "beams" and count % 2):
        wanted = {"none": f"{num_steps}", "beams": f"an even multiple of {num_steps}"}
        wanted["search"] = f"a multiple of {num_steps}"
        default = f"a multiple of {num_steps}, {2 * num_steps} or more"
        raise ValueError(
            f"{method.name!r} can't spend a budget of {budget} forwards per chunk at {num_steps} steps a candidate; "
            f"it must be {wanted.get(method.competition, default)}."
        )
    return count


def check_budget(method: Method, budget: int, num_steps: int, num_chunks: int) -> None:
    """Checks that a method can spend a budget on a video of so many chunks.

    Raises:
        TypeError, ValueError: it can't, or its search lacks an argument.
    """
    candidates_per_chunk(method, budget, num_steps)
    if method.search is not None:
        search_within(method.search, budget, num_steps, num_chunks)


def make_video(
    pipe: StreamT1Pipeline, method: Method, *, budget: int, prompt: str, seed: int, num_frames: int, **arguments: int
) -> Video:
    """Makes one video. All methods of a seed have the plain sample's first chunk among their candidates.

    Args:
        budget: denoising forwards per chunk.
        seed: of the generator.
        arguments: of the pipeline's call; `height`, `width`.

    Raises:
        ValueError: the method can't spend the budget; or what the pipeline raises.
    """
    num_steps = len(pipe.config.denoising_steps)
    count = candidates_per_chunk(method, budget, num_steps)
    arguments |= {
        "num_frames": num_frames,
        "prompt": prompt,
        "generator": torch.Generator().manual_seed(seed),
        "output_type": "pt",
    }
    arguments |= {"memory": method.memory, "noise_correlation": method.noise_correlation}
    if not method.has_rewards:
        arguments |= {"image_reward": False, "video_reward": False}
    if method.search is not None:
        search = search_within(method.search, budget, num_steps, pipe.geometry.num_chunks(num_frames))
        video = _made(pipe, arguments | {"search": search})
        return replace(video, cost=video.cost | {"chunk_forwards": _chunk_forwards(video.trace)})
    return COMPETITIONS[method.competition](pipe, count, arguments)


def _best_of_beams(pipe: StreamT1Pipeline, count: int, arguments: dict) -> Video:
    """Searches with two beams; with two candidates in all, with one, since two beams of one would drop nothing."""
    num_beams = 2 if count >= 4 else 1
    return _search(pipe, num_beams, count // num_beams, arguments)


def _best_of_chunks(pipe: StreamT1Pipeline, count: int, arguments: dict) -> Video:
    return _search(pipe, 1, count, arguments)


def _best_of_videos(pipe: StreamT1Pipeline, count: int, arguments: dict) -> Video:
    """Makes plain videos one by one and scores each whole one with both rewards, fused as a last chunk's are."""
    best, best_score, cost, problem = None, -math.inf, Counter(), None
    for _ in range(count):
        video = _search(pipe, 1, 1, arguments | {"image_reward": False, "video_reward": False})
        scores, failed = [], None
        for name in ("image_reward", "video_reward"):
            reward, result = getattr(pipe, name), RewardScore(None)
            if reward is not None:
                result = score_clips(reward, video.frames[None], arguments["prompt"], pipe.config.fps, name=name)[0]
                video.cost["frames_scored"] += len(video.frames)
                failed = failed or result.problem or result.gated
            scores.append(result.score)
        cost.update(video.cost)
        if failed is not None:
            problem = failed
            logger.warning(f"One of {count} videos is left out, {problem}.")
            continue
        num_chunks, cap = len(video.trace.chunks), video.trace.config["short_weight_cap"]
        score = fused_score(*scores, fusion_weight(num_chunks - 1, num_chunks, cap))
        if score > best_score:
            best, best_score = video, score
    if best is None:
        raise ValueError(f"None of {count} videos has a score: {problem}")
    return replace(best, cost=dict(cost))


def _search(pipe: StreamT1Pipeline, num_beams: int, num_per_beam: int, arguments: dict) -> Video:
    return _made(pipe, arguments | {"num_beams": num_beams, "num_candidates": num_per_beam})


def _chunk_forwards(trace: SearchTrace) -> int:
    return sum(work.chunk_forwards for work in trace.works)


def _made(pipe: StreamT1Pipeline, arguments: dict) -> Video:
    """The video of one call.

    Raises:
        KeyboardInterrupt: the call was interrupted.
    """
    output = pipe(**arguments)
    frames, trace = (output.frames[0] * 255).round().to(torch.uint8).cpu(), output.trace
    present = [
        name
        for name in ("video_reward", "image_reward")
        if getattr(pipe, name) is not None and arguments.get(name) is not False
    ]
    if len(frames) < trace.config["num_frames"] or trace.final.selection != (*present, "score")[0]:
        raise KeyboardInterrupt  # the pipeline returns the finished chunks then; here they are not a video
    names = ("forwards", "clean_passes", "latents_decoded", "frames_scored")
    cost = {name: sum(getattr(work, name) for work in trace.works) for name in names}
    if "video_reward" in present:
        cost["frames_scored"] += len(trace.final.order) * len(frames)
    return Video(frames, trace, cost)


COMPETITIONS: dict[str, Callable[[StreamT1Pipeline, int, dict], Video]] = {
    "none": lambda pipe, count, arguments: _search(pipe, 1, count, arguments),
    "videos": _best_of_videos,
    "chunks": _best_of_chunks,
    "beams": _best_of_beams,
}
