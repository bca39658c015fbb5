"""The tiny text-to-video model that ships with the package, its world of moving shapes, and its training.

`load_pipeline()` gives a pipeline that is ready to search; nothing heavy happens before that.
"""

from pathlib import Path

CHECKPOINT = Path(__file__).parent / "checkpoint"


def load_pipeline(folder: str | Path = CHECKPOINT) -> "StreamT1Pipeline":  # noqa: F821 - loaded on use
    """Loads the demo model, or another one of its training, with the demo's rewards as its components."""
    from ..pipeline_stream_t1 import StreamT1Pipeline
    from .rewards import LegibilityReward, MotionReward

    return StreamT1Pipeline.from_pretrained(folder, image_reward=LegibilityReward(), video_reward=MotionReward())


def vocabulary_note(prompt: str) -> str | None:
    """Says what the demo model knows, when the prompt has other words or none that it knows."""
    from .clips import BACKGROUNDS, COLORS, MOTIONS, SHAPES, Caption, parse_caption, unread_words

    unread, is_empty = unread_words(prompt), parse_caption(prompt) == Caption()
    if not unread and not is_empty:
        return None
    known = (", ".join(names) for names in (SHAPES, COLORS, MOTIONS, BACKGROUNDS))
    knows = "knows the shapes {}; the colours {}; the motions {}; the backgrounds {}.".format(*known)
    return f"The demo model does not read {', '.join(unread)}. It {knows}" if unread else f"The demo model {knows}"
