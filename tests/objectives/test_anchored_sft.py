"""anchored_sft: loops over the vocabulary, its limits, the authors' formula, and the contract of every objective."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from luthier.objectives.supervised.anchored_sft import AnchoredSFT, anchor
from luthier.objectives.supervised.dft import DFT
from luthier.objectives.supervised.nll import NLL
from luthier.ops.divergence import kl_of_logits, token_kl
from tests.objectives import contract
from tests.objectives.contract import F64, check_any_split, check_masked_tokens_have_no_part, loss, random_signals, run
from tests.tolerance import same


def with_logits(kind="text", rows=5, width=7, seed=0, words=6):
    """Signals that come from logits: log-probs of chosen words under policy and reference."""
    g = torch.Generator().manual_seed(seed + 1)
    s = dict(random_signals(kind, rows, width, seed))
    masks = s["token_mask"]
    target = [torch.randint(words, m.shape, generator=g) for m in masks]
    for name in ("", "ref_"):
        z = tuple(torch.randn(*m.shape, words, generator=g, dtype=F64) for m in masks)
        s[f"{name}logits"] = z
        s[f"{name}token_logp"] = tuple(
            x.log_softmax(-1).gather(-1, t[..., None])[..., 0] * m for x, t, m in zip(z, target, masks, strict=True)
        )
    s["target"] = tuple(target)
    return s


def slow_kl(p, q):
    p, q = ([math.exp(v) for v in row] for row in (p, q))
    p, q = [v / sum(p) for v in p], [v / sum(q) for v in q]
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("weighting", ["probability", "none"])
def test_equals_the_loop_over_the_vocabulary(weighting, direction):
    s = with_logits()
    z, q, logp, mask = (s[k][0] for k in ("logits", "ref_logits", "token_logp", "token_mask"))
    total, count = 0.0, 0
    for i in range(5):
        for t in range(7):
            if mask[i, t]:
                pair = (q[i, t].tolist(), z[i, t].tolist())
                kl = slow_kl(*(pair if direction == "forward" else pair[::-1]))
                weight = math.exp(logp[i, t]) if weighting == "probability" else 1.0
                total += -weight * logp[i, t].item() + 0.3 * kl
                count += 1
    got = loss([run(AnchoredSFT(strength=0.3, weighting=weighting, direction=direction), s)])
    same(got, torch.tensor(total / count, dtype=F64))


def test_equals_the_authors_script():
    """F.kl_div of the policy's log-softmax and the reference's softmax, summed over words, beside the weighted loss."""
    s = with_logits()
    z, q, target, mask = (s[k][0] for k in ("logits", "ref_logits", "target", "token_mask"))
    valid = mask.flatten() != 0
    z, q, target = z.flatten(0, 1), q.flatten(0, 1), target.flatten()
    own = F.cross_entropy(z, target, reduction="none")
    p = z.softmax(-1).gather(1, target[:, None])[:, 0]
    kl = F.kl_div(z.log_softmax(-1), q.softmax(-1), reduction="none").sum(-1)
    same(loss([run(AnchoredSFT(strength=0.05), s)]), (own * p + 0.05 * kl)[valid].sum() / valid.sum())


@pytest.mark.parametrize(("weighting", "plain"), [("probability", DFT()), ("none", NLL())])
def test_strength_zero_is_the_plain_loss_and_asks_for_no_reference(weighting, plain):
    s = with_logits()
    bare = AnchoredSFT(strength=0, weighting=weighting)
    same(loss([run(bare, s)]), loss([run(plain, s)]))
    assert bare.needs == plain.needs
    assert set(AnchoredSFT().needs.signals) == {"token_logp", "token_mask", "logits", "ref_logits"}


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_at_the_reference_value_and_gradient_of_the_anchor_are_zero(direction):
    z = torch.randn(2, 3, 5, dtype=F64, requires_grad=True)
    value = anchor(z, z.detach().clone(), torch.ones(2, 3), direction)
    (gradient,) = torch.autograd.grad(value.sum(), z)
    same(value, torch.zeros(2, 3, dtype=F64))
    same(gradient, torch.zeros_like(z))


def test_forward_gradient_is_p_minus_q_and_masked_tokens_get_none():
    z, q = torch.randn(2, 2, 3, 5, dtype=F64)
    z.requires_grad_()
    mask = torch.tensor([[0, 1, 1], [0, 1, 0]])
    (gradient,) = torch.autograd.grad(anchor(z, q, mask, "forward").sum(), z)
    same(gradient, (z.softmax(-1) - q.softmax(-1)).detach() * mask[..., None])


def test_divergence_keeps_impossible_words_out():
    p = torch.tensor([[[5.0, 0.0], [0.0, -math.inf]]])
    same(token_kl(p, torch.zeros(1, 2, 2), torch.tensor([[0, 1]])), torch.tensor([[0.0, math.log(2)]]))
    assert kl_of_logits(torch.zeros(2), torch.tensor([0.0, -math.inf])).item() == math.inf
    z = torch.tensor([0.0, -math.inf], requires_grad=True)
    kl_of_logits(z, torch.zeros(2)).backward()
    assert torch.isfinite(z.grad).all()


CASES = [(AnchoredSFT(), "text"), (AnchoredSFT(per="sequence", direction="reverse"), "text"),
         (AnchoredSFT(weighting="none", on="chosen"), "preference")]  # fmt: skip


@pytest.mark.parametrize(("objective", "kind"), CASES, ids=repr)
def test_contract(objective, kind, monkeypatch):
    monkeypatch.setattr(contract, "random_signals", with_logits)
    check_any_split(objective, kind)
    check_masked_tokens_have_no_part(objective, kind)
