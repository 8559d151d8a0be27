"""trajectory_balance: loops, the balanced distribution, invariance, copg, and the formula of the released trainer."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.objectives.policy.copg import CoPG
from luthier.objectives.policy.trajectory_balance import TrajectoryBalance, log_reward, log_variance, trajectory_balance
from tests.objectives.contract import F64, loss, random_signals, run
from tests.tolerance import same

GROUP = torch.tensor([4, 4, 7, 7, 4, 7])


def drawn(seed=0):
    return torch.randn(2, 6, dtype=F64, generator=torch.Generator().manual_seed(seed)).unbind(0)


def signals():
    s = random_signals("group", rows=6)
    return {**s, "reward": (drawn(2)[0],), "group": (GROUP,)}


def test_equals_the_loop():
    logp, target = drawn()
    want = []
    for i in range(6):
        rows = [j for j in range(6) if GROUP[j] == GROUP[i]]
        log_z = sum((target[j] - logp[j]).item() for j in rows) / len(rows)
        want.append((log_z + logp[i].item() - target[i].item()) ** 2)
    same(log_variance(logp, target, GROUP), torch.tensor(want, dtype=F64))


def test_zero_with_zero_gradient_where_probabilities_follow_the_reward():
    reward = torch.tensor([1.0, 5.0, 2.0, 0.5], dtype=F64)
    logits = reward.log().requires_grad_()
    for value in (trajectory_balance(logits.log_softmax(0), reward.log(), reward.sum().log()),
                  log_variance(logits.log_softmax(0), reward.log(), torch.zeros(4))):  # fmt: skip
        same(value, torch.zeros(4, dtype=F64))
        same(torch.autograd.grad(value.sum(), logits)[0], torch.zeros(4, dtype=F64))
    other = torch.tensor([1.0, 5.0, 2.0, 0.6], dtype=F64)
    assert log_variance(logits.log_softmax(0), other.log(), torch.zeros(4)).sum() > 0.01


def test_a_constant_in_log_r_or_a_factor_of_r_changes_nothing():
    logp, target = drawn()
    same(log_variance(logp, target + 3.7, GROUP), log_variance(logp, target, GROUP))
    plain = target.exp()
    same(log_variance(logp, log_reward(5 * plain, 0.5, "plain"), GROUP),
         log_variance(logp, log_reward(plain, 0.5, "plain"), GROUP))  # fmt: skip


def test_it_is_the_balance_loss_at_the_best_log_z_of_each_group():
    logp, target = drawn()
    for g in (4, 7):
        rows = torch.eq(GROUP, g)
        log_z = torch.zeros((), dtype=F64, requires_grad=True)
        search = torch.optim.LBFGS([log_z], tolerance_grad=1e-14, line_search_fn="strong_wolfe")

        def closure(rows=rows, log_z=log_z, search=search):
            search.zero_grad()
            value = trajectory_balance(logp[rows], target[rows], log_z).sum()
            value.backward()
            return value

        search.step(closure)
        same(trajectory_balance(logp[rows], target[rows], log_z.detach()), log_variance(logp, target, GROUP)[rows])


def test_no_gradient_through_the_mean_is_no_loss_and_equals_the_released_formula():
    """The released trainer takes the mean of (scores - scores.mean())^2 with scores = log p - log R, gradient and all."""
    logp, target = drawn()
    logp.requires_grad_()
    alone = torch.zeros(6)
    scores = logp - target
    theirs = ((scores - scores.mean()) ** 2).mean()
    ours = log_variance(logp, target, alone).mean()
    same(ours, theirs)
    same(torch.autograd.grad(ours, logp)[0], torch.autograd.grad(theirs, logp)[0])


def test_with_the_reference_it_has_the_gradient_of_copg():
    s, beta = signals(), 0.4
    leaf = s["token_logp"][0].clone().requires_grad_()
    s["token_logp"] = (leaf,)
    ours = loss([run(TrajectoryBalance(beta=beta, reference=True), s, "group")])
    other = loss([run(CoPG(beta=beta), s, "group")])
    factor = 2 / 3 / beta  # (n - 1) / n / beta with n = 3
    same(torch.autograd.grad(ours, leaf)[0], factor * torch.autograd.grad(other, leaf)[0])


def test_plain_rewards_have_a_floor_and_are_tempered():
    got = log_reward(torch.tensor([0.0, 4.0], dtype=F64), 2.0, "plain", 0.01)
    same(got, torch.tensor([math.log(0.01) / 2, math.log(4) / 2], dtype=F64))


@pytest.mark.parametrize("objective", [TrajectoryBalance(), TrajectoryBalance(beta=0.3, reference=True)], ids=repr)
def test_splitting_between_groups_changes_nothing_and_untrained_tokens_have_no_part(objective):
    s = {k: tuple(x[torch.tensor([0, 1, 4, 2, 3, 5])] for x in v) for k, v in signals().items()}
    whole = loss([run(objective, s, "group")])
    parts = [{k: tuple(x[c] for x in v) for k, v in s.items()} for c in (slice(0, 3), slice(3, 6))]
    same(loss([run(objective, p, "group") for p in parts]), whole)
    mask = s["token_mask"][0]
    spoiled = {**s, "token_logp": (torch.where(mask == 0, s["token_logp"][0] - 7.5, s["token_logp"][0]),)}
    same(loss([run(objective, spoiled, "group")]), whole)


def test_it_asks_for_the_reference_only_where_it_is_used():
    assert "ref_logp" not in TrajectoryBalance().needs.signals
    assert "ref_logp" in TrajectoryBalance(reference=True).needs.signals
