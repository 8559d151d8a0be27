"""Shared by all tests: tolerances by dtype, the real data when it lies beside the checkout."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models beside the checkout; skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("real data and models are not present beside this checkout")
    return SHARED


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--slow` runs the tests marked slow as well."""
    parser.addoption("--slow", action="store_true", help="also run tests marked slow")
    parser.addoption("--counts", help="write to this file what the passed tests amount to, by kind")


PASSED: list[str] = []
KEPT = "luthier/passed"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember which tests passed."""
    if report.when == "call" and report.passed:
        PASSED.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """Write the counts, if they were asked for and nothing failed; after `--lf` those of the run before count with them."""
    config = session.config
    target = config.getoption("--counts")
    if not target or hasattr(config, "workerinput"):  # one of several processes: the first one counts for all
        return
    before = config.cache.get(KEPT, []) if config.getoption("lf") and config.cache else []
    passed = sorted({*PASSED, *before})
    if config.cache:
        config.cache.set(KEPT, passed)
    if exitstatus == 0:
        from tests.trust.counting import counts_of

        plain = {"slow": bool(config.getoption("--slow")), "passed": len(passed), "counts": counts_of(passed)}
        Path(target).write_text(json.dumps(plain, indent=1) + "\n", encoding="utf-8")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests to `make slow`, with a reason that says so."""
    if config.getoption("--slow"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow: run with `make slow`"))
