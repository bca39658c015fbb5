"""The page of evidence says what its rows say, and the rows are of what ships."""

from pathlib import Path

import pytest
import torch

import stream_t1
from stream_t1.demo.evaluate import build_parser, load_demo
from stream_t1.demo.suites import demo_suites
from stream_t1.evaluation.report import SuiteRows, all_tables
from stream_t1.evaluation.results import check_same, read_configuration, read_rows

ROOT = Path(stream_t1.__file__).parent
KEPT = ROOT / "benchmarks/results/evidence"


def tables_of(text):
    """Blocks of lines that begin with a bar."""
    blocks, lines = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            lines.append(line)
        elif lines:
            blocks.append("\n".join(lines))
            lines = []
    return blocks


def test_every_table_of_the_page_is_made_of_the_kept_rows():
    rows, verdicts = read_rows([KEPT]), read_configuration(KEPT)["verdicts"]
    suites = demo_suites()
    suites["searches"] = suites["searches"].priced(num_steps=4, num_chunks=7)
    made = {table for suite in suites.values() for table in all_tables(SuiteRows(suite, rows), verdicts).values()}
    shown = [table for table in tables_of((ROOT / "docs/evidence.md").read_text()) if "what competes" not in table]
    assert len(shown) >= 8 and set(shown) <= made


def test_the_kept_rows_are_of_the_shipped_model_rewards_and_verdicts():
    evaluation = load_demo(build_parser().parse_args(["--output", "unused"]), torch.device("cpu"))
    check_same(evaluation.configuration(), read_configuration(KEPT), KEPT)
    with pytest.raises(ValueError, match="another configuration"):
        check_same(evaluation.configuration() | {"width": 1}, read_configuration(KEPT), KEPT)
