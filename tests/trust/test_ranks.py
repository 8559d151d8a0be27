"""One of two processes is killed in mid-training: the other stops soon, says which and what to do, and the run goes on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.core.files import damage
from tests.cli.shell import write_recipe
from tests.recipes.parts import chat_rows, model_folder, write
from tests.trust.killing import bytes_of
from tests.trust.ranks import finished, killed_after, start_all

ROOT = Path(__file__).resolve().parents[2]
BOUND = 60.0
"""Seconds in which the process that is left must have ended; it takes about one on a free machine."""
CASES = [
    pytest.param(False, 1, {}, id="copies, process 1 dies"),
    pytest.param(True, 1, {}, id="shards, process 1 dies"),
    pytest.param(False, 0, {}, id="copies, process 0 dies"),
    pytest.param(True, 0, {}, id="shards, process 0 dies"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("ranks")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    return at


def recipe(place: Path, shard: bool, **train: Any) -> dict[str, Any]:
    own = {"steps": 6, "batch": 6, "lr": 1e-2, "save_every": 1, "keep": 3, "shard": shard, **train}
    return {"model": str(place / "model"), "data": {"train": str(place / "chat.jsonl"), "holdout": 2},
            "adapt": {"lora": {"rank": 2}}, "train": own}  # fmt: skip


def same(a: Path, b: Path) -> None:
    for pattern in (
        "adapter/*.safetensors",
        "model/*.safetensors",
        "checkpoints/step-00000006/*.safetensors",
        "trace.json",
    ):
        whole, broken = bytes_of(a, pattern), bytes_of(b, pattern)
        assert whole
        assert whole == broken, pattern


@pytest.mark.parametrize(("shard", "dies", "train"), CASES)
def test_the_other_process_stops_in_a_sentence_and_the_run_ends_with_the_same_bytes(
    place, tmp_path, shard, dies, train
):
    plain = recipe(place, shard, **train)
    finished(start_all(plain, tmp_path / "whole", resume=False))
    ranks = start_all(plain, tmp_path / "broken", resume=False)
    at = killed_after(ranks, tmp_path / "broken", 2, dies)
    code, told = ranks[1 - dies].ended()
    assert time.monotonic() - at < BOUND
    assert ranks[dies].ended()[0] == -signal.SIGKILL
    assert code == 2, told
    flat = " ".join(told.split())
    assert (
        f"error: training in 2 processes requires all of them; process {dies} (id {ranks[dies].pid}) has ended" in flat
    )
    named = re.search(r"Start all of them again with --resume: (step-\d{8}) is whole\.", flat)
    assert named, flat
    assert damage(tmp_path / "broken" / "checkpoints" / named.group(1)) is None
    assert "Traceback" not in told
    finished(start_all(plain, tmp_path / "broken", resume=True))
    same(tmp_path / "whole", tmp_path / "broken")


def test_samples_that_each_process_holds_for_itself_are_there_again_after_resuming(place, tmp_path):
    plain = recipe(place, False) | {"reward": "format", "rollout": {"max_new": 4},
                                             "loop": {"raft": {"samples": 2, "prompts": 4, "steps": 3}}}  # fmt: skip
    finished(start_all(plain, tmp_path / "whole", resume=False))
    ranks = start_all(plain, tmp_path / "broken", resume=False)
    killed_after(ranks, tmp_path / "broken", 2, 1)
    assert ranks[0].ended()[0] in (0, 2)
    finished(start_all(plain, tmp_path / "broken", resume=True))
    for pattern in ("adapter/*.safetensors", "checkpoints/step-00000006/*.safetensors", "trace.json"):
        assert bytes_of(tmp_path / "whole", pattern) == bytes_of(tmp_path / "broken", pattern) != {}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("launcher", "dies"),
    [(["torch.distributed.run", "--nproc_per_node", "2"], 1),
     (["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"], 0)],
    ids=["torchrun", "accelerate"],
)  # fmt: skip
def test_under_a_launcher_the_whole_run_stops_and_says_so(place, tmp_path, launcher, dies):
    file = write_recipe(tmp_path / "recipe.yaml", recipe(place, False, steps=60))
    words = [sys.executable, "-m", *launcher, "-m", "luthier", "run", str(file)]
    words += ["--out", str(tmp_path / "run")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        run = subprocess.Popen(words, stdout=log, stderr=log, env=environment)
        while not list((tmp_path / "run" / "checkpoints").glob("step-*3")):
            assert run.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.01)
        os.kill(child(run.pid, f"LOCAL_RANK={dies}"), signal.SIGKILL)
        assert run.wait(BOUND) != 0
    told = " ".join((tmp_path / "log").read_text().split())
    assert f"process {dies} (id" in told and "--resume" in told, told[-3000:]
    again = subprocess.run([*words, "--resume"], env=environment, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr[-3000:]


def child(parent: int, variable: str) -> int:
    """The process below `parent` that has this environment variable."""
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            above = int((entry / "stat").read_text().rpartition(") ")[2].split()[1])
            inside = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if above == parent and variable.encode() in inside:
            return int(entry.name)
    raise AssertionError(f"no process below {parent} has {variable}")
