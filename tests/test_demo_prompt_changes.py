"""The measurement of how soon a changed prompt is seen, on one change."""

import pytest

from stream_t1.demo import prompt_changes
from stream_t1.demo.prompt_changes import Change, chunks_before, measure_changes, table


def test_every_change_is_of_motion_of_colour_or_of_both():
    changes = [Change.numbered(number) for number in range(60)]
    for change in changes:
        differing = {
            name for name in vars(change.before) if getattr(change.before, name) != getattr(change.after, name)
        }
        assert differing == set(change.attributes)
    assert len({(change.before, change.after) for change in changes}) > 50
    assert {change.attributes for change in changes} == {("motion",), ("color",), ("motion", "color")}
    assert changes[7] == Change.numbered(7)


@pytest.mark.parametrize("seen, chunks", [([1, 0], 0), ([0, 0, 1], 2), ([0, 0], None)])
def test_a_change_takes_the_chunks_before_it_is_seen(seen, chunks):
    assert chunks_before(seen) == chunks


def test_rows_are_made_once_and_counted(tmp_path, monkeypatch):
    settings = {"num_windows": 1, "recaches": ("all", "no change"), "searches": ("single",)}
    rows = measure_changes(tmp_path, 1, **settings)
    assert [row["method"] for row in rows] == ["all, single", "no change, single"]
    assert all(row["num_frames"] == 93 and row["cost"]["forwards"] == 32 for row in rows)
    assert [row["cost"]["recached_chunks"] for row in rows] == [4, 0]
    monkeypatch.setattr(prompt_changes, "make_row", lambda *_: pytest.fail("made again"))
    assert measure_changes(tmp_path, 1, **settings) == rows
    assert [line.split()[:4] for line in table(rows).splitlines()[1:]] == [
        ["all,", "single", "1", str(int(rows[0]["scores"]["chunks"] == 0))],
        ["no", "change,", "single", "1"],
    ]
