"""What goes wrong while a run is under way: a full disk, Ctrl-C, damaged files, numbers that are none. Nothing is lost."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from luthier.core.files import damage
from tests.cli.shell import copy_model, luthier, refused, sound, write_recipe

ROOT = Path(__file__).resolve().parents[2]
ADAPTER = "adapter/adaptation.safetensors"


@pytest.fixture
def disk(tmp_path):
    """Mounts a tmpfs of so many KiB at one place, again and again; the place is returned."""
    at = tmp_path / "disk"
    at.mkdir()

    def mount(size: int, again: bool = False) -> Path:
        if not again and os.path.ismount(at):
            subprocess.run(["umount", str(at)], check=True)
        how = f"remount,size={size}k" if again else f"size={size}k"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(at)], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"mounting a small tmpfs is not allowed here: {done.stderr.strip() or 'no mount'}")
        return at

    yield mount
    if os.path.ismount(at):
        subprocess.run(["umount", str(at)], check=True)


def test_a_full_disk_loses_no_checkpoint_and_the_run_goes_on_when_there_is_space(place, tmp_path, disk):
    train = {"steps": 8, "batch": 4, "lr": 1e-3, "save_every": 1, "keep": 99}
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, train=train))
    out = disk(256) / "out"
    refused(
        luthier("run", recipe, "--out", out),
        "requires free disk space; the disk is full. Free space and run again with --resume",
    )
    kept = [p for p in (out / "checkpoints").iterdir() if not p.name.startswith(".")]
    assert kept
    assert [damage(p) for p in kept] == [None] * len(kept)
    assert not [p for p in out.rglob("*") if "partial" in p.name]
    disk(8192, again=True)
    assert luthier("run", recipe, "--out", out, "--resume").code == 0
    assert luthier("run", recipe, "--out", tmp_path / "whole").code == 0
    assert (out / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


def test_a_disk_that_is_full_at_any_later_moment_is_named_and_costs_no_training(place, tmp_path, disk):
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place))
    full_at = set()
    for size in range(64, 1024, 16):
        out = disk(size) / "out"
        ran = luthier("run", recipe, "--out", out)
        if ran.code == 0:
            break
        refused(ran, "requires free disk space; the disk is full. Free space and run again with --resume")
        path = re.search(rf"writing {out}/(\S+) requires", ran.err)
        full_at.add(path[1].split("/")[0])
        if full_at == {"checkpoints", "adapter"} or "model" in full_at:
            disk(8192, again=True)
            again = luthier("run", recipe, "--out", out, "--resume")
            assert again.code == 0, again.err
            assert damage(out / "model") is None
    assert ran.code == 0
    assert {"checkpoints", "adapter", "model"} <= full_at


def test_ctrl_c_saves_and_resume_ends_with_the_same_bytes(place, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", sound(place, train={"steps": 300, "batch": 4, "lr": 1e-3, "save_every": 20})
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "luthier", "run", str(recipe), "--out", str(out)]
    path = os.pathsep.join([str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])])
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": path}
    )
    until = time.monotonic() + 60
    while not list(out.glob("checkpoints/step-*")) and running.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    said, err = running.communicate(timeout=60)
    assert running.returncode == 3, err
    assert "Traceback" not in err
    assert "and saved; go on with: luthier run" in said
    assert "--resume" in said
    assert json.loads((out / "manifest.json").read_text())["status"] == "stopped"
    assert not (out / ADAPTER).exists()
    assert luthier("run", recipe, "--out", out, "--resume").code == 0
    assert luthier("run", recipe, "--out", tmp_path / "whole").code == 0
    assert (out / ADAPTER).read_bytes() == (tmp_path / "whole" / ADAPTER).read_bytes()


def test_ctrl_c_while_measuring_keeps_what_was_trained(place, tmp_path, monkeypatch):
    import luthier.recipes.run as module

    recipe, out = write_recipe(tmp_path / "recipe.yaml", sound(place, measure=["likelihood"])), tmp_path / "out"

    def interrupt(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "measure", interrupt)
        stopped = luthier("run", recipe, "--out", out)
    assert stopped.code == 130
    assert (out / "checkpoints" / "step-00000003" / "COMPLETE.json").exists()
    assert luthier("run", recipe, "--out", out, "--resume").code == 0
    assert (out / "result.json").exists()


def flip(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[-9] ^= 1
    path.write_bytes(raw)


def test_a_flipped_byte_in_a_checkpoint_is_told_and_the_older_one_used(place, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", sound(place, train={"steps": 4, "batch": 4, "lr": 1e-3, "save_every": 1, "keep": 9})
    )
    out = tmp_path / "out"
    assert luthier("run", recipe, "--out", out).code == 0
    whole = (out / ADAPTER).read_bytes()
    for step in (3, 4):
        flip(out / "checkpoints" / f"step-{step:08d}" / "state.safetensors")
    ran = luthier("run", recipe, "--out", out, "--resume")
    told = " ".join(ran.err.split())
    assert ran.code == 0
    assert "checkpoint step-00000004 is skipped" in told
    assert "checkpoint step-00000003 is skipped" in told
    assert "state.safetensors is damaged: its bytes differ from those written" in told
    assert (out / ADAPTER).read_bytes() == whole


def test_a_damaged_adapter_is_named(place, tmp_path):
    recipe, out = write_recipe(tmp_path / "recipe.yaml", sound(place)), tmp_path / "out"
    assert luthier("run", recipe, "--out", out).code == 0
    whole = (out / ADAPTER).read_bytes()
    (out / ADAPTER).write_bytes(whole[:-50])
    refused(luthier("generate", out, "--prompt", "w1"), f"{out}/{ADAPTER} requires a readable safetensors file")


def test_a_loss_that_is_no_number(place, tmp_path):
    recipe = write_recipe(
        tmp_path / "recipe.yaml", sound(place, train={"steps": 5, "batch": 4, "lr": 1e30, "save_every": 1})
    )
    out = tmp_path / "out"
    refused(
        luthier("run", recipe, "--out", out),
        "training requires a finite",
        "at step 2 on rows",
        "lower the learning rate",
    )
    found = json.loads((out / "not_finite.json").read_text())
    assert found["step"] == 1
    assert len(found["rows"]) == 4
    assert damage(out / "checkpoints" / "step-00000001") is None


def test_a_model_that_holds_no_number(place, tmp_path):
    folder = copy_model(place, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = float("nan")
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    recipe = write_recipe(tmp_path / "recipe.yaml", sound(place, model=str(folder)))
    refused(
        luthier("run", recipe, "--out", tmp_path / "out"), "training requires a finite loss; got nan at step 1 on rows"
    )
    assert not (tmp_path / "out" / ADAPTER).exists()
