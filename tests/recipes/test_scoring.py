"""Selectors that ask something of the model to be tuned, in a recipe on a real model."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import ConfigError
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse
from luthier.recipes.rows import measured
from luthier.recipes.run import subject_of
from tests.recipes.parts import chat_rows, model_folder, write
from tests.tolerance import same


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    at = tmp_path_factory.mktemp("scoring")
    model_folder(at / "model")
    rows = chat_rows(8)
    for i, row in enumerate(chat_rows(16)[8:]):  # a second answer to each prompt
        rows.append({"messages": [rows[i]["messages"][0], row["messages"][1]]})
    write(at / "chat.jsonl", rows)
    return at


def made(place, *steps):
    plain = {"model": str(place / "model"), "objective": "nll", "train": {"steps": 1, "batch": 4},
             "data": {"train": str(place / "chat.jsonl"), "holdout": 0, "steps": list(steps)}}  # fmt: skip
    return prepare(parse(plain))


def test_grape_keeps_the_answer_that_the_model_itself_finds_likelier(place):
    every, kept = made(place), made(place, "grape")
    rows = measured(every.splits.train.rows)
    sums, counts = subject_of(every).logp([r["prompt"] for r in rows], [r["response"] for r in rows])
    mean = (sums / counts).tolist()
    want = sorted(max((i, i + 8), key=lambda i: mean[i]) for i in range(8))
    assert kept.splits.train.rows == [every.splits.train.rows[i] for i in want]
    assert any("data.select.grape kept 8 of 16 rows: the likeliest 1 of each of 8 prompts" in n for n in kept.notes)


def test_gradients_are_those_of_the_base_even_while_an_adapter_is_attached(place):
    from luthier.recipes.scoring import Untuned

    prepared = made(place)
    rows = prepared.splits.train.rows[:3]
    got = Untuned(prepared.recipe, prepared.policy.tokenizer).gradients(rows)
    assert got.shape == (3, 1024)
    plain = measured(rows)
    subject = subject_of(prepared)
    again = subject.base().gradients([r["prompt"] for r in plain], [r["response"] for r in plain])
    same(again, got)
    assert all(p.grad is None for p in subject.module.parameters())
    assert torch.is_grad_enabled()


def test_a_maker_of_rows_is_no_selector(place):
    with pytest.raises(
        ConfigError, match=r"data\.steps\[0\] requires a selector or builder; got data\.synthesise\.base_refine"
    ):
        made(place, "base_refine")


def test_prismatic_and_text_selectors_work_one_after_another(place, monkeypatch):
    monkeypatch.setattr("luthier.recipes.build.embedder", lambda recipe: lambda texts: torch.eye(16)[: len(texts)])
    prepared = made(place, {"prismatic": {"keep": 12}}, {"kcenter": {"keep": 8}}, {"novelselect": {"keep": 5}})
    assert len(prepared.splits.train.rows) == 5
