"""Search by a reward of your own: any function of frames, prompt and fps.

    python examples/own_reward.py

Runs the demo model twice from the same seed: plain streaming, and a search for videos with a bright upper half.
"""

import torch

from stream_t1.demo import load_pipeline


def bright_sky(frames: torch.Tensor, prompt: list[str], fps: float) -> torch.Tensor:
    """Scores clips (B, F, 3, H, W) in [0, 1]: one score each, (B,)."""
    return frames[..., : frames.shape[-2] // 2, :].mean(dim=(1, 2, 3, 4))


def main() -> tuple[float, float]:
    """Returns the brightness of the upper half, plain and searched."""
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    request = {
        "prompt": "a yellow circle moving diagonally on a black background",
        "num_frames": 45,
        "output_type": "pt",
    }
    rewards = {"image_reward": False, "video_reward": bright_sky}  # of the whole video, its first chunk too
    brightness = []
    for num_beams, num_candidates in ((1, 1), (2, 4)):
        output = pipe(
            **request,
            **rewards,
            num_beams=num_beams,
            num_candidates=num_candidates,
            generator=torch.Generator().manual_seed(0),
        )
        brightness.append(float(bright_sky(output.frames, [""], 16.0)))
        print(f"{num_beams} beams, {num_candidates} candidates: brightness {brightness[-1]:.3f}")
    return brightness[0], brightness[1]


if __name__ == "__main__":
    main()
