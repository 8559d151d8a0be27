"""verl #3126, #1683; unsloth #617; trl #1014: the same seed gave different results."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.cli.shell import write_recipe
from tests.pains.parts import REDNESS, plain
from tests.trust.resuming import same_end


def test_a_fresh_process_with_another_hash_seed_gives_the_same_bytes(place, tmp_path):
    recipe = plain(place, objective="grpo", reward=REDNESS, rollout={"group": 3, "max_new": 5},
                   adapt={"lora": {"rank": 2, "dropout": 0.2}}, train={"steps": 2, "threads": 1, "save_every": 1})  # fmt: skip
    before = torch.get_num_threads()
    try:
        run(parse(recipe), tmp_path / "here")
    finally:
        torch.set_num_threads(before)
    file = write_recipe(tmp_path / "r.yaml", recipe)
    source = str(Path(__file__).resolve().parents[2] / "src")
    environment = {**os.environ, "PYTHONHASHSEED": "12345", "PYTHONPATH": source}
    words = [sys.executable, "-m", "luthier", "run", str(file), "--out", str(tmp_path / "there")]
    done = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    same_end(tmp_path / "here", tmp_path / "there")
