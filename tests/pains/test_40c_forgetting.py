"""LLaMA-Factory #2611, #5677: how to see forgetting, and how to reduce it."""

from __future__ import annotations

import json

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain
from tests.recipes.parts import write


def test_it_is_measured_and_training_on_old_rows_beside_the_new_ones_lowers_it(place, tmp_path):
    old = [{"prompt": f"w{i}", "response": "w7 w7 w7"} for i in range(20)]
    data = {
        "old": str(write(tmp_path / "old.jsonl", old[:10])),
        "retain": str(write(tmp_path / "kept.jsonl", old[10:])),
    }
    train = {"steps": 12, "batch": 8, "lr": 2e-2, "packing": 0}
    found = {}
    for name, hooks in (("alone", []), ("replay", ["replay"])):
        own = {"old": data["old"]} if name == "alone" else data
        made = run(
            parse(plain(place, data=own, train=train, regularise=hooks, measure=["forgetting"])), tmp_path / name
        )
        found[name] = next(r.value for r in made.readings if r.name == "forgetting_nll")
    assert found["alone"] > found["replay"] + 0.2
    told = json.loads((tmp_path / "alone" / "result.json").read_text())["readings"]
    assert any(r["axis"] == "forgetting" for r in told)
