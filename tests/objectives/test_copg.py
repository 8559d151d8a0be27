"""copg: loops over pairs, its exact limits, the optimum on a bandit, and groups against pairs."""

from __future__ import annotations

import pytest
import torch

from luthier.core import Batch, Signals
from luthier.core.errors import Refused
from luthier.lab.micro.bandit import Bandit, kl
from luthier.objectives.policy.copg import CoPG, copg
from luthier.objectives.preference._margin import square
from tests.objectives.contract import F64, check_masked_tokens_have_no_part, loss, random_signals, run
from tests.tolerance import same


def gradient(of, x):
    return torch.autograd.grad(of(x).sum(), x)[0]


def drawn():
    g = torch.Generator().manual_seed(3)
    return torch.randn(2, 6, dtype=F64, generator=g).unbind(0)


def test_gradient_is_that_of_the_square_and_values_differ_by_a_constant():
    gap, margin = drawn()
    margin.requires_grad_()
    same(gradient(lambda d: copg(gap, d, 0.3), margin), gradient(lambda d: (gap - 0.3 * d) ** 2 / 0.6, margin))
    same(copg(gap, margin, 0.3), (gap - 0.3 * margin) ** 2 / 0.6 - gap**2 / 0.6)


def test_swapping_the_answers_changes_nothing():
    gap, margin = drawn()
    same(copg(-gap, -margin, 0.3), copg(gap, margin, 0.3))


def test_one_gap_for_all_is_ipo_up_to_scale():
    _, margin = drawn()
    margin.requires_grad_()
    one = torch.full_like(margin, 1.7)
    same(gradient(lambda d: copg(one, d, 0.3), margin), 0.15 * gradient(lambda d: square(d, 1.7 / 0.3), margin))


def test_every_pair_is_at_rest_at_the_optimum_of_a_bandit():
    bandit, beta = Bandit.random(5, 0), 0.7
    logits = bandit.optimum(beta).log().requires_grad_()
    ahead = logits.log_softmax(0) - bandit.q.log()
    for a in range(5):
        for b in range(5):
            value = copg(bandit.reward[a] - bandit.reward[b], ahead[a] - ahead[b], beta)
            same(torch.autograd.grad(value, logits, retain_graph=True)[0], torch.zeros(5, dtype=F64))


def test_descent_from_any_behaviour_finds_the_optimum():
    """Each pair as often as a skewed behaviour policy draws it; the minimiser is pi_ref * exp(R / beta) / Z all the same."""
    bandit, beta = Bandit.random(5, 1), 0.5
    behaviour = torch.tensor([0.6, 0.2, 0.1, 0.07, 0.03], dtype=F64)
    weight = behaviour[:, None] * behaviour[None, :]
    theta = torch.zeros(5, dtype=F64, requires_grad=True)
    search = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-16,
                               line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        search.zero_grad()
        ahead = theta.log_softmax(0) - bandit.q.log()
        gap = bandit.reward[:, None] - bandit.reward[None, :]
        value = (weight * copg(gap, ahead[:, None] - ahead[None, :], beta)).sum()
        value.backward()
        return value

    search.step(closure)
    assert kl(bandit.optimum(beta), theta.detach().softmax(0)) < 1e-10


def group_signals():
    s = random_signals("group", rows=6)
    g = torch.Generator().manual_seed(5)
    s["reward"] = (torch.randn(6, dtype=F64, generator=g),)
    s["group"] = (torch.tensor([4, 4, 7, 7, 7, 4]),)
    return s


def ahead_of(s):
    mask = s["token_mask"][0]
    return ((s["token_logp"][0] - s["ref_token_logp"][0]) * mask).sum(-1)


def test_a_group_equals_the_loop_over_its_pairs():
    s = group_signals()
    d, r, group = ahead_of(s), s["reward"][0], s["group"][0]
    want = []
    for i in range(6):
        others = [j for j in range(6) if j != i and group[j] == group[i]]
        each = [-((r[i] - r[j]) - 0.2 * (d[i] - d[j])) * (d[i] - d[j]) for j in others]
        want.append(sum(each) / len(others))
    (term,) = run(CoPG(beta=0.4), s, "group")
    same(term.values, torch.stack(want))


def test_a_groups_gradient_is_that_of_its_variance():
    s = group_signals()
    d, r, group, beta = ahead_of(s).requires_grad_(), s["reward"][0], s["group"][0], 0.4
    spread = sum(beta * (d - r / beta)[group == g].var() for g in (4, 7))

    def mean_of_each(d):
        ones = torch.ones(6, 1, dtype=F64)
        given = Signals({"token_logp": (d[:, None],), "ref_token_logp": (0 * ones,), "token_mask": (ones,),
                         "reward": (r,), "group": (group,)})  # fmt: skip
        return CoPG(beta=beta)(Batch("group", {}), given).values / 3

    same(gradient(mean_of_each, d), torch.autograd.grad(spread, d)[0])


def test_splitting_between_groups_changes_nothing():
    s = group_signals()
    s = {k: tuple(x[torch.tensor([0, 1, 5, 2, 3, 4])] for x in v) for k, v in s.items()}
    whole = loss([run(CoPG(), s, "group")])
    parts = [{k: tuple(x[c] for x in v) for k, v in s.items()} for c in (slice(0, 3), slice(3, 6))]
    same(loss([run(CoPG(), p, "group") for p in parts]), whole)


def test_pairs_read_their_gap_and_say_so_without_it():
    s = random_signals("preference")
    mask = s["token_mask"]
    d = [((s["token_logp"][p] - s["ref_token_logp"][p]) * mask[p]).sum(-1) for p in (0, 1)]
    gap = torch.tensor([0.0, 1.0, -2.0, 0.5, 3.0], dtype=F64)
    (term,) = run(CoPG(beta=0.2), {**s, "gap": (gap,)}, "preference")
    same(term.values, -(gap - 0.1 * (d[0] - d[1])) * (d[0] - d[1]))
    with pytest.raises(Refused, match=r"copg requires the column 'gap' in every row \(reward of the chosen minus"):
        run(CoPG(), s, "preference")


def test_masked_tokens_have_no_part(monkeypatch):
    import tests.objectives.contract as contract

    monkeypatch.setattr(
        contract, "random_signals", lambda kind: {k: tuple(x[:5] for x in v) for k, v in group_signals().items()}
    )
    check_masked_tokens_have_no_part(CoPG(), "group")
