"""iterated_pairs: rows and pairs of a round, the refreshed reference, a round without pairs, resume inside a round."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from luthier.core import Reward, Row
from luthier.core.errors import DataError, Refused
from luthier.data.pairs.divpo import DivPO
from luthier.loops.iterated_pairs import IteratedPairs, scored_rows
from luthier.recipes.build import prepare
from luthier.recipes.plan import plan
from luthier.recipes.recipe import parse
from luthier.train.checkpoint import same_bits
from luthier.train.loop import Loop
from tests.recipes.parts import chat_rows, model_folder, write


@dataclass(frozen=True, kw_only=True)
class Lengths(Reward):
    """Characters, so that samples differ."""

    id = "reward.lengths"

    def __call__(self, rows: Sequence[Row], completions: Sequence[str]) -> Tensor:
        return torch.tensor([float(len(c) + 3 * c.count("1")) for c in completions])


class Flat(Reward):
    id = "reward.flat"

    def __call__(self, rows, completions):
        return torch.zeros(len(completions))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("iterated")
    model_folder(at / "model")
    write(at / "chat.jsonl", chat_rows())
    return at


def made(place, out=None, objective="dpo", reward=None, **loop):
    recipe = {"model": str(place / "model"), "data": {"train": str(place / "chat.jsonl")}, "objective": objective,
              "reward": "exact", "rollout": {"max_new": 5}, "train": {"steps": 5, "batch": 4, "lr": 1e-2},
              "loop": {"iterated_pairs": {"builder": "divpo", "samples": 4, "prompts": 6, "steps": 3, **loop}}}  # fmt: skip
    prepared = prepare(parse(recipe), out)
    if prepared.feed.__class__.__name__ == "PairFeed":
        object.__setattr__(prepared.feed.parts, "reward", reward or Lengths())
    return prepared


def test_rows_of_a_round():
    rows = scored_rows([{"prompt": "a", "answer": 1}, {"prompt": "b"}], [1, 1, 0, 0], list("wxyz"), torch.arange(4.0),
                       torch.tensor([0, 0, 1, 1]))  # fmt: skip
    assert rows == [{"prompt": "b", "responses": ["w", "x"], "scores": [0.0, 1.0]},
                    {"prompt": "a", "answer": 1, "responses": ["y", "z"], "scores": [2.0, 3.0]}]  # fmt: skip


@pytest.mark.parametrize("micro", [None, 2])
def test_the_refreshed_reference_is_the_policy_of_the_rounds_first_step(place, micro):
    prepared = made(place)
    feed, policy = prepared.feed, prepared.policy
    object.__setattr__(feed.parts, "micro", micro)
    Loop(prepared.job).run()
    for batch in feed.micros(6):
        s = policy.signals(batch, ("logp", "ref_logp"))
        for now, before in zip(s["logp"], s["ref_logp"], strict=True):
            torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-4)
        assert batch.columns["gap"].min() > 0
        assert len(batch.meta) == len(batch)


def test_without_refresh_the_reference_is_the_model_before_training(place):
    prepared = made(place, refresh=False)
    Loop(prepared.job).run()
    (batch,) = prepared.feed.micros(6)
    assert "ref_token_logp" not in batch.inputs
    s = prepared.policy.signals(batch, ("logp", "ref_logp"))
    assert (s["logp"][0] - s["ref_logp"][0]).abs().max() > 1e-3


@pytest.mark.parametrize("objective", ["copg", "orpo", {"scpo": {"alpha": 0.5}}], ids=str)
def test_pair_losses_train_on_rounds(place, objective):
    builder = "vote_pairs" if isinstance(objective, dict) else {"divpo": {"by": "probability"}}
    builder = {"vote_pairs": {"least": 0.0, "pattern": r"(w\d)"}} if builder == "vote_pairs" else builder
    prepared = made(place, objective=objective, builder=builder)
    loop = Loop(prepared.job)
    assert loop.run().steps == 5
    assert all(c["pairs"] > 0 for c in loop.curves)


def test_a_round_without_pairs_keeps_the_last_ones_and_the_first_one_must_give_some(place):
    prepared = made(place)
    before = prepared.feed.micros(0) and list(prepared.feed.pairs)
    object.__setattr__(prepared.feed.parts, "reward", Flat())
    prepared.feed.micros(3)
    assert prepared.feed.pairs == before
    assert prepared.feed.figures["pairs"] == 0
    with pytest.raises(DataError, match="all scores are equal"):
        made(place, reward=Flat()).feed.micros(0)


def test_it_resumes_inside_a_round_bit_for_bit(place, tmp_path):
    whole = Loop(made(place, tmp_path / "a").job)
    whole.run()
    half = Loop(made(place, tmp_path / "b").job)
    half.job.on_event = lambda event: setattr(half, "stop", event["step"] == 2)
    assert half.run().steps == 2
    again = Loop(made(place, tmp_path / "b").job)
    assert again.run(resume=True).steps == 5
    assert same_bits(again.job.policy.attached.state(), whole.job.policy.attached.state())
    assert again.curves == whole.curves


def test_plan_counts_pairs_and_wrong_parts_are_refused(place):
    assert plan(made(place).recipe).forwards["policy"] == 5
    with pytest.raises(Refused, match=r"loop iterated_pairs requires an objective for preference data; got nll"):
        made(place, objective="nll")
    with pytest.raises(ValueError, match="requires a builder of data/pairs"):
        IteratedPairs(builder="divpo")
    assert IteratedPairs(builder=DivPO()).gives == "preference"
