"""trl #6668, #6671: every label masked, training reports loss 0.0 and finishes as if fine."""

from __future__ import annotations

import pytest

from luthier.core.errors import DataError
from tests.cli.shell import luthier, refused, write_recipe
from tests.pains.parts import chatml, folder, plain, ready, turns
from tests.recipes.parts import write


def test_a_run_whose_rows_train_nothing_is_refused_before_the_first_step(tmp_path):
    folder(tmp_path / "model", chatml())
    write(tmp_path / "rows.jsonl", [turns(2, off=(0, 1))] * 8)
    recipe = write_recipe(tmp_path / "recipe.yaml", plain(tmp_path, "rows"))
    refused(luthier("run", recipe, "--out", tmp_path / "run"), "at least one trained token", "none of 8 rows")
    assert not list((tmp_path / "run").glob("adapter/*"))


def test_single_rows_that_train_nothing_are_counted_where_others_do(tmp_path):
    made = ready(tmp_path, chatml(), [turns(2, off=(0, 1)), *[turns(1)] * 7])
    assert len(made.encoded.examples) == 7
    assert any("1 row " in n and "no trained token" in n for n in made.notes)


def test_cutting_that_leaves_no_answer_is_refused_too(tmp_path):
    rows = [{"prompt": "x" * 40, "response": "y"}] * 8
    with pytest.raises(DataError, match="no trained token is left after cutting"):
        ready(tmp_path, chatml(), rows, data={"max_length": 20, "truncation": "right"})
