"""ms-swift #6591, #2955, #6557: the length limit seemed ignored, and rows that did not fit were dropped by default."""

from __future__ import annotations

import pytest

from luthier.core.errors import DataError
from tests.pains.parts import chatml, ready

ROWS = [{"prompt": "Q", "response": "A" * n} for n in (1, 2, 3, 30, 31, 60)]


def test_by_default_a_row_that_is_too_long_stops_the_run_and_is_named(tmp_path):
    with pytest.raises(DataError, match=r"at most 50 tokens.*3 of 6 rows.*rows.jsonl line 4 has 52"):
        ready(tmp_path, chatml(), ROWS, data={"max_length": 50})


@pytest.mark.parametrize(("way", "left"), [("drop", 3), ("right", 6), ("left", 6), ("prompt", 5)])
def test_the_limit_holds_for_every_row_and_what_is_lost_is_counted(tmp_path, way, left):
    made = ready(tmp_path, chatml(), ROWS, data={"max_length": 50, "truncation": way}, train={"batch": 2})
    assert len(made.encoded.examples) == left
    assert max(len(e[0].ids) for e in made.encoded.examples) <= 50
    report = made.encoded.report
    assert sum(map(len, report.dropped.values())) == len(ROWS) - left
    assert report.truncated_rows == left - 3
    assert all(line in made.notes for line in report.lines())
