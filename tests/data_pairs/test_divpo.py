"""divpo: pools by hand, its limits on random rows, every measure of diversity, and what it refuses."""

from __future__ import annotations

import pytest
import torch

from luthier.core import DataContext
from luthier.core.errors import DataError
from luthier.data.pairs.divpo import DivPO, pools, rarity

CTX = DataContext()


def row(scores, texts=None, **more):
    return {"prompt": "p", "responses": texts or [f"w{i}" for i in range(len(scores))], "scores": scores, **more}


def random_rows(n=40, k=9, seed=0):
    g = torch.Generator().manual_seed(seed)
    return [row(torch.randn(k, generator=g).tolist(), diversity=torch.rand(k, generator=g).tolist()) for _ in range(n)]


def test_pools_of_one_are_best_against_worst():
    rows = random_rows()
    built = DivPO(pool=0.01, by="column")(rows, CTX)
    for made, at in zip(built.rows, built.source, strict=True):
        scores = rows[at]["scores"]
        assert made["chosen"] == f"w{scores.index(max(scores))}"
        assert made["rejected"] == f"w{scores.index(min(scores))}"
        assert made["gap"] == pytest.approx(max(scores) - min(scores))


@pytest.mark.parametrize("of", ["answers", "range"])
@pytest.mark.parametrize("share", [0.1, 0.34, 0.5])
def test_equals_the_loop_and_keeps_to_its_thresholds(of, share):
    rows = random_rows()
    built = DivPO(pool=share, of=of, by="column")(rows, CTX)
    assert len(built.rows) > 30
    for made, at in zip(built.rows, built.source, strict=True):
        scores, diverse = rows[at]["scores"], rows[at]["diversity"]
        ordered, k = sorted(scores), max(1, int(share * 9))
        reach = share * (ordered[-1] - ordered[0])
        upper, lower = (ordered[-k], ordered[k - 1]) if of == "answers" else (ordered[-1] - reach, ordered[0] + reach)
        chosen, rejected = int(made["chosen"][1:]), int(made["rejected"][1:])
        assert chosen == max((i for i in range(9) if scores[i] >= upper), key=lambda i: diverse[i])
        assert rejected == min((i for i in range(9) if scores[i] <= lower), key=lambda i: diverse[i])
        assert diverse[chosen] >= diverse[scores.index(max(scores))]
        assert diverse[rejected] <= diverse[scores.index(min(scores))]


def test_ties_belong_to_the_pool():
    assert pools([1.0, 1.0, 0.0, 0.0], 0.25, "answers") == ([0, 1], [2, 3])


def test_rarity_equals_the_loop():
    texts = ["red sky red", "red sea", "", "Blue sea"]
    lack = {"red": 2 / 4, "sky": 3 / 4, "sea": 2 / 4, "blue": 3 / 4}
    want = [sum(lack[w] for w in t.lower().split()) / max(1, len(t.split())) for t in texts]
    assert rarity(texts) == pytest.approx(want)


def test_words_probability_and_embedding_choose_the_odd_one():
    texts = ["red sky", "red sky!", "blue moon", "red", "red red"]
    scores = [1.0, 1.0, 1.0, 0.0, 0.0]
    assert DivPO(pool=0.4)([row(scores, texts)], CTX).rows[0]["chosen"] == "blue moon"

    def score(rows):
        return torch.tensor(
            [-9.0 if r["response"] == "red sky!" else -1.0 if r["response"] == "red" else -2.0 for r in rows]
        )

    made = DivPO(pool=0.4, by="probability")([row(scores, texts)] * 2, DataContext(score=score)).rows
    assert [(m["chosen"], m["rejected"]) for m in made] == [("red sky!", "red")] * 2
    table = dict(zip(texts, [[1.0, 0.1], [1.0, 0], [0, 1.0], [1.0, 0], [1.0, 0.2]], strict=True))
    near = DivPO(pool=0.4, by="embedding")(
        [row(scores, texts)], DataContext(embed=lambda t: torch.tensor([table[x] for x in t]))
    )
    assert near.rows[0]["chosen"] == "blue moon"


def test_other_columns_stay_and_the_source_is_untouched():
    rows = [row([1.0, 0.0], answer="7")]
    before = [dict(r) for r in rows]
    (made,) = DivPO()(rows, CTX).rows
    assert made == {"prompt": "p", "answer": "7", "chosen": "w0", "rejected": "w1", "gap": 1.0}
    assert rows == before


def test_rows_without_a_pair_are_counted_with_their_reason():
    rows = [row([1.0, 1.0]), row([1.0, 0.0]), row([2.0, 2.0]), row([1.0, 0.0], ["a", "a"])]
    built = DivPO()(rows, CTX)
    assert built.source == [1]
    assert built.notes == ("data.pairs.divpo made 1 pair of 4 rows", "2 rows gave no pair: all scores are equal (first: row 1)",
                           "1 row gave no pair: chosen and rejected are the same text (first: row 4)")  # fmt: skip
    with pytest.raises(
        DataError, match="requires at least one row that gives a pair; got 1 row gave no pair: all scores"
    ):
        DivPO()(rows[:1], CTX)


@pytest.mark.parametrize(
    ("bad", "words"),
    [({"prompt": "p", "response": "x"}, "row 1 with prompt, response"), (row([1.0, 2.0], ["a"]), "1 responses and 2 scores"),
     (row([1.0, float("nan")]), "finite numbers")],
)  # fmt: skip
def test_bad_rows_are_named(bad, words):
    with pytest.raises(DataError, match=words):
        DivPO()([bad], CTX)


def test_missing_handles_are_named():
    for by, words in (("probability", "the model to be tuned"), ("embedding", "an embedder")):
        with pytest.raises(DataError, match=words):
            DivPO(by=by)([row([1.0, 0.0])], CTX)
