"""The published table and the tests belong together: each pain its own file, each file its line."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
ROWS = re.findall(
    r"^\| (\d+\w?) \|.*\| (.*) \|$", (HERE.parents[1] / "docs/pains.md").read_text(encoding="utf-8"), re.M
)


def test_each_line_names_its_own_file_or_says_that_it_is_not_there_yet():
    assert len(ROWS) == 45
    for number, shown in ROWS:
        own = f"tests/pains/test_{number.zfill(2) if number.isdigit() else number}_"
        assert own in shown or shown.startswith("not yet"), number


def test_each_file_stands_on_the_page_and_cites_a_public_issue():
    shown = " ".join(s for _, s in ROWS)
    files = [p for p in HERE.glob("test_*.py") if re.match(r"test_\d", p.name)]
    assert len(files) >= 44
    for path in files:
        assert f"tests/pains/{path.name}::" in shown, path.name
        assert re.match(r'""".*#\d+', path.read_text(encoding="utf-8")), path.name
