"""cream: the loop, dpo at its ends and in between, and the released formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from luthier.core.errors import Refused
from luthier.objectives.preference.cream import CREAM, cream
from luthier.objectives.preference.dpo import DPO, dpo
from tests.objectives.contract import F64, loss, random_signals, run
from tests.tolerance import same

Z, C = torch.randn(2, 6, dtype=F64, generator=torch.Generator().manual_seed(0)).unbind(0)
C = C.sigmoid()


def given(value):
    return {**random_signals("preference"), "consistency": (torch.full((5,), value, dtype=F64),)}


def test_equals_the_loop_and_the_released_formula():
    want = [
        c * math.log1p(math.exp(-z)) + (1 - c) * math.log1p(math.exp(z))
        for z, c in zip(Z.tolist(), C.tolist(), strict=True)
    ]
    same(cream(Z, C), torch.tensor(want, dtype=F64))
    same(cream(Z, C), C * -F.logsigmoid(Z) + (1 - C) * -F.logsigmoid(-Z))


def test_full_trust_is_dpo_and_none_is_dpo_with_the_pair_swapped():
    s = given(1.0)
    same(run(CREAM(beta=0.3), s, "preference")[0].values, run(DPO(beta=0.3), s, "preference")[0].values)
    swapped = {k: v[::-1] if len(v) == 2 else v for k, v in s.items()}
    same(run(CREAM(beta=0.3), given(0.0), "preference")[0].values, run(DPO(beta=0.3), swapped, "preference")[0].values)


def test_half_trust_is_at_rest_without_a_margin():
    z = torch.zeros(3, dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(cream(z, torch.full((3,), 0.5, dtype=F64)).sum(), z)
    same(grad, torch.zeros(3, dtype=F64))


def test_one_consistency_is_smoothing():
    a, b, ra, rb = torch.randn(4, 5, dtype=F64).unbind(0)
    z = 0.2 * ((a - ra) - (b - rb))
    same(cream(z, torch.full((5,), 0.8, dtype=F64)), dpo(a, b, ra, rb, 0.2, 0.2))


def test_any_split_gives_one_loss_and_untrained_tokens_have_no_part():
    s = {**given(0.0), "consistency": (torch.linspace(0, 1, 5, dtype=F64),)}
    whole = loss([run(CREAM(), s, "preference")])
    parts = [{k: tuple(x[i : i + 1] for x in v) for k, v in s.items()} for i in range(5)]
    same(loss([run(CREAM(), p, "preference") for p in parts]), whole)
    spoiled = {
        **s,
        "token_logp": tuple(
            torch.where(m == 0, x - 7, x) for x, m in zip(s["token_logp"], s["token_mask"], strict=True)
        ),
    }
    same(loss([run(CREAM(), spoiled, "preference")]), whole)


def test_without_the_column_it_says_what_is_missing():
    with pytest.raises(Refused, match=r"cream requires the column 'consistency' in every row \(from 0 to 1\)"):
        run(CREAM(), random_signals("preference"), "preference")
