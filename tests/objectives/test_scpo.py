"""scpo: the loop, dpo and nll as its ends, weights of zero."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import Refused
from luthier.objectives.preference.dpo import DPO
from luthier.objectives.preference.scpo import ScPO, weighted_dpo
from luthier.objectives.supervised.nll import NLL
from tests.objectives.contract import F64, loss, random_signals, run, value_and_gradient
from tests.tolerance import same


def given(*weights):
    return {**random_signals("preference"), "weight": (torch.tensor(weights or (0.1, 1.0, 0.5, 0.0, 0.25), dtype=F64),)}


def test_equals_the_loop():
    s, want = given(), 0.0
    for i in range(5):
        total = [sum(x[p][i, t].item() for t in range(7) if s["token_mask"][p][i, t]) for x in (s["token_logp"], s["ref_token_logp"])
                 for p in (0, 1)]  # fmt: skip
        margin = (total[0] - total[2]) - (total[1] - total[3])
        n, w = s["token_mask"][0][i].sum().item(), s["weight"][0][i].item()
        want += w * math.log1p(math.exp(-0.3 * margin)) - 0.7 * w / n * total[0]
    same(loss([run(ScPO(beta=0.3, alpha=0.7), s, "preference")]), torch.tensor(want / 5, dtype=F64))


def test_weight_one_without_imitation_is_dpo():
    s = given(1, 1, 1, 1, 1)
    (term,) = run(ScPO(beta=0.3, alpha=0), s, "preference")
    same(term.values, run(DPO(beta=0.3), s, "preference")[0].values)


def test_alpha_adds_weighted_nll_on_the_chosen():
    s = given(0.5, 0.5, 0.5, 0.5, 0.5)
    both, alone = (loss([run(ScPO(alpha=a), s, "preference")]) for a in (0.8, 0.0))
    same(both - alone, 0.8 * 0.5 * loss([run(NLL(on="chosen", per="sequence"), s, "preference")]))


def test_weight_zero_has_no_value_and_no_gradient():
    value, grads = value_and_gradient(ScPO(), given(0, 0, 0, 0, 0), "preference", [slice(0, 5)])
    same(value, torch.zeros((), dtype=F64))
    for g in grads:
        same(g, torch.zeros_like(g))
    same(weighted_dpo(torch.ones(1), torch.zeros(1)), torch.zeros(1))


def test_any_split_gives_one_loss():
    s = given()
    whole, want = value_and_gradient(ScPO(), s, "preference", [slice(0, 5)])
    value, got = value_and_gradient(ScPO(), s, "preference", [slice(0, 2), slice(2, 5)])
    same(value, whole)
    for a, b in zip(got, want, strict=True):
        same(a, b)


def test_without_weights_it_says_what_is_missing():
    with pytest.raises(Refused, match="scpo requires the column 'weight' in every row"):
        run(ScPO(), random_signals("preference"), "preference")
