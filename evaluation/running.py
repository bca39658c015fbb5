"""Making the videos that are still missing, and measuring each before it is forgotten."""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from diffusers.utils import logging

from ..models.fingerprint import fingerprint
from ..pipeline_stream_t1 import StreamT1Pipeline, __version__
from .methods import Video, find_method, make_video
from .metrics import Metric, measure
from .results import SURROUNDINGS, Job, Row, append_row, is_finished, keep_configuration, new_row, read_rows

logger = logging.get_logger(__name__)


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A pipeline with its rewards, what is measured of its videos, and their size."""

    pipe: StreamT1Pipeline
    metrics: dict[str, Metric]
    in_windows: tuple[str, ...]  # the metrics that are taken in windows too
    verdicts: tuple[str, ...]  # the scores that methods are compared by; the others are there to explain
    height: int
    width: int

    def configuration(self) -> dict:
        """Returns what all rows of a folder have in common, and the versions and device that made them."""
        pipe = self.pipe
        rewards = {name: _describe(getattr(pipe, name)) for name in ("image_reward", "video_reward")}
        config = {name: pipe.config[name] for name in ("chunk_frames", "window_frames", "sink_frames", "fps")}
        if pipe.config["first_chunk_frames"] is not None:
            config["first_chunk_frames"] = pipe.config["first_chunk_frames"]
        if pipe.config.first_chunk_frames is not None:  # older rows name none
            config["first_chunk_frames"] = pipe.config.first_chunk_frames
        return {
            "weights": {name: fingerprint(getattr(pipe, name)) for name in ("text_encoder", "transformer", "vae")},
            "dtype": str(pipe.transformer.dtype).removeprefix("torch."),
            "height": self.height,
            "width": self.width,
            **config,
            "denoising_steps": list(pipe.config.denoising_steps),
            "shift": pipe.scheduler.config.shift,
            **rewards,
            "metrics": {name: _describe(getattr(metric, "scorer", metric)) for name, metric in self.metrics.items()},
            "in_windows": list(self.in_windows),
            "verdicts": list(self.verdicts),
            SURROUNDINGS: {
                "version": __version__,
                "torch": torch.__version__,
                "device": str(pipe.device),
                "threads": torch.get_num_threads(),
            },
        }

    def run(self, folder: Path, jobs: Sequence[Job], state: PartialState) -> int:
        """Makes this process's share of the videos that the folder lacks; returns how many are not finished.

        Raises:
            ValueError: the folder has rows of another configuration, or the model can't make such videos.
        """
        self.pipe.geometry.check_size(self.height, self.width)
        for num_frames in {job.num_frames for job in jobs}:
            self.pipe.geometry.check_num_frames(num_frames)
        if state.is_local_main_process:
            keep_configuration(folder, self.configuration())
        state.wait_for_everyone()
        finished = {Job.of(row) for row in read_rows([folder]) if is_finished(row)}
        share = [
            job for job in share_of(jobs, state.process_index, state.num_processes) if job not in finished
        ]  # cut first: what others add meanwhile must not move the cuts
        path, begin, num_unfinished = folder / f"rows-{state.process_index}.jsonl", time.monotonic(), 0
        for done, job in enumerate(share, start=1):
            row = self.make(job)
            append_row(path, row)
            num_unfinished += not is_finished(row)
            if done % 10 == 0 or done == len(share):
                minutes = (time.monotonic() - begin) / done * (len(share) - done) / 60
                print(f"process {state.process_index}: {done} of {len(share)}, {minutes:.0f} min left", flush=True)
        state.wait_for_everyone()
        return num_unfinished

    def video(self, job: Job) -> Video:
        """The job's video."""
        arguments = {"num_frames": job.num_frames, "height": self.height, "width": self.width}
        method = find_method(job.method)
        return make_video(self.pipe, method, budget=job.budget, prompt=job.prompt, seed=job.seed, **arguments)

    def make(self, job: Job) -> Row:
        """Makes one video and returns its row; of a video that fails, one that says why."""
        begin = time.perf_counter()
        try:
            video = self.video(job)
        except Exception as error:  # whatever it is must cost one video, not the night
            logger.warning(f"{job} failed, {type(error).__name__}: {error}")
            return new_row(job, error=f"{type(error).__name__}: {error}")
        seconds = time.perf_counter() - begin
        measured = measure(
            self.metrics,
            video.frames,
            job.prompt,
            self.pipe.config.fps,
            chunk_lengths=self.pipe.geometry.pixel_frames,
            in_windows=self.in_windows,
        )
        for name, problem in measured.problems.items():
            logger.warning(f"{job} has no {name}, {problem}")
        return new_row(
            job,
            scores=measured.scores,
            windows=measured.windows,
            problems=measured.problems,
            cost=video.cost,
            search=_search_record(video) if find_method(job.method).is_guided else {},
            frames_sha256=hashlib.sha256(video.frames.numpy().tobytes()).hexdigest(),
            seconds=seconds,
        )


def share_of(jobs: Sequence[Job], process_index: int, num_processes: int) -> list[Job]:
    """Returns one process's jobs: all of every n-th task, so that each has as much of every method to do."""
    tasks = list(dict.fromkeys(job.task for job in jobs))
    mine = set(tasks[process_index::num_processes])
    return [job for job in dict.fromkeys(jobs) if job.task in mine]


def _search_record(video: Video) -> dict:
    """The best video's rewards and routes chunk by chunk, and how far candidates' scores lay apart."""
    path = video.trace.best_path()
    scores = [[c.score for c in chunk.candidates if c.score is not None] for chunk in video.trace.chunks]
    return {
        "short": [candidate.short for candidate in path],
        "long": [candidate.long for candidate in path],
        "routes": [candidate.route for candidate in path],
        "spread": [max(chunk) - min(chunk) for chunk in scores],
    }


def _describe(scorer: object) -> str | None:
    """The name of what scores, with its weights' fingerprint if it has any."""
    if scorer is None:
        return None
    name = getattr(scorer, "__name__", type(scorer).__name__)
    has_weights = isinstance(scorer, torch.nn.Module) and bool(scorer.state_dict())
    return f"{name} {fingerprint(scorer)}" if has_weights else name
