"""Numbers of rows reach objectives; completions of a prompt stay together where an objective compares them."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import ConfigError, Refused
from luthier.recipes.build import prepare
from luthier.recipes.plan import plan
from luthier.recipes.recipe import parse
from luthier.train.loop import Loop
from tests.recipes.parts import chat_rows, model_folder, pair_rows, write


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("columns")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    write(
        at / "pairs.jsonl", [{**r, "gap": i / 8, "consistency": 0.75, "weight": 0.5} for i, r in enumerate(pair_rows())]
    )
    write(at / "bare.jsonl", pair_rows())
    return at


def recipe(place, data, **more):
    return parse({"model": str(place / "model"), "data": {"train": str(place / data)}, "adapt": "lora",
                  "train": {"steps": 2, "batch": 8, "lr": 1e-2}, **more})  # fmt: skip


def test_columns_of_pairs_reach_the_batch_of_their_row(place):
    made = prepare(recipe(place, "pairs.jsonl", objective="copg"))
    (batch,) = made.feed.micros(0)
    assert set(batch.columns) == {"gap", "consistency", "weight"}
    assert batch.columns["gap"].tolist() == [row["gap"] for row in batch.meta]
    assert Loop(made.job).run().steps == 2
    assert plan(recipe(place, "pairs.jsonl", objective="copg")).forwards["policy"] == 2


def test_pairs_without_the_column_are_refused(place):
    with pytest.raises(Refused, match="copg requires the column 'gap'"):
        Loop(prepare(recipe(place, "bare.jsonl", objective="copg")).job).run()


SAMPLED = {"reward": "exact", "rollout": {"max_new": 4, "group": 4}}


@pytest.mark.parametrize("objective", ["copg", {"trajectory_balance": {"reference": True}}], ids=str)
def test_groups_stay_whole_and_micro_batches_change_nothing(place, objective):
    whole = prepare(recipe(place, "chat.jsonl", objective=objective, **SAMPLED))
    split = prepare(recipe(place, "chat.jsonl", objective=objective, **SAMPLED,
                           train={"steps": 2, "batch": 8, "micro": 5, "lr": 1e-2}))  # fmt: skip
    parts = split.feed.micros(0)
    assert [p.columns["group"].unique(return_counts=True)[1].tolist() for p in parts] == [[4], [4]]
    for prepared in (whole, split):
        assert Loop(prepared.job).run().steps == 2
    for (_, a), (_, b) in zip(
        whole.policy.attached.named_parameters(), split.policy.attached.named_parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)
    assert plan(recipe(place, "chat.jsonl", objective=objective, **SAMPLED)).forwards["policy"] == 2


def test_members_that_read_any_data_follow_the_others(place):
    made = prepare(recipe(place, "chat.jsonl", objective=["copg", {"entropy_bonus": {"weight": 0.1}}], **SAMPLED))
    assert made.feed.micros(0)[0].kind == "group"


def test_groups_of_one_and_missing_rewards_are_refused_early(place):
    with pytest.raises(Refused, match=r"copg requires at least two completions per prompt; got rollout.group: 1"):
        prepare(recipe(place, "chat.jsonl", objective="copg", reward="exact", rollout={"group": 1}))
    with pytest.raises(Refused, match="requires `reward`"):
        prepare(recipe(place, "chat.jsonl", objective="copg"))
    with pytest.raises(ConfigError, match="learns from scored samples"):
        recipe(place, "chat.jsonl", objective="trajectory_balance")
