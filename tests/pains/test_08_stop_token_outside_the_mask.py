"""trl #5988: a shipped template left the stop token out of the mask; the loss looked healthy, generations never ended."""

from __future__ import annotations

from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.models.made import byte_level, template
from tests.pains.parts import CHATML, answers, folder, plain
from tests.recipes.parts import write

TALK = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ok"}]}


def test_a_model_trained_with_generation_marks_that_leave_out_the_stop_token_learns_to_stop(tmp_path):
    folder(tmp_path / "model", byte_level(None, "<|im_end|>", CHATML, template("marked")))
    write(tmp_path / "rows.jsonl", [TALK] * 4)
    made = run(parse(plain(tmp_path, "rows", train={"steps": 60, "batch": 4, "lr": 3e-2})))
    assert made.outcome.curves[-1]["loss"] < 0.1
    assert answers(made, [TALK["messages"][:1]], 24) == ["ok"]
