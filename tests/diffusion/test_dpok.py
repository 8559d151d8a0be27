"""dpok: torch's own KL of Gaussians, its limits, ddpo without the KL, and a real network."""

from __future__ import annotations

import pytest
import torch

from luthier.diffusion.align._trajectory import clean, group_walk, step_kl
from luthier.diffusion.align.ddpo import DDPO
from luthier.diffusion.align.dpok import DPOK, surplus
from luthier.diffusion.samplers._affine import mean_of
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.schedules.vp import VP
from tests.diffusion.align_parts import (
    F64,
    check_rows_are_independent,
    drawn,
    gradient,
    pair_of,
    real_step,
    terms_of,
    values_of,
)
from tests.tolerance import same

KIND = "image_prompts"
REWARD = lambda x, rows: x.flatten(1)[:, 0].sin()  # noqa: E731


def test_the_kl_of_the_walks_is_that_of_torchs_gaussians():
    policy, base = pair_of(VP(), "v")
    values = drawn(kind=KIND)
    got = terms_of(DPOK(steps=4, samples=2), values, {"policy": policy, "reference": base, "reward": REWARD}, KIND)[1]
    sampler = DDIM(eta=1.0)
    walk, _ = group_walk(policy, sampler, 4, values["noise"], values["uniform"][:, 7], None, 2)
    for i in range(5):
        total = 0.0
        for j in (2 * i, 2 * i + 1):
            for k in range(3):
                x, t = walk.states[k][j : j + 1], walk.grid[k : k + 1]
                move = sampler.move(policy.path, t, walk.grid[k + 1 : k + 2])
                sides = [torch.distributions.Normal(mean_of(move, x, clean(m, x, t, None)), move.noise.view(-1, 1, 1, 1))
                         for m in (policy, base)]  # fmt: skip
                total += float(torch.distributions.kl_divergence(*sides).sum().detach())
        assert float(got.values[i].detach()) == pytest.approx(total / 2, rel=1e-8)


def test_the_kl_is_nothing_at_the_base():
    policy, base = pair_of(apart=0.0)
    term = terms_of(DPOK(steps=4), drawn(kind=KIND), {"policy": policy, "reference": base, "reward": REWARD}, KIND)[1]
    assert term.values.abs().max() == 0
    assert gradient(term.values.sum(), policy).norm() == 0


def test_equal_rewards_leave_the_kl_alone():
    policy, base = pair_of()
    handles = {"policy": policy, "reference": base, "reward": lambda x, rows: torch.full((len(x),), 2.0)}
    gained, apart = terms_of(DPOK(steps=4), drawn(kind=KIND), handles, KIND)
    assert gradient(gained.values.sum(), policy).norm() < 1e-9
    assert gradient(apart.values.sum(), policy).norm() > 0


def test_without_kl_it_is_ddpo():
    policy, base = pair_of()
    values, handles = drawn(kind=KIND), {"policy": policy, "reference": base, "reward": REWARD}
    one = values_of(DPOK(steps=4, samples=4, kl_weight=0.0, reward_weight=3.0), values, handles, KIND)
    other = values_of(DDPO(steps=4, samples=4, normalise=False), values, handles, KIND)
    same(gradient(one.sum(), policy), 4.0 * gradient(other.sum(), policy))


def test_surplus_is_the_reward_less_the_mean_of_the_others():
    r = torch.randn(3, 4, dtype=F64)
    for i in range(3):
        for j in range(4):
            others = [float(r[i, k]) for k in range(4) if k != j]
            assert float(surplus(r)[i, j]) == pytest.approx(float(r[i, j]) - sum(others) / 3)


def test_kl_of_one_step():
    move = DDPM().move(VP(), torch.tensor([0.5]), torch.tensor([0.25]))
    x0, other = torch.randn(2, 1, 3, 1, 1, dtype=F64)
    want = (move.clean * (x0 - other).flatten()).square().sum() / (2 * move.noise**2)
    same(step_kl(move, x0, other), want)


def test_rows_are_independent():
    check_rows_are_independent(
        DPOK(steps=4, transitions=2),
        dict(zip(("policy", "reference"), pair_of(), strict=True)) | {"reward": REWARD},
        KIND,
    )


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(DPOK(steps=3, transitions=1), tmp_path, KIND, lambda x, rows: x.flatten(1).mean(1))
    assert got.norm() > 0
    assert policy.forwards == {"policy": 4, "reference": 1}
