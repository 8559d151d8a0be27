"""prdp: the pairs in loops, its limits, the tilted Gaussian that has no loss, and a real network."""

from __future__ import annotations

import itertools

import pytest
import torch

from luthier.diffusion.align._trajectory import clean, group_walk
from luthier.diffusion.align.prdp import PRDP, difference_loss
from luthier.diffusion.samplers._affine import log_prob
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.schedules._path import Predictor
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.vp import VP
from tests.diffusion.align_parts import F64, check_rows_are_independent, drawn, gradient, pair_of, real_step, values_of
from tests.tolerance import same

KIND = "image_prompts"
REWARD = lambda x, rows: x.flatten(1)[:, 0].sin()  # noqa: E731


def handles(apart=0.2, path=None, kind="velocity", reward=REWARD):
    policy, base = pair_of(path, kind, apart)
    return {"policy": policy, "reference": base, "ema": base, "reward": reward}


def test_equals_the_loop_over_pairs_and_steps():
    held, values, clip = handles(), drawn(kind=KIND), 0.05
    got = values_of(PRDP(beta=0.5, steps=4, samples=3, behaviour="ema", clip=clip), values, held, KIND)
    walk, _ = group_walk(held["ema"], DDIM(eta=1.0), 4, values["noise"], values["uniform"][:, 7], None, 3)
    rewards = REWARD(walk.sample, None).tolist()
    for i in range(5):
        ratio, clipped = [], []
        for j in range(3 * i, 3 * i + 3):
            steps = []
            for k in range(3):
                x, after, t = walk.states[k][j : j + 1], walk.states[k + 1][j : j + 1], walk.grid[k : k + 1]
                move = DDIM(eta=1.0).move(Flow(), t, walk.grid[k + 1 : k + 2])
                own, base = (
                    float(log_prob(move, x, clean(held[m], x, t, None), after).detach())
                    for m in ("policy", "reference")
                )
                steps.append(own - base)
            ratio.append(sum(steps))
            clipped.append(sum(min(max(v, -clip), clip) for v in steps))
        want = 0.0
        for a, b in itertools.combinations(range(3), 2):
            goal = (rewards[3 * i + a] - rewards[3 * i + b]) / 0.5
            want += max((ratio[a] - ratio[b] - goal) ** 2, (clipped[a] - clipped[b] - goal) ** 2) / 3
        assert float(got[i].detach()) == pytest.approx(want, rel=1e-8)


def test_at_the_base_it_is_the_squared_difference_of_rewards():
    held, values = handles(0.0), drawn(kind=KIND)
    got = values_of(PRDP(beta=2.0, steps=4, samples=2), values, held, KIND)
    walk, _ = group_walk(held["policy"], DDIM(eta=1.0), 4, values["noise"], values["uniform"][:, 7], None, 2)
    r = REWARD(walk.sample, None).view(5, 2)
    same(got, ((r[:, 0] - r[:, 1]) / 2.0).square())


def test_a_constant_of_the_condition_changes_nothing():
    values = drawn(kind=KIND)
    shifted = lambda x, rows: REWARD(x, rows) + torch.tensor([7.0 * r["row"] for r in rows])  # noqa: E731
    torch.testing.assert_close(
        values_of(PRDP(steps=4), values, handles(), KIND), values_of(PRDP(steps=4), values, handles(reward=shifted), KIND),
        rtol=1e-9, atol=1e-9,
    )  # fmt: skip


def test_clipping_rests_where_the_policy_draws():
    values, held = drawn(kind=KIND), handles()
    one, other = (
        gradient(values_of(PRDP(steps=4, clip=c), values, held, KIND).sum(), held["policy"]) for c in (1e-4, 1e4)
    )
    assert one.norm() > 0
    same(one, other)


def test_the_tilted_gaussian_has_no_loss():
    """Steps 1 -> 1/2 -> 0 of a flow: the first draws N(g / 2, 1 / 4) with clean estimate g; the sample copies it three halves."""

    def model(g):
        first = lambda t: (t > 0.75).view(-1, 1, 1, 1)  # noqa: E731
        return Predictor(lambda x, t, c: torch.where(first(t), x - g, -x), Flow(), "velocity")

    # the tilt of N(g / 2, 1 / 4) by exp(2 * 1.5 x / beta) has mean g / 2 + 3 / (4 beta)
    beta = 1.5
    held = {
        "policy": model(0.4 + 2 * 3 / (4 * beta)),
        "reference": model(0.4),
        "reward": lambda x, rows: 2.0 * x.flatten(1).sum(1),
    }
    values = {"noise": torch.zeros(20, 1, 1, 1, dtype=F64), "uniform": torch.rand(20, 8, dtype=F64)}
    assert values_of(PRDP(beta=beta, steps=2), values, held, KIND).abs().max() < 1e-18


def test_difference_loss_of_more_than_two_is_the_mean_over_pairs():
    g, r = torch.randn(2, 3, 4, dtype=F64)
    pairs = [difference_loss(g[:, [a, b]], r[:, [a, b]], 0.7) for a, b in itertools.combinations(range(4), 2)]
    same(difference_loss(g, r, 0.7), torch.stack(pairs).mean(0))


@pytest.mark.parametrize("sampler", [DDIM(eta=0.5), DDPM()], ids=repr)
def test_rows_are_independent(sampler):
    check_rows_are_independent(PRDP(steps=4, sampler=sampler), handles(path=VP(), kind="v"), KIND)


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(PRDP(steps=3, samples=2), tmp_path, KIND, lambda x, rows: x.flatten(1).mean(1))
    assert got.norm() > 0
    assert policy.forwards == {"policy": 5, "reference": 2}
