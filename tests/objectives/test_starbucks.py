from __future__ import annotations

import pytest
import torch

from luthier.core.errors import ConfigError, Refused
from luthier.objectives.contrastive.info_nce import InfoNCE
from luthier.objectives.contrastive.starbucks import Starbucks, alignment
from tests.objectives.pair_vectors import F64, loss, terms
from tests.tolerance import same


def deep(rows=4, layers=3, width=6):
    return tuple(torch.randn(rows, layers + 1, width, dtype=F64) for _ in range(2))


def test_equals_the_loop():
    q, p = deep()
    want = loss(InfoNCE(), (q[:, 3], p[:, 3]))
    for layer, dim in ((1, 2), (2, 5)):
        a, b = q[:, layer, :dim], p[:, layer, :dim]
        want = want + loss(InfoNCE(), (a, b))
        kl = 0.0
        for full, small in ((q[:, 3, :dim], a), (p[:, 3, :dim], b)):
            for i in range(len(full)):
                u, v = full[i].softmax(0), small[i].softmax(0)
                kl += sum((u[k] * (u[k] / v[k]).log()).item() for k in range(dim))
        want = want + 0.7 * kl / (2 * len(q))
    same(loss(Starbucks(layers=(1, 2, 3), dims=(2, 5, 6), kl=0.7), layer_embedding=(q, p)), want)


def test_the_kl_equals_torch_over_both_parts():
    q, p = deep()
    ours = terms(Starbucks(layers=(1,), dims=(4,)), layer_embedding=(q, p))[-1]
    small, full = (torch.cat([q[:, k, :4], p[:, k, :4]]) for k in (1, 3))
    want = torch.nn.functional.kl_div(small.log_softmax(-1), full.softmax(-1), reduction="batchmean")
    same(ours.sums()[0] / ours.sums()[1], want)
    assert ours.scale == 0.3


@pytest.mark.parametrize("kl", [0.0, 5.0])
def test_the_full_model_alone_is_the_inner_objective(kl):
    q, p = deep()
    same(loss(Starbucks(layers=(3,), dims=(6,), kl=kl), layer_embedding=(q, p)), loss(InfoNCE(), (q[:, 3], p[:, 3])))


def test_a_layer_equal_to_the_last_has_no_kl():
    q, p = (x.clone() for x in deep())
    for x in (q, p):
        x[:, 1, :4] = x[:, 3, :4]
    same(terms(Starbucks(layers=(1,), dims=(4,)), layer_embedding=(q, p))[-1].values, torch.zeros(4, dtype=F64))
    same(alignment(q[:, 1], q[:, 1] + 3.0), torch.zeros(4, dtype=F64))


def test_the_needs_are_the_inner_ones_and_all_layers():
    assert set(Starbucks().needs.signals) == {"embedding", "layer_embedding"}
    assert Starbucks().needs.batch == ("pairs",)


@pytest.mark.parametrize(
    "bad", [{"layers": (1, 2), "dims": (4,)}, {"layers": (), "dims": ()}, {"layers": (0,), "dims": (4,)}]
)
def test_ladders_that_cannot_be_are_refused(bad):
    with pytest.raises(ConfigError, match="as many layers as dims"):
        Starbucks(**bad)


def test_an_encoder_that_is_too_small_is_refused():
    with pytest.raises(Refused, match=r"at least 4 layers; got 3"):
        terms(Starbucks(layers=(4,), dims=(2,)), layer_embedding=deep())
    with pytest.raises(Refused, match=r"at least 9 coordinates"):
        terms(Starbucks(layers=(1,), dims=(9,)), layer_embedding=deep())
