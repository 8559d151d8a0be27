"""sentence-transformers #3189, #2916: the same text twice in a batch was its own negative; accumulation does not enlarge a batch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from luthier.core.errors import Refused
from luthier.recipes.build import prepare
from luthier.recipes.recipe import parse
from luthier.train.loop import Loop
from tests.recipes.parts import write
from tests.recipes.test_embedding_recipes import WORDS, encoder  # noqa: F401 - a fixture

ROWS = [{"anchor": w, "positive": f"{w} {WORDS[i + 4]}"} for i, w in enumerate(WORDS[:6])]


def job(folder, tmp_path, rows, batch, objective):
    data = {"train": str(write(tmp_path / "rows.jsonl", rows)), "holdout": 0}
    recipe = {
        "model": str(folder),
        "data": data,
        "objective": objective,
        "train": {"steps": 2, "batch": batch, "lr": 0.0},
    }
    return prepare(parse(recipe)).job


@pytest.mark.parametrize("symmetric", [False, True])
def test_copies_of_one_row_have_no_negative_and_nothing_to_learn(encoder, tmp_path, symmetric):  # noqa: F811
    objective = {"info_nce": {"symmetric": symmetric, "temperature": 0.5}}
    curve = Loop(job(encoder, tmp_path, ROWS[:1] * 6, 6, objective)).run().curves[0]
    assert curve["loss"] == pytest.approx(0.0, abs=1e-6)
    assert curve["grad_norm"] == pytest.approx(0.0, abs=1e-6)


def test_over_the_border_of_two_passes_a_row_that_comes_twice_is_no_negative_of_itself(encoder, tmp_path):  # noqa: F811
    made = job(encoder, tmp_path, ROWS, 4, {"info_nce": {"temperature": 0.5}})
    (batch,) = next(b for step in range(20) if len(set((b := made.feed.micros(step))[0].rows)) < 4)
    s = made.policy.signals(batch, ("embedding",), "policy")
    query, positive = (functional.normalize(x, dim=-1) for x in s.tensors("embedding"))
    want = []
    for i, own in enumerate(batch.rows):
        others = [j for j, row in enumerate(batch.rows) if row != own]
        scores = torch.stack([query[i] @ positive[j] / 0.5 for j in (i, *others)])
        want.append(scores.logsumexp(0) - scores[0])
    torch.testing.assert_close(made.objective(batch, s).values, torch.stack(want), rtol=1e-5, atol=1e-6)


def test_a_smaller_batch_by_accumulation_is_refused_with_what_to_do(encoder, tmp_path):  # noqa: F811
    recipe = {"model": str(encoder), "data": {"train": str(write(tmp_path / "rows.jsonl", ROWS)), "holdout": 0},
              "objective": "info_nce", "train": {"steps": 1, "batch": 6, "micro": 2}}  # fmt: skip
    with pytest.raises(Refused, match=r"train\.micro requires the whole batch.*checkpointing saves memory"):
        prepare(parse(recipe))
