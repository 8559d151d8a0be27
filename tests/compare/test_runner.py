from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from luthier.compare import _workers
from luthier.compare.results import RunResult, read_results, run_path
from luthier.compare.runner import Event, duration, run_all
from luthier.compare.summary import compare
from luthier.core.errors import ConfigError, OutputError
from luthier.report.html import render
from luthier.report.tables import text
from tests.compare.synthetic import counts_threads, flat, quick, sometimes_dies, sometimes_fails

ROOT = Path(__file__).resolve().parents[2]
ARMS = {"a": {"lr": 1.0}, "b": {"lr": 2.0}}


def contents(out: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted((out / "runs").glob("*.json"))}


def never(arm: str, recipe: object, seed: int) -> None:
    pytest.fail(f"{arm}, seed {seed} ran again")


def test_seeds_are_the_outer_loop_and_events_count(tmp_path: Path):
    events: list[Event] = []
    outcome = run_all(ARMS, range(3), quick, tmp_path, on_event=events.append)
    assert [(r.arm, r.seed) for r in outcome.results] == [("a", 0), ("b", 0), ("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    assert [e.kind for e in events] == ["start", "done"] * 6
    assert [e.done for e in events[1::2]] == [1, 2, 3, 4, 5, 6]
    assert events[0].eta is None
    assert events[3].eta == pytest.approx(4.0)
    assert str(events[3]) == "[2/6] b, seed 0: done in 1.0 s, about 4.0 s left"
    assert not outcome.failures
    assert not outcome.interrupted


def test_finished_runs_are_taken_over_and_new_seeds_added(tmp_path: Path):
    first = run_all(ARMS, range(2), quick, tmp_path)
    again = run_all(ARMS, range(2), never, tmp_path)  # type: ignore[arg-type]
    assert [r.as_json() for r in again.results] == [r.as_json() for r in first.results]
    before = contents(tmp_path)
    run_all({**ARMS, "c": {"lr": 3.0}}, range(3), quick, tmp_path)
    after = contents(tmp_path)
    assert len(after) == 9
    assert {k: after[k] for k in before} == before


def in_an_order_of_its_own(arm: str, recipe: object, seed: int) -> RunResult:
    """Readings and costs in an order that is not that of the alphabet."""
    run = flat(arm, seed, {"zeal": seed + 1.0, "old": seed + 2.0, "age": seed + 3.0})
    return replace(run, cost={"train_seconds": 1.0, "peak_bytes": 2.0}, curves={"b": [(0.0, 1.0)], "a": [(0.0, 1.0)]})


def test_a_resumed_comparison_shows_everything_in_the_order_of_a_fresh_one(tmp_path: Path):
    fresh = run_all(ARMS, range(3), in_an_order_of_its_own, tmp_path)
    run_path(tmp_path, "a", 0).unlink()
    partly = run_all(ARMS, range(3), in_an_order_of_its_own, tmp_path)
    again = run_all(ARMS, range(3), never, tmp_path)  # type: ignore[arg-type]
    shown = [compare(o.results, tuple(ARMS), range(3)) for o in (fresh, partly, again)]
    assert [r.name for r in shown[0].readings] == ["zeal", "old", "age"]
    assert [text(c) for c in shown[1:]] == [text(shown[0])] * 2
    assert [render(c) for c in shown[1:]] == [render(shown[0])] * 2


def test_a_failed_run_is_recorded_and_the_others_go_on(tmp_path: Path):
    for processes in (1, 2):
        out = tmp_path / str(processes)
        outcome = run_all(ARMS, range(3), sometimes_fails, out, processes)
        assert len(outcome.results) == 5
        assert [(f.arm, f.seed, f.why) for f in outcome.failures] == [
            ("b", 1, "FloatingPointError: loss became nan at step 3")
        ]
        assert b"Traceback" in run_path(out, "b", 1, failed=True).read_bytes()
        repaired = run_all(ARMS, range(3), quick, out)
        assert not repaired.failures
        assert not run_path(out, "b", 1, failed=True).exists()


def test_a_killed_worker_costs_its_own_run_only(tmp_path: Path):
    outcome = run_all(ARMS, range(3), sometimes_dies, tmp_path, processes=2)
    assert len(outcome.results) == 5
    assert "ended by SIGKILL" in outcome.failures[0].why


def test_processes_share_the_cores_and_this_one_is_left_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_workers, "cores", lambda: 6)
    before = dict(os.environ)
    outcome = run_all(ARMS, range(2), counts_threads, tmp_path, processes=2)
    assert dict(os.environ) == before
    assert {r.readings["threads"].value for r in outcome.results} == {3.0}
    assert float(os.getpid()) not in {r.readings["process"].value for r in outcome.results}


def test_a_damaged_file_is_named_and_run_again(tmp_path: Path):
    run_all(ARMS, range(2), quick, tmp_path)
    whole = contents(tmp_path)
    path = run_path(tmp_path, "b", 1)
    path.write_bytes(path.read_bytes()[:-40])
    events: list[Event] = []
    run_all(ARMS, range(2), quick, tmp_path, on_event=events.append)
    assert [(e.arm, e.seed) for e in events if e.kind == "damaged"] == [("b", 1)]
    assert any("b.1.json" in e.message for e in events)
    assert contents(tmp_path) == whole


def test_results_of_another_comparison_stop_it_before_anything_runs(tmp_path: Path):
    run_all(ARMS, range(2), quick, tmp_path)
    with pytest.raises(OutputError, match=r"b\.0\.json[\s\S]*b\.1\.json") as caught:
        run_all({"a": {"lr": 1.0}, "b": {"lr": 9.0}}, range(3), never, tmp_path)  # type: ignore[arg-type]
    assert "a.0.json" not in str(caught.value)
    with pytest.raises(OutputError, match="another"):
        run_all(ARMS, range(2), never, tmp_path, context={"data": "changed"})  # type: ignore[arg-type]


def test_ctrl_c_keeps_what_is_finished(tmp_path: Path):
    def interrupted(arm: str, recipe: object, seed: int):
        if seed == 1:
            raise KeyboardInterrupt
        return quick(arm, recipe, seed)

    events: list[Event] = []
    outcome = run_all(ARMS, range(3), interrupted, tmp_path, on_event=events.append)
    assert outcome.interrupted
    assert [(r.arm, r.seed) for r in outcome.results] == [("a", 0), ("b", 0)]
    assert events[-1].kind == "interrupted"
    assert len(run_all(ARMS, range(3), quick, tmp_path).results) == 6


def test_bad_asks_are_refused_with_a_sentence(tmp_path: Path):
    for arms, seeds, processes, words in (
        ({}, [0], 1, "requires arms"),
        (ARMS, [0, 0], 1, "different seeds"),
        (ARMS, [0], 0, "from 1 on"),
    ):
        with pytest.raises(ConfigError, match=words):
            run_all(arms, seeds, quick, tmp_path, processes)
    with pytest.raises(ConfigError, match="top of a module"):
        run_all(ARMS, [0], lambda a, r, s: quick(a, r, s), tmp_path, 2)
    wrong = run_all({"a": {}}, [0], lambda a, r, s: flat("z", 0, {}), tmp_path)
    assert "requires its own RunResult; got z, seed 0" in wrong.failures[0].why


def test_a_second_comparison_in_the_same_folder_is_refused(tmp_path: Path):
    def nested(arm: str, recipe: object, seed: int):
        with pytest.raises(OutputError, match="another comparison is running"):
            run_all(ARMS, [0], quick, tmp_path)
        return quick(arm, recipe, seed)

    assert not run_all({"a": {}}, [0], nested, tmp_path).failures


@pytest.mark.parametrize(("ending", "processes"), [(signal.SIGKILL, 1), (signal.SIGKILL, 2), (signal.SIGINT, 2)])
def test_ended_in_the_middle_it_goes_on_to_the_same_files(tmp_path: Path, ending: signal.Signals, processes: int):
    """A real process, ended while it works: nothing half written, no worker left behind, same files in the end."""
    marks, out, whole = tmp_path / "marks", tmp_path / "out", tmp_path / "whole"
    marks.mkdir()
    arms = {"a": str(marks), "b": str(marks)}
    code = (
        "import signal\nfrom pathlib import Path\nfrom luthier.compare.runner import run_all\n"
        "from tests.compare.synthetic import leaves_a_mark\n"
        "if __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell hands it down ignored\n"
        f"    run_all({arms!r}, range(4), leaves_a_mark, Path({str(out)!r}), {processes})\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    script = tmp_path / "script.py"
    script.write_text(code)
    process = subprocess.Popen([sys.executable, str(script)], env=environment, cwd=ROOT)
    try:
        deadline = time.monotonic() + 60
        while len(list(marks.iterdir())) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.send_signal(ending)
        code = process.wait(30)
    assert code == (0 if ending == signal.SIGINT else -signal.SIGKILL)
    time.sleep(0.6)
    kept, faults = read_results(out)
    assert 2 <= len(kept) < 8
    assert faults == []
    assert len(list(marks.iterdir())) < 8, "a worker went on without its parent"
    saved = {p: p.stat().st_mtime_ns for p in (out / "runs").glob("*.json")}
    run_all(arms, range(4), quick, out)
    run_all(arms, range(4), quick, whole)
    assert all(p.stat().st_mtime_ns == t for p, t in saved.items())
    assert contents(out) == contents(whole)


def test_durations_in_words():
    assert [duration(x) for x in (0.04, 59.9, 61, 3600)] == ["0.0 s", "59.9 s", "1 min 1 s", "1 h 0 min"]
