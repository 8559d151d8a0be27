"""abstain_targets: both ends of the threshold, the cut between them, and faults."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core import DataContext
from luthier.core.errors import DataError
from luthier.data.targets.abstain_targets import AbstainTargets

ROWS = [
    {"prompt": "a", "responses": ["x", "X.", " x", "y"], "scores": [1, 1, 1, 0]},  # entropy 0.562
    {"prompt": "b", "responses": ["p", "q", "q", "p"], "topic": "letters"},  # log 2
    {"prompt": "c", "responses": ["k", "l", "m", "n"], "own": "m"},  # log 4
    {"prompt": "d", "responses": ["z", "z", "z", "z"], "own": "zz"},  # 0
]


def targets(**parameters):
    built = AbstainTargets(refusal="no idea", **parameters)(ROWS, DataContext())
    assert built.source == [0, 1, 2, 3]
    assert [r["prompt"] for r in built.rows] == list("abcd")
    return [r["response"] for r in built.rows], built


@pytest.mark.parametrize("threshold", [math.log(4), 10.0, math.inf])
def test_a_high_threshold_is_self_distillation(threshold):
    assert targets(threshold=threshold)[0] == ["x", "p", "m", "zz"]


def test_a_negative_threshold_always_abstains():
    got, built = targets(threshold=-0.1)
    assert got == ["no idea"] * 4
    assert built.notes == ("abstain_targets made 4 of 4 targets refusals",)


def test_between_them_entropy_decides():
    assert targets(threshold=0.6)[0] == ["x", "no idea", "no idea", "zz"]
    assert targets(threshold=0.0)[0] == ["no idea", "no idea", "no idea", "zz"]
    assert targets(threshold=0.7)[0] == ["x", "p", "no idea", "zz"]


def test_rows_keep_their_columns_and_the_given_ones_stay_as_they_are():
    before = [dict(r) for r in ROWS]
    _, built = targets()
    assert before == ROWS
    assert built.rows[1]["topic"] == "letters"
    assert set(built.rows[0]) == {"prompt", "response", "semantic_entropy"}
    assert built.rows[2]["semantic_entropy"] == pytest.approx(math.log(4))


def test_an_embedder_decides_what_is_the_same():
    ctx = DataContext(embed=lambda texts: torch.tensor([[1.0, 0.1 * i] for i in range(len(texts))]))
    built = AbstainTargets(similar=0.9)(ROWS[2:3], ctx)
    assert built.rows[0]["response"] == "m"
    with pytest.raises(DataError, match="requires an embedder; got none"):
        AbstainTargets(similar=0.9)(ROWS, DataContext())


@pytest.mark.parametrize("bad", [None, [], ["one"], "text"])
def test_rows_without_samples_are_named(bad):
    with pytest.raises(DataError, match=r"`responses` with two samples or more; got .* in row 2"):
        AbstainTargets()([ROWS[0], {"prompt": "b", "responses": bad}], DataContext())
