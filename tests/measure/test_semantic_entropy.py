"""semantic_entropy and abstention: loops, exact limits, and fakes whose answers are known."""

from __future__ import annotations

import math
import random

import pytest
import torch

from luthier.core import MeasureContext
from luthier.core.errors import DataError
from luthier.measure.calibration.abstention import Abstention, figures
from luthier.measure.calibration.semantic_entropy import SemanticEntropy, meanings
from luthier.ops.meanings import clusters, semantic_entropy
from luthier.ops.ranks import auroc
from tests.measure.fakes import fixed, sure


def by_loop(texts):
    groups: list[list[str]] = []
    for t in texts:
        home = next((g for g in groups if g[0] == t), None)
        if home is None:
            groups.append([t])
        else:
            home.append(t)
    return -sum(len(g) / len(texts) * math.log(len(g) / len(texts)) for g in groups)


@pytest.mark.parametrize("seed", range(5))
def test_equals_the_loop_whatever_the_order(seed):
    rng = random.Random(seed)
    texts = [rng.choice("abcd") for _ in range(12)]
    assert semantic_entropy(meanings(texts)) == pytest.approx(by_loop(texts), abs=1e-12)
    assert semantic_entropy(meanings(sorted(texts))) == pytest.approx(by_loop(texts), abs=1e-12)


@pytest.mark.parametrize("n", [1, 2, 7])
def test_one_meaning_is_zero_and_n_meanings_are_log_n(n):
    assert semantic_entropy(meanings(["x"] * n)) == 0
    assert semantic_entropy(meanings([f"x{i}" for i in range(n)])) == pytest.approx(math.log(n), abs=1e-12)


def test_where_sameness_is_not_transitive_later_clusters_take_their_own():
    """Item 0 takes in 1 and 3; item 2 opens a cluster and takes 3 over."""
    near = {(0, 1), (2, 3), (0, 3)}
    assert clusters(4, lambda i, j: (i, j) in near) == [0, 0, 1, 1]
    assert clusters(3, lambda i, j: True) == [0, 0, 0]
    assert clusters(0, lambda i, j: True) == []


def test_plain_forms_count_as_one_meaning():
    assert meanings(["Rome", " rome.", "ROME", "paris"]) == [0, 0, 0, 1]


def test_auroc_equals_all_pairs():
    score = torch.randint(0, 4, (30,)).double()
    yes = torch.rand(30) < 0.4
    wins = [float(a > b) + 0.5 * float(a == b) for a in score[yes] for b in score[~yes]]
    assert float(auroc(score, yes)) == pytest.approx(sum(wins) / len(wins), abs=1e-12)
    assert float(auroc(score, torch.ones(30).bool())) == 0.5


ROWS = [{"prompt": p, "answer": f"answer {p}"} for p in "abcd"]


def test_a_model_that_guesses_where_it_is_wrong_has_an_auroc_of_one():
    table = {p: {f"answer {p}": 1.0} for p in "ab"} | {p: {f"guess {i}": 0.125 for i in range(8)} for p in "cd"}
    entropy, auc = SemanticEntropy(samples=16)(fixed(table), ROWS, MeasureContext(seed=1))
    assert entropy.items[:2] == (0.0, 0.0)
    assert min(entropy.items[2:]) > 1
    assert auc.value == 1.0
    (alone,) = SemanticEntropy()(fixed(table), [{"prompt": p} for p in "abcd"], MeasureContext())
    assert alone.name == "semantic_entropy"


def test_an_embedder_joins_paraphrases():
    table = {p: {"it is rome": 0.5, "rome it is": 0.5} for p in "abcd"}
    ctx = MeasureContext(embed=lambda texts: torch.ones(len(texts), 3))
    asked = [{"prompt": "a"}]
    assert next(iter(SemanticEntropy(samples=16, similar=0.9)(fixed(table), asked, ctx))).value == 0
    assert next(iter(SemanticEntropy(samples=16)(fixed(table), asked, ctx))).value > 0.5


def test_abstention_figures_at_their_ends():
    assert figures([True] * 3, [1.0] * 3) == (1.0, 1.0, 0.0)
    assert figures([False] * 3, [0.0] * 3) == (0.0, 0.0, math.sqrt(2))
    assert figures([True, True], [1.0, 1.0])[2] < figures([True, False], [1.0, 0.0])[2]


def test_abstention_reads_refusals_by_their_beginning():
    from tests.measure.fakes import Fake

    subject = Fake(sure({"a": "answer a", "b": "wrong", "c": "i  Don't know that"}, other="i don't know"))
    got = {r.name: r for r in Abstention()(subject, ROWS, MeasureContext())}
    assert got["abstention_engagement"].items == (1.0, 1.0, 0.0, 0.0)
    assert got["abstention_accuracy"].value == 0.5
    assert got["abstention_distance"].value == pytest.approx(math.hypot(0.5, 0.5))
    with pytest.raises(DataError, match=r"abstention, row 0 requires the field 'answer' or a verifier"):
        list(Abstention()(subject, [{"prompt": "a"}], MeasureContext()))
