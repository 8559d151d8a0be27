"""trl #3927: assistant-only loss plus a sequence over max_length fails without a usable message."""

from __future__ import annotations

from tests.cli.shell import luthier, refused, write_recipe
from tests.pains.parts import chatml, folder, plain, ready, turns
from tests.recipes.parts import write


def test_the_row_its_length_the_limit_and_the_setting_are_named(tmp_path):
    folder(tmp_path / "model", chatml())
    write(tmp_path / "rows.jsonl", [turns(1), turns(1), turns(5)])
    recipe = write_recipe(tmp_path / "recipe.yaml", plain(tmp_path, "rows", data={"max_length": 60}))
    ran = luthier("run", recipe, "--out", tmp_path / "run")
    refused(ran, "rows.jsonl", "line 3", "at most 60 tokens", "data.truncation")


def test_asked_to_cut_it_trains_what_is_left_of_the_answers(tmp_path):
    cut = ready(tmp_path, chatml(), [turns(1), turns(5)], data={"max_length": 60, "truncation": "right"})
    assert [len(e[0].ids) <= 60 for e in cut.encoded.examples] == [True, True]
    assert sum(cut.encoded.examples[1][0].mask) > 0
