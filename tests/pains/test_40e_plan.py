"""pytorch/rfcs #108, NeMo Automodel #1592: the memory that a run will need should be known before it is launched."""

from __future__ import annotations

import json

import pytest

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.cli.shell import luthier, write_recipe
from tests.pains.parts import plain


@pytest.mark.parametrize("adapt", ["full", "lora"])
def test_the_plan_tells_parameters_steps_passes_and_bytes_of_the_state_exactly(place, tmp_path, adapt):
    recipe = plain(place, "pairs", objective="dpo", adapt=adapt)
    told = json.loads(luthier("plan", write_recipe(tmp_path / "r.yaml", recipe), "--json").out)
    made = run(parse(recipe), tmp_path / "run")
    assert told["steps"] == made.outcome.steps
    assert told["trained"] == made.cost["trained_parameters"]
    assert told["forwards"]["policy"] == made.cost["forwards_policy"]
    assert told["forwards"]["reference"] == made.cost["forwards_reference"]
    assert told["optimiser_bytes"] == pytest.approx(8 * told["trained"], rel=0.05)
    assert told["memory_bytes"] > told["weights_bytes"] + told["optimiser_bytes"]
