"""edit_success: known models at the ends of each figure."""

from __future__ import annotations

import pytest

from luthier.core import MeasureContext
from luthier.measure.quality.edit_success import EditSuccess, harmonic
from tests.measure.fakes import Fake

ROWS = [{"prompt": f"{w} ?", "answer": "new", "paraphrase": f"tell {w}", "locality": f"near {w}"} for w in "abcd"]


def read(says, start):
    return {r.name: r for r in EditSuccess()(Fake(says, Fake(start)), ROWS, MeasureContext())}


def test_a_model_against_itself_is_local_and_unedited():
    got = read(lambda p: {"old": 1.0}, lambda p: {"old": 1.0})
    assert (got["edit_efficacy"].value, got["edit_locality"].value, got["edit_score"].value) == (0, 1, 0)


def test_a_model_that_always_says_the_new_answer_is_not_local():
    got = read(lambda p: {"New.": 1.0}, lambda p: {"old": 1.0})
    assert [got[f"edit_{n}"].value for n in ("efficacy", "generalisation", "locality", "score")] == [1, 1, 0, 0]


def test_each_figure_reads_its_own_prompts():
    right = {"a ?", "b ?", "c ?", "tell a", "tell b", "near d"}
    got = read(lambda p: {"new" if p in right else "old": 1.0}, lambda p: {"old": 1.0})
    assert got["edit_efficacy"].items == (1, 1, 1, 0)
    assert got["edit_generalisation"].items == (1, 1, 0, 0)
    assert got["edit_locality"].items == (1, 1, 1, 0)
    assert got["edit_score"].value == pytest.approx(3 / (4 / 3 + 2 + 4 / 3))


def test_harmonic():
    assert harmonic([1, 1, 1]) == 1
    assert harmonic([1, 0, 1]) == 0
