"""bc_anchor: loops over the vocabulary of old rows, zero at the start, and any split of the batch."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core import Batch, Signals
from luthier.regularise.forgetting._old import companions
from luthier.regularise.forgetting.bc_anchor import BCAnchor
from tests.regularise.old import gradients, loop_with
from tests.tolerance import same


def test_the_term_is_the_mean_kl_from_the_start_over_tokens_of_old_rows():
    loop = loop_with(BCAnchor(strength=0.7, share=1.0), moved=0.05)
    (batch,), ctx, old = loop.job.feed.micros(0), loop.context(0), loop.job.handles["retain"]
    policy, total, count = loop.job.policy, 0.0, 0
    model = policy.view.module.model
    for row in companions(batch, ctx, len(old), 1.0):
        one = old.batch([row], 0).inputs
        log_p = model(one["input_ids"]).logits[0].log_softmax(-1)
        with policy.attached.disabled():
            log_q = model(one["input_ids"]).logits[0].log_softmax(-1)
        for t in range(1, log_p.shape[0]):
            if one["loss_mask"][0, t]:
                pairs = zip(log_q[t - 1].tolist(), log_p[t - 1].tolist(), strict=True)
                total += sum(math.exp(q) * (q - p) for q, p in pairs)
                count += 1
    plain = loop_with(moved=0.05)
    assert gradients(loop)[0] - gradients(plain)[0] == pytest.approx(0.7 * total / count, rel=1e-9)
    assert total / count > 0.01


def test_at_the_start_and_at_strength_zero_it_changes_nothing():
    want, g_want = gradients(loop_with())
    got, g_got = gradients(loop_with(BCAnchor(strength=5.0)))
    assert got == pytest.approx(want, rel=1e-12)
    for k in g_want:
        same(g_got[k], g_want[k])
    want, g_want = gradients(loop_with(moved=0.05))
    got, g_got = gradients(loop_with(BCAnchor(strength=0), moved=0.05))
    assert got == want
    for k in g_want:
        same(g_got[k], g_want[k])


@pytest.mark.parametrize("how", [{"micro": 1}, {"micro": 3}, {"width": 30}], ids=str)
def test_any_split_of_the_new_rows_gives_one_gradient(how):
    want, g_want = gradients(loop_with(BCAnchor(share=0.5), moved=0.05))
    got, g_got = gradients(loop_with(BCAnchor(share=0.5), moved=0.05, **how))
    assert got == pytest.approx(want, rel=1e-10)
    for k in g_want:
        same(g_got[k], g_want[k])


def test_the_gradient_by_the_logits_is_p_minus_the_starts():
    z, q = torch.randn(2, 1, 3, 5, dtype=torch.float64)
    z.requires_grad_()
    mask = torch.tensor([[0.0, 1.0, 1.0]])
    s = Signals({"logits": (z,), "ref_logits": (q,), "token_mask": (mask,)})
    (gradient,) = torch.autograd.grad(BCAnchor().values(s).sum(), z)
    same(gradient, (z.softmax(-1) - q.softmax(-1)).detach() * mask[..., None])


def test_old_batches_live_for_their_step():
    """A batch that is made anew must not be taken for another one whose memory it got."""
    old = loop_with().job.handles["retain"]
    first = old.batch([1, 2], 0)
    assert isinstance(first, Batch)
    assert old.batch([1, 2], 0) is first
    assert old.batch([2, 1], 0) is not first
    assert old.batch([1, 2], 1) is not first
