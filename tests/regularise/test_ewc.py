"""ewc: Fisher information by hand and on average, the penalty's gradient, l2_base as its limit, state."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from luthier.core import Context
from luthier.core.errors import CheckpointError, Refused
from luthier.regularise.anchor.l2_base import L2Base
from luthier.regularise.forgetting.ewc import EWC, mean_squared_scores
from tests.regularise.old import gradients, loop_with
from tests.tolerance import same

F64 = torch.float64


def test_fisher_is_the_mean_squared_score_of_each_row():
    w = torch.randn(4, dtype=F64, requires_grad=True)
    x = torch.randn(6, 4, dtype=F64)
    (got,) = mean_squared_scores(lambda i: (x[i] * w.sin()).sum(), [w], 6)
    want = [sum((x[i, j].item() * torch.cos(w[j]).item()) ** 2 for i in range(6)) / 6 for j in range(4)]
    same(got, torch.tensor(want, dtype=F64))


def test_the_rows_own_words_give_the_empirical_fisher_of_the_model():
    loop = loop_with(EWC(labels="data", samples=99))
    loop._point("start", loop.context(0))
    (hook,), old = loop.job.hooks, loop.job.handles["retain"]
    want = {k: torch.zeros_like(p) for k, p in loop.named}
    for row in range(len(old)):
        got = torch.autograd.grad(old.signals(old.batch([row], 0), ("logp",))["logp"].sum(), loop.parameters)
        for (k, _), g in zip(loop.named, got, strict=True):
            want[k] += g**2 / len(old)
    for k, f in hook.state()["fisher"].items():
        same(f, want[k])


def test_drawn_words_give_the_fisher_information_on_average():
    """One token, softmax of its logits: the information about logit i is p_i (1 - p_i)."""
    logits = torch.tensor([1.0, 0.0, -1.0], dtype=F64, requires_grad=True)
    g = torch.Generator().manual_seed(0)

    def score(_):
        from luthier.core import Signals
        from luthier.regularise.forgetting.ewc import score as of

        s = Signals({"logits": (logits[None, None],), "token_mask": (torch.ones(1, 1),)})
        return of(s, "model", g)

    (got,) = mean_squared_scores(score, [logits], 4000)
    p = logits.detach().softmax(-1)
    assert (got - p * (1 - p)).abs().max() < 0.02


def test_the_added_gradient_is_that_of_the_penalty():
    plain, moved = loop_with(moved=0.05), loop_with(EWC(strength=3.0, samples=5), moved=0.05)
    _, g_plain = gradients(plain)
    (hook,) = moved.job.hooks
    moved._point("start", moved.context(0))
    state = hook.state()
    with torch.no_grad():
        for _, p in moved.named:
            p.sub_(0.02)
    _, want = _gradients_at(moved, hook, state)
    penalty = sum((3.0 * state["fisher"][k] * (p - state["start"][k]) ** 2).sum() for k, p in moved.named)
    by_hand = torch.autograd.grad(penalty, moved.parameters)
    for (k, _), g in zip(moved.named, by_hand, strict=True):
        same(want[k], g)
    assert g_plain.keys() == want.keys()


def _gradients_at(loop, hook, state):
    """What the hook adds to gradients of zero."""
    hook.load(state)
    for p in loop.parameters:
        p.grad = torch.zeros_like(p)
    ctx = loop.context(1)
    hook.gradients(loop.named, ctx)
    assert ctx.changed == len(loop.named)
    return None, {k: p.grad.clone() for k, p in loop.named}


def test_fisher_one_half_everywhere_is_l2_base():
    module = nn.Linear(3, 2).double()
    start = {k: p.detach().clone() for k, p in module.named_parameters()}
    hook, plain = EWC(strength=0.7), L2Base(strength=0.7)
    hook.load({"start": start, "fisher": {k: torch.full_like(v, 0.5) for k, v in start.items()}})
    plain.load({"start": start})
    out = []
    for one in (hook, plain):
        for p in module.parameters():
            p.data.add_(0.1) if one is hook else None
            p.grad = torch.ones_like(p)
        one.gradients(list(module.named_parameters()), Context(1, 3, 0))
        out.append([p.grad.clone() for p in module.parameters()])
    for a, b in zip(*out, strict=True):
        same(a, b)


@pytest.mark.parametrize(("hook", "moved"), [(EWC(strength=9.0, samples=4), 0.0), (EWC(strength=0, samples=4), 0.05)])
def test_at_the_start_and_at_strength_zero_the_gradient_is_unchanged(hook, moved):
    (_, want), (_, got) = gradients(loop_with(moved=moved)), gradients(loop_with(hook, moved=moved))
    for k in want:
        same(got[k], want[k])


def test_state_round_trips_and_a_missing_start_is_named():
    loop = loop_with(EWC(samples=3))
    loop._point("start", loop.context(0))
    (hook,), other = loop.job.hooks, EWC(samples=3)
    with pytest.raises(CheckpointError, match="the start of every trained weight; got none of"):
        gradients_of(other, loop)
    other.load(hook.state())
    for part in ("start", "fisher"):
        for k, v in hook.state()[part].items():
            same(other.state()[part][k], v)


def gradients_of(hook, loop):
    for p in loop.parameters:
        p.grad = torch.zeros_like(p)
    hook.gradients(loop.named, loop.context(1))


def test_the_estimate_leaves_the_model_as_it_was():
    loop = loop_with(EWC(samples=3))
    loop.job.policy.view.wrapped.train()
    loop._point("start", loop.context(0))
    assert loop.job.policy.view.module.training
    assert all(p.grad is None for p in loop.parameters)


def test_without_old_rows_it_says_so():
    loop = loop_with(EWC())
    loop.job.handles = {}
    with pytest.raises(Refused, match="ewc requires old rows to retain"):
        loop._point("start", loop.context(0))
