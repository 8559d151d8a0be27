"""unsloth #416, #419; trl #6357: with pad = eos the end is never learned and the model talks on."""

from __future__ import annotations

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.models.made import byte_level
from tests.pains.parts import answers, folder, plain
from tests.recipes.parts import write


def test_a_base_model_whose_padding_is_its_end_token_learns_to_stop(tmp_path):
    tokenizer = byte_level(None, "</s>", (), pad_token="</s>")
    folder(tmp_path / "model", tokenizer)
    rows = [{"prompt": "ab:", "response": "ok"}, {"prompt": "long one:", "response": "no"}]
    write(tmp_path / "rows.jsonl", rows)
    made = run(parse(plain(tmp_path, "rows", train={"steps": 80, "batch": 2, "lr": 3e-2, "packing": 0})))
    assert [a.strip() for a in answers(made, [r["prompt"] for r in rows], 24)] == ["ok", "no"]
