"""trl #4167: where did DDPO go. Every technique is found by its name, and trains."""

from __future__ import annotations

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.cli.shell import luthier


def test_it_is_found_by_its_name_and_trains_from_a_recipe():
    ran = luthier("methods", "ddpo")
    assert ran.out.splitlines()[0].startswith("DDPO")
    plain = {"model": "lab:image", "data": {"train": "lab:image", "rows": 8, "test_rows": 2, "drop_condition": 0.0},
             "objective": {"ddpo": {"steps": 3, "samples": 2}}, "reward": {"world_reward": {"which": "redness"}},
             "adapt": {"lora": {"rank": 2}}, "train": {"steps": 1, "batch": 2, "lr": 1e-3}, "sampling": {"steps": 2}}  # fmt: skip
    (only,) = run(parse(plain)).outcome.curves
    assert only["grad_norm"] > 0
    assert "term/ddpo" in only
