"""accelerate #4206, peft #3251: of a sharded adapter only the first process's slice was saved, and resuming reset the rest."""

from __future__ import annotations

import pytest

from luthier.core.files import read_tensors
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain
from tests.trust.ranks import finished, start_all


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_checkpoints_of_two_sharded_processes_hold_the_whole_adapter(place, tmp_path, adapt):
    recipe = plain(
        place,
        adapt={"lora": {"rank": 2}} if adapt == "lora" else "full",
        train={"steps": 4, "save_every": 2, "keep": 9},
    )
    run(parse(recipe), tmp_path / "one")
    recipe["train"]["shard"] = True
    finished(start_all(recipe, tmp_path / "two", resume=False))
    for step in (2, 4):
        where = f"checkpoints/step-{step:08d}/adaptation.safetensors"
        one, two = (read_tensors(tmp_path / n / where) for n in ("one", "two"))
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in two.items()}
        assert max((one[k] - two[k]).abs().max() for k in one) < 1e-4
        assert min(v.abs().max() for v in two.values()) > 0
