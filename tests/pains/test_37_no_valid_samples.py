"""LLaMA-Factory #4236, #5737, #9618, #7777: "cannot find valid samples, check data/README.md", no row and no reason."""

from __future__ import annotations

import json

from tests.cli.shell import luthier, refused, write_recipe
from tests.pains.parts import plain

GOOD = json.dumps({"prompt": "w1", "response": "w2"})
BAD = [
    '{"prompt": "w1", "respose": "w2"}',
    "{broken",
    '{"prompt": "w1", "response": null}',
    '{"prompt": 3, "response": "w2"}',
]


def test_each_bad_row_is_named_with_its_line_and_its_reason(place, tmp_path):
    (tmp_path / "rows.jsonl").write_text("\n".join([GOOD, *BAD, *[GOOD] * 6]) + "\n")
    recipe = write_recipe(tmp_path / "r.yaml", plain(place, data={"train": str(tmp_path / "rows.jsonl")}))
    refused(luthier("check", recipe), "line 2", "line 3", "line 4", "line 5")
    dropped = luthier("run", recipe, "--out", tmp_path / "run", "--set", "data.on_bad=drop")
    assert dropped.code == 0, dropped.err
    notes = json.loads((tmp_path / "run" / "result.json").read_text())["notes"]
    assert any("4" in n for n in notes[:2]), notes
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["data"]["rows"] == 7
