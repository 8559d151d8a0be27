from __future__ import annotations

import pytest

from luthier.core.errors import ConfigError, Refused
from luthier.objectives.contrastive.gist import GIST
from luthier.objectives.contrastive.info_nce import InfoNCE
from luthier.objectives.contrastive.matryoshka import Matryoshka
from luthier.objectives.supervised.nll import NLL
from tests.objectives.pair_vectors import loss, terms, vectors
from tests.tolerance import same


def test_equals_the_sum_over_cut_vectors():
    q, p = vectors()
    want = sum(w * loss(InfoNCE(), (q[:, :d], p[:, :d])) for d, w in ((8, 1.0), (4, 0.5), (1, 2.0)))
    same(loss(Matryoshka(dims=(8, 4, 1), weights=(1.0, 0.5, 2.0)), (q, p)), want)


def test_the_full_dim_alone_is_the_inner_objective_and_equal_dims_multiply_it():
    pair = vectors()
    same(loss(Matryoshka(dims=(8,)), pair), loss(InfoNCE(), pair))
    same(loss(Matryoshka(dims=(8, 8, 8)), pair), 3 * loss(InfoNCE(), pair))


def test_it_wraps_gist_whose_guide_stays_whole():
    q, p, gq, gp = vectors(4)
    one = Matryoshka(inner=GIST(), dims=(8, 3))
    guide = {"guide_query": gq, "guide_positive": gp}
    assert set(one.needs.signals) == {"embedding", *guide}
    same(loss(one, (q, p), **guide), loss(GIST(), (q, p), **guide) + loss(GIST(), (q[:, :3], p[:, :3]), **guide))


@pytest.mark.parity
def test_equals_sentence_transformers(monkeypatch):
    module = pytest.importorskip("sentence_transformers.sentence_transformer.losses.matryoshka")
    q, p = vectors()
    cut = [[module.shrink(v, d) for v in (q, p)] for d in (8, 4)]
    peer = pytest.importorskip("sentence_transformers.losses").MultipleNegativesRankingLoss(model=None, scale=20.0)
    same(loss(Matryoshka(dims=(8, 4)), (q, p)), sum(peer.compute_loss_from_embeddings(c, None) for c in cut))


@pytest.mark.parametrize("bad", [{"dims": ()}, {"dims": (0,)}, {"dims": (4, 2), "weights": (1.0,)}, {"inner": NLL()}])
def test_settings_that_cannot_be_are_refused(bad):
    with pytest.raises(ConfigError, match="matryoshka requires"):
        Matryoshka(**bad)


def test_vectors_that_are_too_short_are_refused():
    with pytest.raises(Refused, match=r"at least 9 coordinates; got 8"):
        terms(Matryoshka(dims=(9,)), vectors())
