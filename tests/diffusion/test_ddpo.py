"""ddpo: the loop over steps and pixels, its limits, the exact gradient of the expected reward, and a real network."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import Refused
from luthier.diffusion.align._trajectory import group_walk, noisy_steps, picks
from luthier.diffusion.align.ddpo import DDPO, clipped_gain, standing
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.diffusion.schedules._path import Predictor
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.vp import VP
from tests.diffusion.align_parts import (
    F64,
    Network,
    check_rows_are_independent,
    drawn,
    gradient,
    pair_of,
    real_step,
    values_of,
)
from tests.tolerance import same

KIND = "image_prompts"
REWARD = lambda x, rows: x.flatten(1)[:, 0].sin()  # noqa: E731


def test_equals_the_loop_over_samples_steps_and_pixels():
    policy, old = pair_of()
    values = drawn(kind=KIND)
    objective = DDPO(steps=4, samples=3, behaviour="ema", clip=0.3, normalise=False)
    got = values_of(objective, values, {"policy": policy, "ema": old, "reward": REWARD}, KIND)
    walk, _ = group_walk(old, objective.sampler, 4, values["noise"], values["uniform"][:, 7], None, 3)
    rewards = REWARD(walk.sample, None).tolist()
    for i in range(5):
        mean, total = sum(rewards[3 * i : 3 * i + 3]) / 3, 0.0
        for j in range(3 * i, 3 * i + 3):
            for k in range(3):
                t, s = float(walk.grid[k]), float(walk.grid[k + 1])
                kept = s * ((1 - t) * s / ((1 - s) * t))
                std = math.sqrt(s * s - kept * kept)
                logs = []
                for model in (policy, old):
                    x = walk.states[k][j : j + 1]
                    x0 = x - t * model(x, torch.tensor([t], dtype=F64))
                    middle = ((1 - s) * x0 + kept * (x - (1 - t) * x0) / t).flatten().tolist()
                    there = walk.states[k + 1][j].flatten().tolist()
                    logs.append(sum(-((a - b) ** 2) / (2 * std**2) - math.log(std * math.sqrt(2 * math.pi))
                                    for a, b in zip(there, middle, strict=True)))  # fmt: skip
                r, a = math.exp(logs[0] - logs[1]), rewards[j] - mean
                total += min(r * a, min(max(r, 0.7), 1.3) * a)
        assert float(got[i].detach()) == pytest.approx(-total / 3, rel=1e-6, abs=1e-9)


def test_equal_rewards_teach_nothing():
    network = Network()
    flat = {"policy": network, "reward": lambda x, rows: torch.full((len(x),), 2.0)}
    assert gradient(values_of(DDPO(steps=4), drawn(kind=KIND), flat, KIND).sum(), network).norm() == 0


def test_clipping_rests_where_the_policy_draws():
    network, values = Network(), drawn(kind=KIND)
    handles = {"policy": network, "reward": REWARD}
    one, other = (
        gradient(values_of(DDPO(steps=4, clip=c), values, handles, KIND).sum(), network) for c in (1e-4, 10.0)
    )
    assert one.norm() > 0
    same(one, other)


def test_clipped_gain_has_no_slope_beyond_the_clip():
    logp = torch.tensor([0.5, 0.5, -0.5, -0.5], dtype=F64, requires_grad=True)
    advantage = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=F64)
    (slope,) = torch.autograd.grad(clipped_gain(logp, torch.zeros(4, dtype=F64), advantage, 0.2).sum(), logp)
    assert slope[0] == 0
    assert slope[3] == 0
    assert slope[1] < 0 < slope[2]


def test_standing_is_centred_and_scaled():
    r = torch.randn(4, 6, dtype=F64)
    same(standing(r, True).mean(1), torch.zeros(4, dtype=F64))
    assert standing(r, True).square().mean(1).tolist() == pytest.approx([1.0] * 4, rel=1e-4)
    assert standing(torch.full((2, 3), 5.0), True).abs().max() == 0


def test_the_mean_gradient_is_that_of_the_expected_reward():
    """v = x - g on flow: the clean estimate is g where t = 1, so the sample's mean moves with g and E of a linear reward with it."""
    g = torch.tensor(0.4, dtype=F64, requires_grad=True)
    model = Predictor(lambda x, t, c: (x - g) / t.view(-1, 1, 1, 1), Flow(), "velocity")
    n = 3000
    rng = torch.Generator().manual_seed(0)
    values = {"noise": torch.zeros(n, 1, 1, 1, dtype=F64), "uniform": torch.rand(n, 8, generator=rng, dtype=F64)}
    reward = lambda x, rows: 2.0 * x.flatten(1).sum(1)  # noqa: E731
    # steps 1 -> 1/2 -> 0: the first draws N(g / 2, 1 / 4), the second is the clean estimate g, whatever was drawn
    (flat,) = torch.autograd.grad(
        values_of(DDPO(steps=2, normalise=False), values, {"policy": model, "reward": reward}, KIND).sum(), g
    )
    assert abs(float(flat)) < 1e-9
    # a reward of the walk's middle would need its density: the clean estimate of a model that copies x is 2 x there
    copy = Predictor(lambda x, t, c: torch.where((t > 0.75).view(-1, 1, 1, 1), x - g, -x), Flow(), "velocity")
    (slope,) = torch.autograd.grad(
        values_of(DDPO(steps=2, samples=8, normalise=False), values, {"policy": copy, "reward": reward}, KIND).mean(), g
    )
    # the sample is x + x / 2 with x ~ N(g / 2, 1 / 4): E r = 3 * g / 2; the group's mean takes 1 / 8 of it
    assert float(slope) == pytest.approx(-1.5 * 7 / 8, abs=0.1)


@pytest.mark.parametrize("sampler", [DDIM(eta=0.5), DDPM(), FlowSDE(level=0.7, scheme="euler")], ids=repr)
@pytest.mark.parametrize("path", [Flow(), VP()], ids=lambda p: p.name)
def test_rows_are_independent(sampler, path):
    handles = {"policy": Network(path, "v"), "reward": REWARD}
    check_rows_are_independent(DDPO(steps=4, sampler=sampler, transitions=2), handles, KIND)


def test_picked_steps_are_spread_and_equally_likely():
    chosen = torch.stack(picks(torch.linspace(1e-6, 1 - 1e-6, 4000), 8, 2))
    assert chosen.flatten().bincount().tolist() == [1000] * 8
    assert ((chosen[0] - chosen[1]).abs() == 4).all()


def test_a_sampler_without_noise_is_refused():
    with pytest.raises(Refused, match="draw noise"):
        noisy_steps(DDIM(), Flow(), torch.tensor([1.0, 0.5, 0.0]), "ddpo")


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(DDPO(steps=3, transitions=1), tmp_path, KIND, lambda x, rows: x.flatten(1).mean(1))
    assert got.norm() > 0
    assert policy.forwards == {"policy": 4}
