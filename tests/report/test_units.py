from __future__ import annotations

import re

import pytest

from luthier.compare.summary import compare
from luthier.core.protocols import Reading
from luthier.report.content import Comparison
from luthier.report.html import render
from luthier.report.tables import plain, text
from luthier.report.units import readable, unit_for
from tests.compare.synthetic import run_of

GIVEN = {
    "peak memory": ("bytes", {"a": (470e6, 474e6, 482e6), "b": (468e6, 490e6, 486e6)}),
    "tokens": ("tokens", {"a": (99_000.0, 101_000.0, 100_500.0), "b": (250_000.0, 249_000.0, 252_000.0)}),
    "trained parameters": ("", {"a": (807_808.0,) * 3, "b": (132_096.0,) * 3}),
    "passes": ("", {"a": (1762.0, 1761.0, 1763.0), "b": (1764.0, 1766.0, 1765.0)}),
    "calls": ("", {"a": (12.0,) * 3, "b": (15.0,) * 3}),
    "leak": ("", {"a": (2.1e-7, 2.2e-7, 2.0e-7), "b": (3.1e-7, 3.3e-7, 3.0e-7)}),
}


def compared(given: dict[str, tuple[str, dict[str, tuple[float, ...]]]] = GIVEN) -> Comparison:
    runs = []
    for arm in ("a", "b"):
        for seed in range(3):
            run = run_of(arm, seed, {})
            run.readings.clear()  # type: ignore[attr-defined]
            run.readings.update({n: Reading(n, v[arm][seed], (), -1, u, "cost") for n, (u, v) in given.items()})  # type: ignore[attr-defined]
            runs.append(run)
    return compare(runs, ("a", "b"), range(3))


def rows(shown: str) -> dict[str, list[str]]:
    return {cells[1] + cells[2]: cells[3:5] for line in shown.splitlines() if len(cells := line.split("\t")) >= 5}


def test_value_deviation_difference_and_interval_share_one_unit_and_their_decimals():
    found = rows(plain(compared()))
    assert found["peak memorya"][0] == "453 +- 6 MiB"
    assert found["peak memoryb"][1] == "+6 MiB [-16, +28]"
    assert found["tokensb"][0] == "250.3 +- 1.5 thousand"
    assert found["trained parametersa"][0] == "808 thousand"
    assert found["trained parametersb"][1] == "-676 thousand"
    assert found["passesa"][0] == "1762.0 +- 1.0"
    assert found["callsb"] == ["15", "+3"]
    assert found["leaka"][0] == "2.1e-07 +- 1e-08"


def test_no_figure_of_a_table_has_a_sign_of_its_own():
    for shown in (text(compared(), 160), plain(compared())):
        assert not re.search(r"\d[kMG]\b", shown)
    assert "peak memory, MiB ↓" in text(compared(), 160)
    page = render(compared())
    cells = re.findall(r'<span class="(?:value|change)".*?</span>\s', page)
    assert len(cells) >= 3 * len(GIVEN) and not any(re.search(r"\d[kMG]\b| B\b", c) for c in cells)
    assert "MiB · lower is better" in page and "thousand · lower is better" in page


def test_readable_changes_no_verdict_and_no_relation():
    before, after = compared(), readable(compared())
    assert [d.verdict for d in before.differences] == [d.verdict for d in after.differences]
    for was, now in zip(before.differences, after.differences, strict=True):
        assert was.p_corrected == now.p_corrected
        if was.reading.name == "peak memory":
            assert now.reading.unit == "MiB"
            for name in ("arm_mean", "baseline_mean", "difference", "low", "high", "tested_low", "tested_high"):
                assert getattr(now, name) == pytest.approx(getattr(was, name) / 2**20)
    small = compared({"calls": GIVEN["calls"]})
    assert readable(small) == small


def test_a_unit_that_the_name_says_is_not_repeated():
    shown = text(
        compared({"trained parameters": ("parameters", GIVEN["trained parameters"][1]), "calls": GIVEN["calls"]}), 160
    )
    assert "trained parameters, thousand ↓" in shown and "thousand parameters" not in shown


def test_units_by_size():
    assert unit_for("bytes", 900.0) == ("bytes", 1.0)
    assert unit_for("bytes", 3 * 2**30) == ("GiB", 2.0**30)
    assert unit_for("steps", 99_999.0) == ("steps", 1.0)
    assert unit_for("1", 4e12) == ("trillion", 1e12)


def test_figures_without_any_interval_have_three_digits():
    alone = compared({"size": ("", {"a": (691_792.0,) * 3, "b": (691_792.0,) * 3})})
    assert rows(plain(alone))["sizeb"] == ["692 thousand", "0 thousand"]
    lost = compared({"memory": ("bytes", {"a": (470e6, 474e6, 482e6), "b": (float("nan"),) * 3})})
    assert rows(plain(lost))["memorya"][0] == "453.3 +- 5.8 MiB"
