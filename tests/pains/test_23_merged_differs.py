"""peft #1388, #1836, #1904, #2502: the merged model differed from the adapter model, from rounding up to a useless head.

Every adaptation of the registry that can merge: the folder that a run writes says what the trained model said.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM

from luthier.core.errors import LuthierError
from luthier.core.registry import entries
from luthier.recipes.recipe import parse, recipe_faults
from luthier.recipes.run import run
from tests.pains.parts import logits, plain

ALL = sorted(e.short for e in entries().values() if e.room == "adapt")
IDS = torch.randint(7, 47, (3, 10), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ALL)
def test_the_merged_folder_says_what_the_trained_model_said(place, tmp_path, name):
    recipe = plain(place, adapt=name, train={"steps": 2, "batch": 4, "lr": 3e-2, "packing": 0})
    if recipe_faults(recipe):
        pytest.skip("needs parameters that have no default")
    try:
        made = run(parse(recipe), tmp_path / "run")
    except LuthierError as fault:
        pytest.skip(f"not for this model: {fault}")
    if not (tmp_path / "run" / "model").exists():
        assert "There is no merged model" in (tmp_path / "run" / "README.md").read_text()
        return
    want = logits(made.prepared.policy.view.module.model, IDS)
    got = logits(AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model"), IDS)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert (want - logits(AutoModelForCausalLM.from_pretrained(place / "model"), IDS)).abs().max() > 1e-4
