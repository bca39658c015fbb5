"""Processes in which nothing of the project was loaded before, for tests of loading.

`FreshProcesses` starts this file as a script. It imports diffusers once, which takes longer than most routes of
loading do, and forks for each piece of Python that it is given: a piece finds diffusers loaded, no code of the
project, and none that was fetched by the pieces before. It may use `filmed(pipe)` and `refusal(load, ...)`.
"""

import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path


class FreshProcesses:
    """Runs pieces of Python against a Hub, one after the other, while the `with` block lasts.

    Args:
        hub_url: of the server.
        home: their folder, where what is downloaded stays until `forget_downloads`.
        package: False: `stream_t1` cannot be imported, as where it is not installed.
        environment: settings besides.
    """

    def __init__(self, hub_url: str, home: Path, package: bool, **environment: str) -> None:
        settings = ("HF_", "HUGGINGFACE_", "DIFFUSERS_", "TRANSFORMERS_")  # whatever the machine has set
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(settings)}
        own = {"HF_ENDPOINT": hub_url, "HF_HOME": str(home / "hf"), "HF_MODULES_CACHE": str(home / "modules")}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "127.0.0.1", "OMP_NUM_THREADS": "1"}
        self.home = home
        self.parent = subprocess.Popen(
            [sys.executable, __file__, "with-package" if package else "without-package"],
            env={**inherited, **own, **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> "FreshProcesses":
        return self

    def __exit__(self, *_: object) -> None:
        self.parent.stdin.close()
        self.parent.wait()
        self.parent.stdout.close()

    def run(self, lines: str, folder: Path) -> list[str]:
        """Runs a piece in `folder` and returns the lines that it prints."""
        self.parent.stdin.write(json.dumps({"lines": lines, "folder": str(folder)}) + "\n")
        self.parent.stdin.flush()
        status = json.loads(self.parent.stdout.readline())["status"]
        said, errors = ((self.home / name).read_text() for name in ("stdout", "stderr"))
        assert status == 0, errors
        return said.splitlines()

    def forget_downloads(self) -> None:
        shutil.rmtree(self.home / "hf", ignore_errors=True)


class Uninstalled:
    """Finds `stream_t1` before any other finder does, and says that there is no such module."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.split(".")[0] == "stream_t1":
            raise ModuleNotFoundError(f"No module named {name!r}")


def filmed(pipe: Callable) -> str:
    """The hash of the video that a pipeline of the toy models makes by a search with evictions."""
    import torch

    prompt_embeds = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(3))
    pipe.set_progress_bar_config(disable=True)
    frames = pipe(
        prompt_embeds=prompt_embeds,
        height=16,
        width=16,
        num_frames=45,
        num_beams=2,
        num_candidates=2,
        image_reward=lambda frames, prompt, fps: frames.mean(dim=(1, 2, 3, 4)),
        video_reward=lambda frames, prompt, fps: frames.flatten(1).std(dim=1),
        generator=torch.Generator().manual_seed(5),
        output_type="pt",
    ).frames
    return hashlib.sha256(frames.numpy().tobytes()).hexdigest()


def refusal(load: Callable, *arguments: object, **options: object) -> str:
    """The error of a failing call, in one line."""
    try:
        load(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return "nothing was refused"


def run_piece(lines: str, folder: str, home: Path) -> None:
    """Runs the piece in a fork, with its output in files, and ends the process."""
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(home / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    shutil.rmtree(os.environ["HF_MODULES_CACHE"], ignore_errors=True)
    os.chdir(folder)
    status = 0
    try:
        exec(lines, {name: globals()[name] for name in ("filmed", "refusal")})
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # without what the parent would do at its end


def serve() -> None:
    """Runs the pieces on standard input, one in each line, and prints the status of each."""
    importlib.import_module("diffusers").WanPipeline  # noqa: B018 - loads what all routes need
    home = Path(os.environ["HF_HOME"]).parent
    for request in map(json.loads, sys.stdin):
        if (child := os.fork()) == 0:
            run_piece(**request, home=home)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(json.dumps({"status": status}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "without-package":
        sys.meta_path.insert(0, Uninstalled())
        try:
            importlib.import_module("stream_t1")
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError("`stream_t1` can be imported")
    serve()
