"""LLaMA-Factory #7263, #8088, #5627; ms-swift #2280, #4711: loss 0 and gradient NaN, and the run went on for hours."""

from __future__ import annotations

import json

from tests.cli.shell import luthier, refused, write_recipe
from tests.pains.parts import plain


def test_the_first_step_that_is_not_finite_ends_the_run_and_names_step_and_rows(place, tmp_path):
    recipe = write_recipe(
        tmp_path / "r.yaml", plain(place, optimiser="sgd", train={"lr": 1e30, "clip": 0, "steps": 50})
    )
    ran = luthier("run", recipe, "--out", tmp_path / "run")
    refused(ran, "finite", "on rows", "lower the learning rate")
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert 1 <= told["step"] <= 3
    assert len(told["rows"]) == 6
    assert not (tmp_path / "run" / "adapter").exists()
