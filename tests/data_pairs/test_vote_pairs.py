"""vote_pairs: votes by hand, weights, ties, thresholds, gold rows."""

from __future__ import annotations

import pytest

from luthier.core import DataContext
from luthier.core.errors import ConfigError, DataError
from luthier.data.pairs.vote_pairs import VotePairs, final_answer, votes

CTX = DataContext()


def row(*texts, **more):
    return {"prompt": "p", "responses": list(texts), **more}


def test_final_answers_and_votes():
    assert final_answer("so it is #### 7 \n or #### 12", r"####\s*(\d+)") == "12"
    assert final_answer("no number", r"\d+") is None
    assert final_answer("A  b", None) == "a b"
    assert votes(["7", None, "7", "8", None]) == [2, 0, 2, 1, 0]


def test_most_against_fewest_votes_with_the_margin_as_weight():
    texts = ["a #7", "b #7", "c #8", "d #8", "e #7", "f #9", "g #7", "h #7"]
    (made,) = VotePairs(pattern=r"#(\d)")([row(*texts, scores=[0] * 8)], CTX).rows
    assert (made["chosen"], made["rejected"]) == ("a #7", "f #9")
    assert made["weight"] == made["gap"] == pytest.approx((5 - 1) / 8)
    assert set(made) == {"prompt", "chosen", "rejected", "weight", "gap"}


def test_a_sample_without_an_answer_has_no_votes():
    (made,) = VotePairs(pattern=r"#(\d)")([row("x #7", "y #7", "lost")], CTX).rows
    assert (made["rejected"], made["weight"]) == ("lost", pytest.approx(2 / 3))


@pytest.mark.parametrize(
    ("texts", "reason"),
    [(("7", "7", "7"), "equally many"), (("1", "2", "3"), "no answer has 50% of the votes"), (("7",), "fewer than two"),
     (("1", "2"), "equally many")],
)  # fmt: skip
def test_unanimous_tied_and_unclear_votes_give_no_pair(texts, reason):
    built = VotePairs()([row(*texts), row("7", "7", "8")], CTX)
    assert built.source == [1]
    assert reason in built.notes[1]


def test_threshold_is_a_share_of_the_samples():
    texts = ("7", "7", "8", "9")
    assert VotePairs(least=0.5)([row(*texts)], CTX).rows[0]["weight"] == 0.25
    with pytest.raises(DataError, match="no answer has 60% of the votes"):
        VotePairs(least=0.6)([row(*texts)], CTX)


def test_gold_rows_are_right_against_wrong_with_full_weight():
    rows = [row("8", "8", "7", answer=7), row("7", "7", "8"), row("8", "9", answer="7")]
    built = VotePairs(gold=True)(rows, CTX)
    assert built.source == [0, 1]
    assert [(r["chosen"], r["rejected"], r["weight"]) for r in built.rows] == [
        ("7", "8", 1.0),
        ("7", "8", pytest.approx(1 / 3)),
    ]
    assert "no answer is right" in built.notes[1]
    assert VotePairs()(rows[:1], CTX).rows[0]["chosen"] == "8"


def test_a_bad_pattern_is_refused():
    with pytest.raises(ConfigError, match="vote_pairs requires a regular expression"):
        VotePairs(pattern="(")
