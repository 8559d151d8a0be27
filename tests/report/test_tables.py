from __future__ import annotations

import io

from rich.console import Console

from luthier.compare.summary import compare
from luthier.report.content import Failure
from luthier.report.html import render
from luthier.report.tables import plain, print_summary, text
from tests.compare.synthetic import RECIPES, flat, runs_of

C = compare(runs_of(), tuple(RECIPES), range(5))


def test_table_shows_every_reading_of_every_arm_with_its_verdict():
    shown = text(C, 110)
    assert shown.startswith("Of 3 recipes")
    assert all(r.name in shown for r in C.readings)
    assert "0.591 ± 0.099   0.732 ± 0.061" in shown
    assert [shown.count(w) for w in ("▲ better", "▼ worse", "○ undecided", "= equal")] == [3, 3, 7, 1]
    assert "held-out likelihood, nats ↓" in shown


def test_table_fits_narrow_terminals_and_names_failures():
    c = compare(
        runs_of(seeds=range(3)),
        tuple(RECIPES),
        range(4),
        failures=[Failure(arm="dft", seed=3, why="out of [red]memory[/red]")],
    )
    shown = text(c, 60)
    assert max(map(len, shown.splitlines())) <= 60
    assert "dft, seed 3: out of [red]memory[/red]" in shown
    assert "2 of 12 runs have not been made yet." in shown


def test_names_with_markup_are_shown_as_they_are():
    arms = ("[bold]a[/bold]", "b")
    c = compare([flat(a, s, {"[x]": 1.0 + s}) for a in arms for s in range(3)], arms, range(3))
    assert "[bold]a[/bold] (baseline)" in text(c)
    assert "[x]" in text(c)


def test_plain_text_is_ascii_with_columns():
    lines = plain(C).splitlines()
    rows = [line.split("\t") for line in lines if "\t" in line]
    assert rows[0] == ["axis", "reading", "arm", "mean", "difference", "verdict"]
    assert ["quality", "exact match", "dft", "0.732 +- 0.061", "+0.141 [+0.073, +0.209]", "+ better"] in rows
    assert len(rows) == 1 + 3 * len(C.readings)
    plain(C).encode("ascii")


def test_streams_without_such_signs_get_plain_text():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="latin-1")
    print_summary(C, Console(file=stream, width=100))
    stream.flush()
    assert b"+ better" in raw.getvalue()
    out = io.StringIO()
    print_summary(C, Console(file=out, width=100))
    assert "▲ better" in out.getvalue()


def test_a_reading_that_an_arm_lacks_says_so_in_the_terminal_the_log_and_the_page():
    only = {"a": {}, "b": {"y": 1.0}, "c": {"z": 2.0}}
    runs = [
        flat(a, s, {"x": 0.5 + 0.01 * s, **{n: v + s for n, v in more.items()}})
        for a, more in only.items()
        for s in range(3)
    ]
    c = compare(runs, tuple(only), range(3))
    shown, logged, page = text(c), plain(c), render(c)
    (y,) = [line for line in shown.splitlines() if line.startswith("  y ")]
    assert y.split("  ")[1].startswith("y")
    assert y.count("not measured") == 2
    assert "not measured in a and c" in logged
    rows = {tuple(line.split("\t")[1:3]): line.split("\t")[3:] for line in logged.splitlines() if "\t" in line}
    assert rows["y", "a"] == ["not measured", "baseline"]
    assert (rows["y", "b"][0][0], rows["y", "b"][1:]) == ("2", ["-", "not measured in a"])
    assert rows["y", "c"] == ["not measured", "-", "not measured in a and c"]
    assert shown.count("undecided") == page.count('class="verdict undecided"') - 1 == 0
    assert "not measured in a" in shown
    assert "not measured in a and c" in page
    assert "corrected for 2 comparisons" in shown
    assert c.family == 2


def test_a_page_without_gaps_does_not_explain_them():
    assert "not measured" not in render(C)
