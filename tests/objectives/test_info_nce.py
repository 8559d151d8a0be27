from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import Refused
from luthier.objectives.contrastive.info_nce import InfoNCE, info_nce
from tests.objectives.pair_vectors import F64, loss, terms, vectors
from tests.tolerance import same


def cos(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("parts", [2, 3])
def test_equals_the_loop(parts):
    q, p, *n = vectors(parts)
    candidates = [*p, *(n[0] if n else [])]
    want = []
    for i in range(len(q)):
        scores = [math.exp(cos(q[i], c) / 0.2) for c in candidates]
        want.append(-math.log(scores[i] / sum(scores)))
    same(info_nce(q, p, *n, temperature=0.2), torch.tensor(want, dtype=F64))


def test_equal_vectors_give_the_logarithm_of_the_candidates():
    q = torch.ones(4, 3, dtype=F64)
    same(info_nce(q, q), torch.full((4,), math.log(4), dtype=F64))
    same(info_nce(q, q, q), torch.full((4,), math.log(8), dtype=F64))


def test_symmetric_does_not_tell_queries_from_positives():
    q, p = vectors()
    same(info_nce(q, p, symmetric=True), info_nce(p, q, symmetric=True))


def test_the_length_of_vectors_says_nothing():
    q, p = vectors()
    same(info_nce(3 * q, 0.1 * p), info_nce(q, p))


@pytest.mark.parity
@pytest.mark.parametrize("symmetric", [False, True])
def test_equals_sentence_transformers(symmetric):
    losses = pytest.importorskip("sentence_transformers.losses")
    q, p = vectors()
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"} if symmetric else {}
    theirs = losses.MultipleNegativesRankingLoss(model=None, scale=20.0, **both).compute_loss_from_embeddings(
        [q, p], None
    )
    same(loss(InfoNCE(symmetric=symmetric), (q, p)), theirs)


def test_a_batch_of_one_row_is_refused():
    with pytest.raises(Refused, match=r"at least two rows.*train\.batch"):
        terms(InfoNCE(), vectors(rows=1))
