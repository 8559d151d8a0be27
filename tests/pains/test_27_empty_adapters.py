"""peft #1402, #2500: adapters were zero or empty under DeepSpeed ZeRO, whose processes hold empty tensors outside of a pass."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import CheckpointError
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse
from luthier.train.loop import Loop
from tests.cli.shell import luthier, refused, write_recipe
from tests.pains.parts import plain


@pytest.mark.parametrize("left", [0, 1], ids=["empty", "a slice"])
def test_a_checkpoint_of_tensors_that_are_not_whole_is_refused_and_nothing_is_written(place, tmp_path, left):
    loop = Loop(prepare(parse(plain(place, adapt={"lora": {"rank": 2}})), tmp_path / "run").job)
    loop.run()
    parameter = loop.parameters[0]
    parameter.data = torch.empty(0) if not left else parameter.data[:1].clone()
    with pytest.raises(CheckpointError, match="requires the whole tensor"):
        loop.save(3)
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_launch_with_deepspeed_is_refused_with_what_to_use_instead(place, tmp_path, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = write_recipe(tmp_path / "r.yaml", plain(place, adapt="lora"))
    refused(luthier("run", recipe, "--out", tmp_path / "run"), "DeepSpeed", "train.shard: true")
    assert not (tmp_path / "run").exists()
