"""kickstarting: loops over the vocabulary, its limits, and the contract of every objective."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from luthier.objectives.policy.kickstarting import Kickstarting
from tests.objectives.contract import F64, loss, run
from tests.objectives.test_anchored_sft import slow_kl, with_logits
from tests.tolerance import same


def test_equals_the_loop_and_torchs_kl_div():
    s = with_logits()
    z, q, mask = (s[k][0] for k in ("logits", "ref_logits", "token_mask"))
    values = [slow_kl(q[i, t].tolist(), z[i, t].tolist()) for i in range(5) for t in range(7) if mask[i, t]]
    got = loss([run(Kickstarting(), s)])
    same(got, torch.tensor(sum(values) / len(values), dtype=F64))
    inner = mask != 0
    theirs = F.kl_div(z[inner].log_softmax(-1), q[inner].log_softmax(-1), log_target=True, reduction="batchmean")
    same(got, theirs)


def test_at_the_reference_value_and_gradient_are_zero():
    s = with_logits()
    s["logits"] = tuple(z.clone().requires_grad_() for z in s["ref_logits"])
    value = loss([run(Kickstarting(), s)])
    (gradient,) = torch.autograd.grad(value, s["logits"])
    same(value.detach(), torch.zeros((), dtype=F64))
    same(gradient, torch.zeros_like(gradient))


def test_the_gradient_is_p_minus_the_starts_and_the_value_above_zero():
    s = with_logits()
    s["logits"] = tuple(z.requires_grad_() for z in s["logits"])
    (term,) = run(Kickstarting(), s)
    mask = s["token_mask"][0]
    assert (term.values[mask != 0] > 0).all()
    (gradient,) = torch.autograd.grad(term.sums()[0], s["logits"])
    same(gradient, (s["logits"][0].softmax(-1) - s["ref_logits"][0].softmax(-1)).detach() * mask[..., None])


CASES = [(Kickstarting(), "text"), (Kickstarting(per="sequence"), "text"), (Kickstarting(on="chosen"), "preference")]


def value_and_gradient(objective, s, kind, cuts):
    """Loss and its gradient by the logits, with the rows split at `cuts`."""
    s = {**s, "logits": tuple(z.detach().clone().requires_grad_() for z in s["logits"])}
    value = loss([run(objective, {k: tuple(x[c] for x in v) for k, v in s.items()}, kind) for c in cuts])
    grads = torch.autograd.grad(value, s["logits"], allow_unused=True)
    return value.detach(), [torch.zeros_like(z) if g is None else g for z, g in zip(s["logits"], grads, strict=True)]


@pytest.mark.parametrize(("objective", "kind"), CASES, ids=repr)
def test_any_split_gives_one_loss_and_masked_tokens_have_no_part(objective, kind):
    s = with_logits(kind)
    want, g_want = value_and_gradient(objective, s, kind, [slice(0, 5)])
    hidden = dict(s)
    for name in ("logits", "ref_logits"):
        hidden[name] = tuple(
            torch.where(m[..., None] == 0, 7.5 * z, z) for z, m in zip(s[name], s["token_mask"], strict=True)
        )
    tries = [(s, [slice(0, 2), slice(2, 5)]), (s, [slice(i, i + 1) for i in range(5)]), (hidden, [slice(0, 5)])]
    for values, cuts in tries:
        got, g_got = value_and_gradient(objective, values, kind, cuts)
        same(got, want)
        for a, b in zip(g_got, g_want, strict=True):
            same(a, b)
