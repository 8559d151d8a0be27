from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from luthier.core.errors import Refused
from luthier.objectives.contrastive.gist import GIST, blocks, gist, kept
from tests.objectives.pair_vectors import F64, loss, terms, vectors
from tests.tolerance import same


def cos(a, b):
    return (a @ b / (a.norm() * b.norm())).item()


@pytest.mark.parametrize("strategy", ["absolute", "relative"])
def test_equals_the_loop(strategy):
    q, p, n, gq, gp, gn = vectors(6)
    want = []
    for i in range(5):
        truth = cos(gq[i], gp[i])
        edge = truth - (0.1 if strategy == "absolute" else 0.1 * abs(truth))
        total = math.exp(cos(q[i], p[i]) / 0.3)
        for j in range(5):
            for mine, guide, self_too in (
                ((q[i], p[j]), (gq[i], gp[j]), False),
                ((q[i], q[j]), (gq[i], gq[j]), False),
                ((p[i], p[j]), (gp[i], gp[j]), False),
                ((q[i], n[j]), (gq[i], gn[j]), True),
            ):
                if (j != i or self_too) and cos(*guide) <= edge:
                    total += math.exp(cos(*mine) / 0.3)
        want.append(math.log(total) - cos(q[i], p[i]) / 0.3)
    same(gist(q, p, gq, gp, n, gn, 0.3, 0.1, strategy), torch.tensor(want, dtype=F64))


def test_a_guide_that_drops_nothing_gives_info_nce_over_three_blocks():
    q, p = vectors(rows=4)
    guide = torch.eye(4, dtype=F64)
    every = blocks(q, p, None)
    scores = (
        torch.cat([every[0], *(b.masked_fill(torch.eye(4, dtype=torch.bool), -torch.inf) for b in every[1:])], 1) / 0.05
    )
    same(
        gist(q, p, guide, guide, temperature=0.05),
        torch.nn.functional.cross_entropy(scores, torch.arange(4), reduction="none"),
    )


def test_a_guide_that_drops_everything_gives_zero():
    q, p = vectors(rows=3)
    guide = torch.ones(3, 2, dtype=F64)
    same(gist(q, p, guide, -guide + torch.tensor([[0.0, 3.0]], dtype=F64), margin=2.0), torch.zeros(3, dtype=F64))


def gradient_of_copy(margin):
    """Gradient of row 0's loss by the vectors of row 1, which the guide takes for a copy of row 0."""
    q, p = (v.requires_grad_() for v in vectors(rows=3))
    gq, gp = torch.eye(3, dtype=F64), torch.eye(3, dtype=F64) + 0.2
    gq[1], gp[1] = gq[0], gp[0]
    grads = torch.autograd.grad(gist(q, p, gq, gp, margin=margin)[0], (q, p))
    return torch.stack([g[1].norm() for g in grads])


def test_a_copy_gets_exactly_no_gradient_with_a_margin_and_ties_stay_without():
    assert gradient_of_copy(1e-6).tolist() == [0.0, 0.0]
    assert gradient_of_copy(0.0)[1] > 0


def test_a_text_beside_itself_is_never_a_negative():
    guide = torch.eye(3, dtype=F64)
    stay = kept(blocks(guide, guide, None))
    assert stay[0].diagonal().all()
    assert not stay[1].diagonal().any() and not stay[2].diagonal().any()


@pytest.mark.parity
@pytest.mark.parametrize("parts", [2, 3])
@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.0), ("absolute", 0.2), ("relative", 0.3)])
def test_equals_sentence_transformers_with_gradient(monkeypatch, parts, strategy, margin):
    module = pytest.importorskip("sentence_transformers.sentence_transformer.losses.gist_embed")
    own, guide = vectors(parts), vectors(parts, width=6, seed=1)
    leaves = [v.clone().requires_grad_() for v in own]
    monkeypatch.setattr(module, "embed_columns", lambda model, features: list(model))
    peer = SimpleNamespace(model=leaves, guide=guide, must_retokenize=False, gather_across_devices=False, temperature=0.05,
                           margin=margin, margin_strategy=strategy, contrast_anchors=True, contrast_positives=True,
                           cross_entropy_loss=torch.nn.CrossEntropyLoss())  # fmt: skip
    peer.sim_matrix = lambda a, b: torch.nn.functional.cosine_similarity(a[:, None], b[None], dim=-1)
    theirs = module.GISTEmbedLoss.forward(peer, [], None)
    mine = [v.clone().requires_grad_() for v in own]
    columns = dict(zip(("guide_query", "guide_positive", "guide_negative"), guide, strict=False))
    ours = loss(GIST(temperature=0.05, margin=margin, strategy=strategy), mine, **columns)
    same(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, mine), torch.autograd.grad(theirs, leaves), strict=True):
        same(a, b)


def test_rows_without_a_guide_say_what_to_add():
    with pytest.raises(Refused, match=r"guide_query.*embedder: minilm"):
        terms(GIST(), vectors())
