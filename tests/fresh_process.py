"""A process in which nothing was loaded before: runs the Python on its standard input, for tests of loading.

    python fresh_process.py with-package
    python fresh_process.py without-package    # `stream_t1` cannot be imported, as where it is not installed

What runs may use `filmed(pipe)` and `refusal(load, ...)`, and prints its results.
"""

import hashlib
import importlib
import sys
from collections.abc import Callable


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
    """What a call says as it fails, in one line."""
    try:
        load(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}".replace("\n", " ")
    return "nothing was refused"


if __name__ == "__main__":
    if sys.argv[1] == "without-package":
        sys.meta_path.insert(0, Uninstalled())
        try:
            importlib.import_module("stream_t1")
        except ModuleNotFoundError:
            pass
        else:
            raise AssertionError("`stream_t1` can be imported")
    exec(sys.stdin.read())
