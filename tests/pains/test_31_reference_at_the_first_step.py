"""NeMo-Aligner #227: the log-probs of policy and reference differed at the first step of DPO, where they must be equal."""

from __future__ import annotations

import math

import pytest

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain

ADAPT = {
    "full": "full",
    "lora": {"lora": {"rank": 2, "dropout": 0.3}},
    "neuroada": {"neuroada": {"k": 2}},
    "half": "half_finetune",
}


@pytest.mark.parametrize("train", [{}, {"micro": 2}, {"packing": 48}, {"epochs": 2, "steps": None}], ids=str)
@pytest.mark.parametrize("adapt", ADAPT)
def test_the_first_loss_is_exactly_log_two(place, adapt, train):
    """Read once or several times, cached or not, packed or padded: margins of zero give log 2."""
    own = {"steps": 2, "packing": 0, "batch": 12, **train}
    own = {k: v for k, v in own.items() if v is not None}

    recipe = plain(place, "pairs", objective="dpo", adapt=ADAPT[adapt])
    recipe["train"] = {"lr": 0.1, **own}
    curves = run(parse(recipe)).outcome.curves
    assert curves[0]["term/dpo"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(curves[1]["term/dpo"] - math.log(2)) > 1e-4
