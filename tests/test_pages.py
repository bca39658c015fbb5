"""The Python blocks of README.md and docs/ run as they stand, except those announced with "this needs"."""

import functools
import re
from pathlib import Path

import pytest

import stream_t1
from stream_t1 import PromptTimeline, StreamT1Pipeline

ROOT = Path(stream_t1.__file__).parent
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
NEEDS = re.compile(r"this\s+needs\b[^`]*:\s*\Z", re.IGNORECASE)  # weights or a network, in the sentence before a block


def runnable_blocks(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    return [match[1] for match in BLOCK.finditer(text) if not NEEDS.search(text[: match.start()])]


PAGES = {page.name: page for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if runnable_blocks(page)}


@pytest.fixture
def short_videos(monkeypatch):
    """Two chunks for every finite length: the blocks do not depend on it, but for prompts that change later."""

    def shortened(method):
        @functools.wraps(method)
        def call(self, *args, **kwargs):
            is_endless = "num_frames" in kwargs and kwargs["num_frames"] is None
            is_changing = any(isinstance(argument, PromptTimeline) for argument in args)
            return method(self, *args, **(kwargs if is_endless or is_changing else kwargs | {"num_frames": 21}))

        return call

    for name in ("__call__", "stream"):
        monkeypatch.setattr(StreamT1Pipeline, name, shortened(getattr(StreamT1Pipeline, name)))


@pytest.mark.parametrize("page", sorted(PAGES))
def test_the_python_blocks_of_a_page_run_from_top_to_bottom(page, short_videos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for block in runnable_blocks(PAGES[page]):
        exec(block, names)


def test_every_page_that_shows_python_but_that_of_checkpoints_has_a_block_that_runs():
    pages = {
        page.name for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")) if BLOCK.search(page.read_text())
    }
    assert pages - set(PAGES) == {"checkpoints.md"}
