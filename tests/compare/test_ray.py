"""A comparison on a real Ray cluster of two machines (on this one): same files as without, and lost workers cost nothing."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from luthier.compare import _ray
from luthier.compare._ray import RERUNS, share
from luthier.compare.runner import Event, run_all
from luthier.core.errors import ConfigError, MissingExtra, Refused
from tests.compare.synthetic import (
    always_dies,
    counts_threads,
    dies_once,
    leaves_a_mark,
    quick,
    sometimes_fails,
)
from tests.compare.test_runner import ARMS, contents

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two machines with one core each."""
    pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("AUTH_MODE", "disabled"), ("USAGE_STATS_ENABLED", "0"), ("raylet_start_wait_time_s", "60"),
                            ("agent_register_timeout_ms", "240000")):  # fmt: skip
            patch.setenv(f"RAY_{name}", value)
        before = signal.getsignal(signal.SIGTERM)
        made = started()
        try:
            yield made.address
        finally:
            session = made.head_node.get_session_dir_path() if made.head_node else None
            made.shutdown()
            if session:
                shutil.rmtree(session, ignore_errors=True)
            signal.signal(signal.SIGTERM, before)


def started() -> Any:
    """Two machines; skipped where Ray's own daemons give up, as they do after 30 s where cores are far too short for them."""
    from ray.cluster_utils import Cluster

    size = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    try:
        made = Cluster(initialize_head=True, head_node_args={**size, "include_dashboard": False})
        made.add_node(**size)
    except Exception as fault:
        return pytest.skip(f"no Ray cluster starts on this machine now: {fault}")
    return made


def test_the_same_files_as_without(cluster: str, tmp_path: Path):
    events: list[Event] = []
    there = run_all(ARMS, range(3), sometimes_fails, tmp_path / "ray", on_event=events.append, ray=cluster)
    here = run_all(ARMS, range(3), sometimes_fails, tmp_path / "here", processes=2)
    assert [r.as_json() for r in there.results] == [r.as_json() for r in here.results]
    assert [(f.arm, f.seed, f.why) for f in there.failures] == [
        ("b", 1, "FloatingPointError: loss became nan at step 3")
    ]
    ours, theirs = contents(tmp_path / "here"), contents(tmp_path / "ray")
    assert {k: v for k, v in ours.items() if "failed" not in k} == {
        k: v for k, v in theirs.items() if "failed" not in k
    }
    assert ours.keys() == theirs.keys()
    assert [e.kind for e in events].count("start") == 6
    assert events[-1].done == 6
    again = run_all(ARMS, range(3), quick, tmp_path / "ray", on_event=events.append, ray=cluster)
    assert not again.failures
    assert [e.kind for e in events[-8:]].count("reused") == 5


def test_each_run_has_the_threads_of_its_share_in_a_process_of_its_own_and_this_one_is_as_before(
    cluster: str, tmp_path: Path
):
    before, folder = dict(os.environ), Path.cwd()
    outcome = run_all(ARMS, range(2), counts_threads, tmp_path, ray=cluster)
    assert {r.readings["threads"].value for r in outcome.results} == {1.0}
    processes = {r.readings["process"].value for r in outcome.results}
    assert float(os.getpid()) not in processes
    assert len(processes) == 2, "both machines had work"
    assert Path.cwd() == folder
    assert {k: v for k, v in os.environ.items() if "RAY" not in k} == {
        k: v for k, v in before.items() if "RAY" not in k
    }


def test_the_arms_of_a_killed_worker_are_run_again(cluster: str, tmp_path: Path):
    marks = tmp_path / "marks"
    marks.mkdir()
    arms = {"a": str(marks), "b": str(marks)}
    events: list[Event] = []
    outcome = run_all(arms, range(3), dies_once, tmp_path / "out", on_event=events.append, ray=cluster)
    assert len(outcome.results) == 6
    assert not outcome.failures
    lost = [e for e in events if e.kind == "lost"]
    assert [(e.arm, e.seed) for e in lost] == [("b", 1)]
    assert "b, seed 1: lost: its worker was lost (WorkerCrashedError); it is run again" in str(lost[0])
    assert len({p.name.split(".")[2] for p in marks.glob("b.1.*")}) == 2, "another process had it the second time"
    run_all(arms, range(3), dies_once, tmp_path / "whole", processes=2)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_a_run_that_kills_every_worker_is_given_up_and_the_others_go_on(cluster: str, tmp_path: Path):
    events: list[Event] = []
    outcome = run_all(ARMS, [0], always_dies, tmp_path, on_event=events.append, ray=cluster)
    assert [r.arm for r in outcome.results] == ["a"]
    assert [f.why for f in outcome.failures] == ["its worker was lost (WorkerCrashedError)"]
    assert [e.kind for e in events].count("lost") == RERUNS


def test_ctrl_c_keeps_what_is_finished_and_ends_what_runs(cluster: str, tmp_path: Path):
    marks, out = tmp_path / "marks", tmp_path / "out"
    marks.mkdir()
    arms = {"a": str(marks), "b": str(marks)}

    def interrupt() -> None:
        deadline = time.monotonic() + 120
        while not list(out.glob("runs/*.json")) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    outcome = run_all(arms, range(20), leaves_a_mark, out, ray=cluster)
    thread.join()
    assert outcome.interrupted
    assert 1 <= len(outcome.results) < 40
    time.sleep(0.5)
    started = len(list(marks.iterdir()))
    time.sleep(0.5)
    assert len(list(marks.iterdir())) == started < 40


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:9", "--ray requires the address of a running Ray cluster; got '127.0.0.1:9' ("),
        ("nowhere", "got 'nowhere' (no HOST:PORT)"),
    ],
)
def test_where_no_cluster_answers(tmp_path: Path, address: str, words: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip("ray")
    monkeypatch.setattr(_ray, "_SECONDS", 2.0)
    with pytest.raises(ConfigError) as caught:
        run_all(ARMS, [0], quick, tmp_path / "out", ray=address)
    assert words in str(caught.value)
    assert str(caught.value).endswith("Start one with `ray start --head`, and give its HOST:PORT.")


def test_without_ray_its_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"pip install 'luthier\[ray\]'"):
        run_all(ARMS, [0], quick, tmp_path, ray="127.0.0.1:6379")


def test_what_cannot_be_sent_is_refused_before_anything_is_reached(tmp_path: Path):
    with pytest.raises(ConfigError, match="running on Ray requires a function and recipes that can be sent there"):
        run_all(ARMS, [0], lambda a, r, s: quick(a, r, s), tmp_path, ray="127.0.0.1:9")


@pytest.mark.parametrize(
    ("nodes", "asked", "want"),
    [
        ([{"CPU": 8.0}], 0, (1, 8, 0.0)),
        ([{"CPU": 8.0}, {"CPU": 3.0}, {"memory": 1.0}], 0, (2, 3, 0.0)),
        ([{"CPU": 8.0}, {"CPU": 8.0}], 3, (3, 4, 0.0)),
        ([{"CPU": 2.0}], 8, (8, 1, 0.0)),
        ([{"CPU": 16.0, "GPU": 4.0}] * 2, 0, (8, 4, 1.0)),
        ([{"CPU": 16.0, "GPU": 1.0}], 2, (2, 8, 0.5)),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 4.0}], 0, (2, 4, 0.0)),
    ],
)
def test_shares(nodes, asked, want):
    assert share(nodes, asked) == want


def test_a_cluster_without_cores_is_refused():
    with pytest.raises(Refused, match="requires a cluster with a free machine of at least one core"):
        share([{"memory": 1.0}], 0)
