"""verl #5725: resuming at an epoch's end trained nothing; NeMo-RL #2519: with other data the first rows were skipped."""

from __future__ import annotations

import pytest

from luthier.core.errors import LuthierError
from luthier.recipes.recipe import parse
from luthier.recipes.run import run
from tests.pains.parts import plain
from tests.recipes.parts import chat_rows, write
from tests.trust.resuming import cut_after, same_end


def two_epochs(place, **more):
    recipe = plain(place, adapt={"lora": {"rank": 2}}, **more)
    recipe["train"] = {"epochs": 2, "batch": 6, "lr": 1e-2, "save_every": 1, "keep": 99}
    return recipe


def test_a_run_cut_at_the_end_of_the_first_epoch_trains_the_second_one(place, tmp_path):
    recipe = two_epochs(place)
    assert run(parse(recipe), tmp_path / "whole").outcome.steps == 8
    cut_after(tmp_path / "whole", tmp_path / "cut", 4)
    again = run(parse(recipe), tmp_path / "cut", resume=True)
    assert [c["step"] for c in again.outcome.curves] == list(range(1, 9))
    same_end(tmp_path / "whole", tmp_path / "cut")


def test_a_run_on_other_rows_is_refused_and_skips_none(place, tmp_path):
    data = write(tmp_path / "chat.jsonl", chat_rows(24))
    recipe = two_epochs(place, data={"train": str(data)})
    run(parse(recipe), tmp_path / "whole")
    cut_after(tmp_path / "whole", tmp_path / "cut", 4)
    write(data, chat_rows(30))
    with pytest.raises(LuthierError, match="the recipe and data it was written with"):
        run(parse(recipe), tmp_path / "cut", resume=True)
