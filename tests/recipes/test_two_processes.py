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
from tests.cli.shell import luthier, refused, write_recipe
from tests.recipes.image_parts import digits, dit_folder
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


ADAPT = {"full": "full", "lora": {"lora": {"rank": 2}}, "sparse": {"neuroada": {"k": 2}}, "s2ft": {"s2ft": {}}}


@pytest.mark.parametrize(
    ("adapt", "shard", "micro", "start"),
    [("lora", False, 1, launched), ("lora", True, None, forked), ("full", True, 1, forked), ("full", False, None, forked),
     ("sparse", False, 1, forked), ("sparse", True, None, forked), ("s2ft", False, None, forked), ("s2ft", True, 1, forked)],
)  # fmt: skip
def test_two_processes_train_as_one(tmp_path, adapt, shard, micro, start):
    model_folder(tmp_path / "model")
    data = write(tmp_path / "chat.jsonl", chat_rows())
    plain = {"model": str(tmp_path / "model"), "data": {"train": str(data), "holdout": 2}, "objective": "nll",
             "adapt": ADAPT[adapt],
             "train": {"steps": 3, "batch": 6, "lr": 1e-2, "micro": micro, "shard": shard}}  # fmt: skip
    as_one(plain, tmp_path, start, "model/model.safetensors")


def image_recipe(tmp_path, adapt, **train):
    dit_folder(tmp_path / "model")
    digits(tmp_path / "images.npz")
    return {"model": str(tmp_path / "model"), "data": {"train": str(tmp_path / "images.npz"), "holdout": 2},
            "objective": "denoise", "adapt": ADAPT[adapt], "optimiser": "sgd",
            "train": {"steps": 2, "batch": 4, "lr": 1e-2, **train}}  # fmt: skip


@pytest.mark.parametrize("adapt", ["full", "lora"])
def test_image_models_train_as_one_in_copies(tmp_path, adapt):
    merged = "model/transformer/diffusion_pytorch_model.safetensors"
    as_one(image_recipe(tmp_path, adapt), tmp_path, forked, merged)


def test_image_models_are_not_spread(tmp_path):
    refused(luthier("check", write_recipe(tmp_path / "r.yaml", image_recipe(tmp_path, "full", shard=True))),
            "train.shard: requires a language model or a text encoder", "as copies")  # fmt: skip


def as_one(plain, tmp_path, start, merged):
    """One process and two give the same curves, adaptation and merged model."""
    one = run(parse(plain), tmp_path / "one")
    start(plain, tmp_path / "two")
    curves = json.loads((tmp_path / "two" / "result.json").read_text())["curves"]
    for ours, theirs in zip(one.outcome.curves, curves, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
        assert theirs.keys() == ours.keys()
        assert theirs.get("tokens") == ours.get("tokens")
    for file in ("adapter/adaptation.safetensors", merged):
        a, b = (read_tensors(tmp_path / name / file) for name in ("one", "two"))
        assert a.keys() == b.keys()
        for name in a:
            assert (a[name] - b[name]).abs().max() < 1e-4, name
