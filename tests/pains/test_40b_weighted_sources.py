"""axolotl #1508: no sampling weights for data sets; LLaMA-Factory #10672: what a mixture leaves out is left out in each epoch;
datasets #8626, #8399: an interleaved source without rows gives rows of another one again."""

from __future__ import annotations

from collections import Counter

import pytest

from luthier.core.errors import LuthierError
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse
from tests.cli.shell import luthier, write_recipe
from tests.pains.parts import plain
from tests.recipes.parts import write


@pytest.fixture
def mixed(place, tmp_path):
    write(tmp_path / "few.jsonl", [{"prompt": f"w{i}", "response": "w1"} for i in range(6)])
    train = [{"path": str(tmp_path / "few.jsonl"), "weight": 3}, {"path": str(place / "chat.jsonl"), "weight": 2}]
    return plain(place, data={"train": train})


def of_passes(prepared, passes):
    rows = [r for s in range(passes * len(prepared.feed) // 5) for b in prepared.feed.micros(s) for r in b.rows]
    return [rows[at : at + 10] for at in range(0, len(rows), 10)]


def test_weights_are_the_exact_shares_of_every_pass_and_each_pass_brings_other_rows(mixed):
    mixed["train"]["batch"] = 5
    passes = of_passes(prepare(parse(mixed)), 6)
    assert [Counter(r < 6 for r in one) for one in passes] == [Counter({True: 6, False: 4})] * 6
    others = [r for one in passes for r in one if r >= 6]
    assert sorted(others) == list(range(6, 30))  # six times four of the 24 rows: each of them once


def test_what_never_comes_in_a_run_is_counted_before_it_starts(mixed, tmp_path):
    del mixed["train"]["steps"]
    mixed["train"] |= {"epochs": 2, "batch": 5}
    told = " ".join(luthier("plan", write_recipe(tmp_path / "r.yaml", mixed)).out.split())
    assert "one pass has 10 rows: 6 of the 6 rows" in told
    assert "16 of the 24 rows of" in told and "never come in this run" in told


def test_a_source_of_which_nothing_is_left_is_refused_by_its_name(mixed, tmp_path):
    write(tmp_path / "few.jsonl", [{"prompt": "w1", "response": " ".join(["w2"] * 40)}] * 3)
    mixed["data"] |= {"max_length": 30, "truncation": "drop"}
    with pytest.raises(LuthierError, match=r"every source to train on; got none of .*few\.jsonl"):
        prepare(parse(mixed))
