"""Killed at random moments, while training, saving and comparing, everything ends with the bytes of the unbroken run."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.compare.arms import run_arm
from luthier.compare.runner import run_all
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.recipes.parts import chat_rows, model_folder, pair_rows, write
from tests.trust.killing import bytes_of, finish, survive

SHORT = pytest.param(3, id="3 kills")
LONG = pytest.param(14, id="14 kills", marks=pytest.mark.slow)
RECIPES: dict[str, dict[str, Any]] = {
    "lora, packed": {"adapt": {"lora": {"rank": 2}}, "train": {"packing": 64, "micro": 2}},
    "full, dpo with a cached reference": {"objective": "dpo", "data": "pairs"},
    "raft": {"loop": {"raft": {"samples": 2, "prompts": 4}}, "reward": "format", "rollout": {"max_new": 4}},
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    at = tmp_path_factory.mktemp("parts")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    write(at / "pairs.jsonl", pair_rows())
    return at


def recipe(parts: Path, name: str) -> dict[str, Any]:
    own = dict(RECIPES[name])
    source = parts / f"{own.pop('data', 'chat')}.jsonl"
    train = {"steps": 24, "batch": 6, "lr": 1e-2, "save_every": 1, **own.pop("train", {})}
    return {"model": str(parts / "model"), "data": {"train": str(source), "holdout": 2}, "train": train, **own}


@pytest.mark.parametrize("kills", [SHORT, LONG])
@pytest.mark.parametrize("name", RECIPES)
def test_a_killed_run_resumes_and_ends_with_the_same_bytes(parts: Path, tmp_path: Path, name: str, kills: int):
    plain = recipe(parts, name)
    torch.set_num_threads(1)
    finish(lambda resume: run(parse(plain), tmp_path / "whole"), False)
    hit = 0
    for n in range(4 * kills):
        if hit == kills:
            break
        broken = tmp_path / f"broken{n}"
        hit += survive(
            lambda resume, to=broken: run(parse(plain), to, resume=resume), kills - hit, 1.0, seed=100 * n + kills
        )
        for pattern in ("adapter/*", "model/*.safetensors", "checkpoints/step-00000024/adaptation.safetensors"):
            expected = bytes_of(tmp_path / "whole", pattern)
            assert expected
            assert expected == bytes_of(broken, pattern), pattern
        assert not [p for p in broken.rglob("*") if ".aside" in p.name or p.suffix == ".tmp"]
    assert hit == kills, "runs end before they can be killed"


@pytest.mark.parametrize("kills", [SHORT, LONG])
def test_a_killed_comparison_resumes_with_the_same_figures(parts: Path, tmp_path: Path, kills: int):
    torch.set_num_threads(1)
    arms = {
        name: recipe(parts, "lora, packed") | {"measure": ["likelihood"], "objective": name} for name in ("nll", "dft")
    }

    def compare(out: Path) -> None:
        outcome = run_all(arms, range(2), run_arm, out)
        if outcome.failures:
            raise RuntimeError(outcome.failures[0])

    finish(lambda resume: compare(tmp_path / "whole"), False)
    hit = 0
    for n in range(4 * kills):
        if hit == kills:
            break
        broken = tmp_path / f"broken{n}"
        hit += survive(lambda resume, to=broken: compare(to), kills - hit, 1.5, seed=100 * n + kills)
        assert figures(tmp_path / "whole") == figures(broken)
    assert hit == kills, "comparisons end before they can be killed"


def figures(out: Path) -> dict[tuple[str, int], Any]:
    from luthier.compare.results import read_results

    kept, _ = read_results(out)
    return {(r.arm, r.seed): {k: (x.value, x.items) for k, x in r.readings.items() if x.axis != "cost"} for r in kept}


def test_a_flipped_byte_in_the_newest_checkpoint_is_named_and_the_one_before_is_used(parts: Path, tmp_path: Path):
    plain = recipe(parts, "lora, packed")
    plain["train"] |= {"steps": 4, "keep": 4}
    run(parse(plain), tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000004")
    newest = tmp_path / "run" / "checkpoints" / "step-00000003" / "state.safetensors"
    raw = bytearray(newest.read_bytes())
    raw[-1] ^= 1
    newest.write_bytes(raw)
    adapter = bytes_of(tmp_path / "run", "adapter/*")
    told: list[str] = []
    run(parse(plain), tmp_path / "run", resume=True, on_event=lambda e: told.append(str(e.get("text", ""))))
    assert any("step-00000003 is skipped" in t for t in told)
    assert bytes_of(tmp_path / "run", "adapter/*") == adapter
    assert os.path.exists(tmp_path / "run" / "checkpoints" / "step-00000004")
