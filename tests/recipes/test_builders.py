"""Scored rows become pairs in `data.steps`, and train with every pair loss."""

from __future__ import annotations

import pytest

from luthier.core.errors import ConfigError, Refused
from luthier.recipes.build import prepare
from luthier.recipes.preview import encode_for_preview
from luthier.recipes.recipe import parse
from luthier.train.loop import Loop
from tests.recipes.parts import WORDS, chat_rows, model_folder, pair_rows, write


def scored_rows(n=24):
    return [{"prompt": r["messages"][0]["content"], "responses": [WORDS[i % 5], WORDS[i % 5], WORDS[i % 7 + 9], WORDS[3]],
             "scores": [1.0, 0.8, float(i % 4), -1.0], "scores_before": [1.0, 0.0, float(i % 3), -1.0]}
            for i, r in enumerate(chat_rows(n))]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("builders")
    model_folder(at / "model")
    write(at / "scored.jsonl", scored_rows())
    write(at / "pairs.jsonl", pair_rows())
    return at


def recipe(place, data, steps, objective):
    return parse({"model": str(place / "model"), "data": {"train": str(place / data), "steps": steps}, "objective": objective,
                  "adapt": "lora", "train": {"steps": 2, "batch": 8, "lr": 1e-2}})  # fmt: skip


@pytest.mark.parametrize(
    ("steps", "objective", "column"),
    [(["divpo"], "dpo", "gap"), ([{"divpo": {"by": "probability"}}], "orpo", "gap"), (["divpo"], "copg", "gap"),
     (["vote_pairs"], "scpo", "weight"), ([{"random": {"keep": 15}}, "cream_pairs"], "cream", "consistency")],
    ids=str,
)  # fmt: skip
def test_builders_feed_pair_losses(place, steps, objective, column):
    made = prepare(recipe(place, "scored.jsonl", steps, objective))
    assert made.splits.train.kind == "preference"
    assert any("made" in note and "pairs of" in note for note in made.notes)
    (batch,) = made.feed.micros(0)
    assert batch.columns[column].tolist() == pytest.approx([row[column] for row in batch.meta])
    assert Loop(made.job).run().steps == 2


def test_preview_shows_the_pairs(place):
    encoded, _, _ = encode_for_preview(recipe(place, "scored.jsonl", ["divpo"], "dpo"))
    assert encoded.parts == ("chosen", "rejected")


def test_a_builder_says_what_it_reads_before_anything_is_loaded(place):
    with pytest.raises(Refused, match=r"data.steps\[0\] \(divpo\) requires scored data; got preference data"):
        prepare(recipe(place, "pairs.jsonl", ["divpo"], "dpo"))
    with pytest.raises(Refused, match="nll requires text data; got preference data"):
        prepare(recipe(place, "scored.jsonl", ["divpo"], "nll"))


def test_check_knows_what_builders_make(place, tmp_path):
    from luthier.cli._check import _data

    def faults(data, steps, objective):
        found = []
        _data({"data": {"train": str(place / data), "steps": steps}, "objective": objective}, found)
        return found

    assert faults("scored.jsonl", ["divpo"], "dpo") == []
    assert "requires scored data" in faults("pairs.jsonl", ["divpo"], "dpo")[0]
    assert "dpo requires preference data; got scored" in faults("scored.jsonl", None, "dpo")[0]
    with pytest.raises(ConfigError, match="pool"):
        recipe(place, "scored.jsonl", [{"divpo": {"pool": 0.9}}], "dpo")
