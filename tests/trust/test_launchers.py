"""What `accelerate launch` starts on a machine without a GPU: two processes that train as one, or a refusal, never one unseen."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from luthier.core.files import read_tensors
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from luthier.train.devices import MPI, MPI_LOCAL, launched_alone
from tests.cli.shell import luthier, refused, write_recipe
from tests.recipes.parts import chat_rows, model_folder, write

ROOT = Path(__file__).resolve().parents[2]
SIZES = (*MPI, *MPI_LOCAL, "RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "ACCELERATE_USE_CPU")


def recipe(at: Path, adapt: Any = "full", **train: Any) -> dict[str, Any]:
    model_folder(at / "model")
    data = {"train": str(write(at / "chat.jsonl", chat_rows())), "holdout": 2}
    own = {"steps": 3, "batch": 6, "lr": 1e-2, **train}
    return {"model": str(at / "model"), "data": data, "adapt": adapt, "train": own}


def accelerate(*words: str) -> subprocess.CompletedProcess[str]:
    """`accelerate launch` in a process that sees no GPU and was told nothing about the CPU."""
    hidden = {k: v for k, v in os.environ.items() if k not in SIZES}
    environment = {**hidden, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, "-m", "accelerate.commands.launch", *words]
    return subprocess.run(whole, capture_output=True, text=True, env=environment)


@pytest.mark.parametrize(
    ("adapt", "train"),
    [pytest.param("full", {"micro": 2}, id="full, copies"),
     pytest.param({"lora": {"rank": 2}}, {"shard": True}, id="lora, shards", marks=pytest.mark.slow),
     pytest.param({"neuroada": {"k": 2}}, {}, id="sparse, copies", marks=pytest.mark.slow)],
)  # fmt: skip
def test_two_processes_give_the_losses_gradients_and_weights_of_one(tmp_path, adapt, train):
    plain = recipe(tmp_path, adapt, **train)
    one = run(parse(plain), tmp_path / "one")
    file = write_recipe(tmp_path / "r.yaml", plain)
    done = accelerate("--multi_gpu", "--num_processes", "2", "--main_process_port", "0", "-m", "luthier", "run", str(file),
                      "--out", str(tmp_path / "two"))  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("everything is in") == 1  # two that do not know each other would each say it
    curves = json.loads((tmp_path / "two" / "result.json").read_text())["curves"]
    for ours, theirs in zip(one.outcome.curves, curves, strict=True):
        assert theirs["loss"] == pytest.approx(ours["loss"], rel=1e-5)
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-3)
    a, b = (read_tensors(tmp_path / name / "adapter" / "adaptation.safetensors") for name in ("one", "two"))
    assert a.keys() == b.keys()
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-4


def environment_of(*words: str) -> dict[str, str]:
    """What accelerate's launcher without a GPU hands to the one process that it starts."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_simple_launcher_cmd_env

    args, _, _ = _validate_launch_command(launch_command_parser().parse_args([*words, "-m", "luthier"]))
    return prepare_simple_launcher_cmd_env(args)[1]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in SIZES:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_one_process_started_where_two_were_asked_for_is_refused(bare, tmp_path):
    file = write_recipe(tmp_path / "r.yaml", recipe(tmp_path))
    for name, value in environment_of("--cpu", "--num_processes", "2").items():
        bare.setenv(name, value)
    refused(luthier("run", file, "--out", tmp_path / "run"), "starts no more without mpirun", "--multi_gpu")
    assert not (tmp_path / "run").exists()


def test_one_process_that_was_asked_for_is_not(bare):
    assert not launched_alone(environment_of("--cpu", "--num_processes", "1"))
    both = environment_of("--cpu", "--num_processes", "2")
    assert launched_alone(both)
    assert not launched_alone({**both, "OMPI_COMM_WORLD_SIZE": "2"})
    assert not launched_alone({**both, "RANK": "0", "WORLD_SIZE": "2"})


def test_processes_of_mpirun_are_one_run(tmp_path):
    """By the variables that Open MPI sets, which say nothing of where to meet."""
    file = write_recipe(tmp_path / "r.yaml", recipe(tmp_path))
    hidden = {k: v for k, v in os.environ.items() if k not in SIZES}
    words = [sys.executable, "-m", "luthier", "run", str(file), "--out", str(tmp_path / "run")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = []
    for rank in ("0", "1"):
        told = {"SIZE": "2", "LOCAL_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank}
        own = {f"OMPI_COMM_WORLD_{name}": value for name, value in told.items()}
        environment = {**hidden, **own, "PYTHONPATH": str(ROOT / "src"), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
                       "MASTER_PORT": str(port)}  # fmt: skip
        both.append(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment))
    said = [p.communicate(timeout=240) for p in both]
    assert [p.returncode for p in both] == [0, 0], said
    assert sum(out.count("everything is in") for out, _ in said) == 1
    assert json.loads((tmp_path / "run" / "result.json").read_text())["curves"]


def test_processes_on_several_machines_without_a_place_to_meet_are_refused(bare, tmp_path):
    file = write_recipe(tmp_path / "r.yaml", recipe(tmp_path))
    bare.setenv("CUDA_VISIBLE_DEVICES", "")
    for name, value in {"OMPI_COMM_WORLD_SIZE": "4", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}.items():
        bare.setenv(name, value)
    refused(luthier("run", file, "--out", tmp_path / "run"), "MASTER_ADDR, the name of the first one; got none")


def test_processes_that_accelerate_would_not_join_are_refused(bare, tmp_path):
    """As on an accelerator for which there is no way to talk: each would train alone and write over the other."""
    import torch

    file = write_recipe(tmp_path / "r.yaml", recipe(tmp_path))
    bare.setattr(torch.accelerator, "is_available", lambda: True)
    bare.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
    for name, value in {"RANK": "0", "WORLD_SIZE": "2"}.items():
        bare.setenv(name, value)
    refused(luthier("run", file, "--out", tmp_path / "run"), "all 2 that were started", "ACCELERATE_USE_CPU=true")
    assert not (tmp_path / "run").exists()
