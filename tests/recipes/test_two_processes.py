"""Two real processes over gloo give the run of one process: started by torchrun, and forked, which costs no imports."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.core.files import read_tensors
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.cli.shell import write_recipe
from tests.recipes.parts import chat_rows, model_folder, write
from tests.trust.ranks import finished, start_all

ROOT = Path(__file__).resolve().parents[2]


def launched(plain, out):
    """The run in two processes of torchrun."""
    recipe = write_recipe(out.with_suffix(".yaml"), plain)
    words = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "-m", "luthier", "run", str(recipe)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *words, "--out", str(out)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


def forked(plain, out):
    """The run in two forks of this process."""
    finished(start_all(plain, out, resume=False))


@pytest.mark.parametrize(
    ("adapt", "shard", "micro", "start"),
    [("lora", False, 1, launched), ("lora", True, None, forked), ("full", True, 1, forked)],
)
def test_two_processes_train_as_one(tmp_path, adapt, shard, micro, start):
    model_folder(tmp_path / "model")
    data = write(tmp_path / "chat.jsonl", chat_rows())
    plain = {"model": str(tmp_path / "model"), "data": {"train": str(data), "holdout": 2}, "objective": "nll",
             "adapt": {"lora": {"rank": 2}} if adapt == "lora" else "full",
             "train": {"steps": 3, "batch": 6, "lr": 1e-2, "micro": micro, "shard": shard}}  # fmt: skip
    one = run(parse(plain), tmp_path / "one")
    start(plain, tmp_path / "two")
    curves = json.loads((tmp_path / "two" / "result.json").read_text())["curves"]
    for ours, theirs in zip(one.outcome.curves, curves, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
        assert theirs["tokens"] == ours["tokens"]
    a, b = (read_tensors(tmp_path / name / "adapter" / "adaptation.safetensors") for name in ("one", "two"))
    for name in a:
        assert (a[name] - b[name]).abs().max() < 1e-4, name
