from __future__ import annotations

import math

import pytest
import torch

from luthier.core import DataContext
from luthier.core.errors import DataError
from luthier.data.select.grape import Grape, best_of_each, prompt_of
from tests.data_select.contract import pool

LOGP = {"one": [-0.1, -0.3], "two": [-0.05], "three": [-2.0, -0.1, -0.1], "four": [-0.2] * 9, "five": [-1.0]}
ROWS = [
    {"prompt": "p", "response": "one"}, {"prompt": "q", "response": "three"}, {"prompt": "p", "response": "two"},
    {"prompt": "q", "response": "four"}, {"prompt": "r", "response": "five"},
]  # fmt: skip


def score(rows):
    """Mean log-prob of each response from the table."""
    return torch.tensor([sum(LOGP[r["response"]]) / len(LOGP[r["response"]]) for r in rows])


CTX = DataContext(score=score)


def test_the_lowest_perplexity_of_each_prompt_is_kept():
    """In loops: for every prompt the answer with the smallest exp(-mean log-prob)."""
    want = []
    for prompt in ("p", "q", "r"):
        own = [i for i, r in enumerate(ROWS) if r["prompt"] == prompt]
        want.append(min(own, key=lambda i: math.exp(-sum(LOGP[ROWS[i]["response"]]) / len(LOGP[ROWS[i]["response"]]))))
    got = Grape()(ROWS, CTX)
    assert got.index.tolist() == sorted(want) == [2, 3, 4]
    assert got.score.tolist() == pytest.approx(score(ROWS).tolist())
    assert "3 prompts" in got.reason


def test_one_answer_for_each_prompt_keeps_all_and_so_does_a_large_number():
    assert Grape()(ROWS[2:], CTX).index.tolist() == [0, 1, 2]
    assert Grape(per_prompt=2)(ROWS, CTX).index.tolist() == [0, 1, 2, 3, 4]


def test_the_order_of_answers_does_not_matter_and_ties_go_to_the_earlier_row():
    order = [3, 1, 4, 0, 2]
    got = Grape()([ROWS[i] for i in order], CTX).index.tolist()
    assert {order[i] for i in got} == {2, 3, 4}
    assert best_of_each(torch.zeros(4), ["a", "b", "a", "b"], 1).tolist() == [0, 1]


def test_the_prompt_is_all_before_the_last_answer():
    def chat(*texts):
        return {"messages": [{"role": r, "content": t} for r, t in zip(["user", "assistant"] * 2, texts, strict=False)]}

    assert prompt_of(chat("a", "x"), 1) == prompt_of(chat("a", "y"), 2)
    assert prompt_of(chat("a", "x", "b", "c"), 1) != prompt_of(chat("a", "y", "b", "c"), 2)
    assert prompt_of({"prompt": [{"role": "user", "content": "a"}]}, 1) != prompt_of({"prompt": "a"}, 1)


def test_scores_can_come_from_a_column():
    rows = [{**r, "lp": float(s)} for r, s in zip(ROWS, score(ROWS), strict=True)]
    assert Grape(score="lp")(rows, DataContext()).index.tolist() == [2, 3, 4]
    with pytest.raises(DataError, match="one finite score per row; got None in row 2"):
        Grape(score="lp")([rows[0], ROWS[1]], DataContext())


def test_faults_are_named():
    with pytest.raises(DataError, match="grape requires a model that scores answers; got none"):
        Grape()(ROWS, DataContext())
    with pytest.raises(DataError, match="row 1 with response"):
        Grape()([{"response": "r"}], CTX)
    with pytest.raises(DataError, match="at least one row"):
        Grape()([], CTX)
    with pytest.raises(DataError, match="one finite score per row"):
        Grape()(pool(), DataContext(score=lambda rows: torch.full((12,), math.nan)))
    with pytest.raises(DataError, match="one finite score per row"):
        Grape()(pool(), DataContext(score=lambda rows: torch.zeros(3)))
