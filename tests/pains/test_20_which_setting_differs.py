"""axolotl #3154: the same recipe gave a worse model than in another tool, and users could not tell why."""

from __future__ import annotations

import json

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain


def test_the_manifest_alone_repeats_the_run_to_the_byte(place, tmp_path):
    recipe = plain(place, adapt={"lora": {"rank": 2}}, regularise=["neftune"], objective={"dft": {}}, seed=3)
    run(parse(recipe), tmp_path / "first")
    told = json.loads((tmp_path / "first" / "manifest.json").read_text())
    run(parse({k: v for k, v in told["recipe"].items() if v is not None}), tmp_path / "again")
    a, b = ((tmp_path / n / "adapter" / "adaptation.safetensors").read_bytes() for n in ("first", "again"))
    assert a == b
    assert told["components"]["adapt"][0]["adapt.lowrank.lora"]["rank"] == 2
    assert {"torch", "transformers"} <= told["versions"].keys()
    assert told["data"]["fingerprint"] and told["data"]["statement"]


def test_a_default_that_decides_the_result_stands_in_the_manifest_too(place, tmp_path):
    made = run(parse(plain(place)), tmp_path / "run")
    hooks = json.loads((tmp_path / "run" / "manifest.json").read_text())["components"]["hooks"]
    assert hooks == [{"optim.gradients.clip_grad_norm": {"max_norm": made.recipe.train.clip}}]
