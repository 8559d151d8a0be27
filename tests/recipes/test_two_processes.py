"""Two real processes over gloo give the run of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from luthier.core.files import read_tensors
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.recipes.parts import chat_rows, model_folder, write

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("adapt", "shard", "micro"), [("lora", False, 1), ("lora", True, None), ("full", True, 1)])
def test_two_processes_train_as_one(tmp_path, adapt, shard, micro):
    model_folder(tmp_path / "model")
    data = write(tmp_path / "chat.jsonl", chat_rows())
    plain = {"model": str(tmp_path / "model"), "data": {"train": str(data), "holdout": 2}, "objective": "nll",
             "adapt": {"lora": {"rank": 2}} if adapt == "lora" else "full",
             "train": {"steps": 3, "batch": 6, "lr": 1e-2, "micro": micro, "shard": shard}}  # fmt: skip
    one = run(parse(plain), tmp_path / "one")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(plain), encoding="utf-8")
    words = [
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "-m",
        "luthier",
        "run",
        str(tmp_path / "recipe.yaml"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *words, "--out", str(tmp_path / "two")], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    curves = json.loads((tmp_path / "two" / "result.json").read_text())["curves"]
    for ours, theirs in zip(one.outcome.curves, curves, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
        assert theirs["tokens"] == ours["tokens"]
    a, b = (read_tensors(tmp_path / name / "adapter" / "adaptation.safetensors") for name in ("one", "two"))
    for name in a:
        assert (a[name] - b[name]).abs().max() < 1e-4, name
