"""Consistency techniques: boundary, the point that must have no loss, limits into one another, and the formulas in loops."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from luthier.core import Batch, Signals
from luthier.core.terms import as_terms
from luthier.diffusion.consistency._jump import bounded, jump, pseudo_huber
from luthier.diffusion.consistency.consistency_distillation import ConsistencyDistillation
from luthier.diffusion.consistency.ict import ICT, karras_levels, level_probabilities, levels_at
from luthier.diffusion.consistency.pcm import PCM
from luthier.diffusion.consistency.reward_guided import RewardGuided
from luthier.diffusion.consistency.sct import SCT, nearer, posterior_mean
from luthier.diffusion.consistency.tcd_distillation import TCDDistillation
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._kinds import from_x0
from luthier.diffusion.schedules._path import Predictor, level
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.ve import VE
from luthier.diffusion.schedules.vp import VP
from tests.tolerance import same

F64 = torch.float64
PATHS = [Flow(t_max=0.98), VE(), VP()]
OBJECTIVES = [ConsistencyDistillation(steps=12), ConsistencyDistillation(steps=12, skip=3), PCM(phases=3, steps=12),
              TCDDistillation(steps=12), ICT(first=4, last=16), SCT(references=3), SCT(references=0)]  # fmt: skip


class Network(torch.nn.Module):
    """A small network of x and t, in float64."""

    def __init__(self, path, kind):
        super().__init__()
        torch.manual_seed(0)
        self.path, self.kind = path, kind
        self.inner = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()

    def forward(self, x, t, condition=None):
        return self.inner(torch.cat([x.flatten(1), t[:, None].to(x)], 1)).view_as(x)


def knows(path, kind, point):
    """A network that knows that all images are the same point."""

    def predict(x, t, condition):
        return from_x0(x, torch.full_like(x, point), level(path, t, x), kind)

    return Predictor(predict, path, kind)


def signals(policy, n=5, point=None, **more):
    g = torch.Generator().manual_seed(1)
    values = {"image": torch.randn(n, 2, 1, 1, generator=g, dtype=F64), "noise": torch.randn(n, 2, 1, 1, generator=g, dtype=F64),
              "uniform": torch.rand(n, 8, generator=g, dtype=F64), "progress": torch.full((n,), 0.6, dtype=F64),
              "references": torch.randn(3, 2, 1, 1, generator=g, dtype=F64), **more}  # fmt: skip
    if point is not None:
        values["image"], values["references"] = (
            torch.full_like(values["image"], point),
            torch.full_like(values["references"], point),
        )
    handles = {"policy": policy, "reference": policy, "ema": policy}
    return Signals({k: (v,) for k, v in values.items()}, ("image",), handles.__getitem__), values


def values_of(objective, s, n=5):
    return as_terms(objective(Batch("image", {"image": s["image"]}, ("image",), meta=[{}] * n), s))[0].values


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("kind", ["eps", "v", "velocity", "x0"])
def test_a_jump_to_where_one_is_changes_nothing(path, kind):
    network, x = Network(path, kind), torch.randn(4, 2, 1, 1, dtype=F64)
    t = torch.linspace(path.t_min * 2, path.t_max * 0.9, 4, dtype=F64)
    torch.testing.assert_close(jump(network, x, t, t, None), x, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_networks_of_x0_are_bounded_at_the_clean_end(path):
    x, any_guess = torch.randn(3, 2, 1, 1, dtype=F64), torch.randn(3, 2, 1, 1, dtype=F64)
    t = torch.full((3,), path.t_min, dtype=F64)
    at = level(path, t, x)
    same(bounded(path, x, any_guess, t), x / at.alpha)


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("kind", ["eps", "velocity", "v"])
def test_one_point_and_a_network_that_knows_it_has_no_loss(objective, path, kind):
    s, _ = signals(knows(path, kind, 0.7), point=0.7)
    assert values_of(objective, s).abs().max() < 1e-5


@pytest.mark.parametrize("objective", OBJECTIVES, ids=repr)
def test_the_target_carries_no_gradient_and_rows_are_independent(objective):
    network = Network(VP(), "eps")
    s, values = signals(network)
    whole = values_of(objective, s)
    for i in range(5):
        one = {k: v if k == "references" else v[i : i + 1] for k, v in values.items()}
        part = Signals(
            {k: (v,) for k, v in one.items()}, ("image",), {"policy": network, "reference": network}.__getitem__
        )
        same(values_of(objective, part, 1), whole[i : i + 1])
    gradient = torch.autograd.grad(whole.sum(), network.inner.parameters())
    frozen, _ = signals(network)
    stopped = Predictor(
        lambda x, t, c: network(x, t, c) if torch.is_grad_enabled() else network(x, t, c).detach(), network.path, "eps"
    )
    frozen = Signals(
        {k: (v,) for k, v in values.items()}, ("image",), {"policy": stopped, "reference": stopped}.__getitem__
    )
    for a, b in zip(
        gradient, torch.autograd.grad(values_of(objective, frozen).sum(), network.inner.parameters()), strict=True
    ):
        same(a, b)


def test_pcm_with_one_phase_and_tcd_to_zero_are_consistency_distillation():
    s, values = signals(Network(Flow(), "velocity"))
    want = values_of(ConsistencyDistillation(steps=12), s)
    same(values_of(PCM(phases=1, steps=12), s), want)
    last = {**values, "uniform": values["uniform"].clone()}
    last["uniform"][:, 2] = 1 - 1e-9
    s2 = Signals(
        {k: (v,) for k, v in last.items()},
        ("image",),
        {"policy": s.handle("policy"), "reference": s.handle("policy")}.__getitem__,
    )
    same(values_of(TCDDistillation(steps=12), s2), want)


@torch.no_grad()
def test_consistency_distillation_in_loops_on_flow():
    network, grid = Network(Flow(), "velocity"), make_grid(Flow(), 12)
    s, v = signals(network)
    got = values_of(ConsistencyDistillation(steps=12, huber=0.1), s)
    for i in range(5):
        at = int(float(v["uniform"][i, 0]) * 12)
        t, r = float(grid[at]), float(grid[at + 1])
        x = (1 - t) * v["image"][i] + t * v["noise"][i]
        run = lambda y, u: network(y[None], torch.tensor([u], dtype=F64))[0]  # noqa: E731
        lower = x + (r - t) * run(x, t)
        goal = lower - r * run(lower, r) if r > 0 else lower
        u = (x - t * run(x, t) - goal).flatten()
        assert float(got[i]) == pytest.approx(math.sqrt(float((u * u).sum()) + 0.01) - 0.1, rel=1e-8)


def test_ict_levels_and_their_probabilities():
    assert [levels_at(p / 8, 10, 1280) for p in range(8)] == [11, 21, 41, 81, 161, 321, 641, 1281]
    levels = karras_levels(21, 0.002, 80.0)
    assert float(levels[0]) == pytest.approx(0.002)
    assert float(levels[-1]) == pytest.approx(80.0)
    p = level_probabilities(levels, -1.1, 2.0)
    assert float(p.sum()) == pytest.approx(1.0)
    normal = [0.5 * (1 + math.erf((math.log(x) + 1.1) / (2 * math.sqrt(2)))) for x in levels.tolist()]
    mass = [b - a for a, b in itertools.pairwise(normal)]
    same(p, torch.tensor([m / sum(mass) for m in mass], dtype=F64))


def test_pseudo_huber_is_square_when_small_and_length_when_large():
    a, tiny, far = torch.zeros(1, 4, dtype=F64), torch.full((1, 4), 1e-4, dtype=F64), torch.full((1, 4), 1e5, dtype=F64)
    assert float(pseudo_huber(a, tiny, 1.0)) == pytest.approx(4e-8 / 2, rel=1e-4)
    assert float(pseudo_huber(a, far, 1.0)) == pytest.approx(2e5, rel=1e-4)
    assert float(pseudo_huber(a, a)) == 0


@torch.no_grad()
def test_sct_without_references_keeps_the_images_own_noise():
    network = Network(VE(), "eps")
    _, v = signals(network)
    got = values_of(
        SCT(references=0),
        Signals({k: (t,) for k, t in v.items() if k != "references"}, ("image",), {"policy": network}.__getitem__),
    )
    ratio = (-1.1 + 2.0 * torch.special.ndtri(v["uniform"][:, 0])).exp()
    near = nearer(ratio, math.floor(0.6 * 8), 2.0, 8.0, 1.0)
    for i in range(5):
        t, r = ratio[i : i + 1], near[i : i + 1]
        x, lower = v["image"][i : i + 1] + t * v["noise"][i : i + 1], v["image"][i : i + 1] + r * v["noise"][i : i + 1]
        a = x - t * network(x, t)
        b = lower - r * network(lower, r.clamp_min(VE().t_min)) if r > 0 else lower
        assert float(got[i]) == pytest.approx(float((a - b).flatten().norm() / (t - r)), rel=1e-4)


def test_sct_with_all_images_is_the_exact_score_of_the_noised_data():
    g = torch.Generator().manual_seed(0)
    data, ratio = torch.randn(7, 2, generator=g, dtype=F64), torch.tensor([0.8], dtype=F64)
    y = torch.randn(1, 2, generator=g, dtype=F64).requires_grad_(True)
    density = torch.logsumexp(-(y - data).square().sum(1) / (2 * ratio**2), 0)
    (score,) = torch.autograd.grad(density, y)
    mean = posterior_mean(y.detach(), data[:1], data[1:], ratio)
    same((mean - y.detach()) / ratio**2, score)


def test_a_reward_of_no_strength_or_no_slope_changes_nothing():
    network = Network(Flow(), "velocity")
    s, v = signals(network)
    base = ConsistencyDistillation(steps=12)
    handles = {"policy": network, "reference": network, "reward": lambda x, rows: 0 * x.flatten(1).sum(1) + 3.0}
    with_reward = Signals({k: (t,) for k, t in v.items()}, ("image",), handles.__getitem__)
    batch = Batch("image", {"image": v["image"]}, ("image",), meta=[{}] * 5)
    assert len(as_terms(RewardGuided(strength=0.0, distillation=base)(batch, with_reward))) == 1
    total = sum(
        t.scale * t.sums()[0] / t.sums()[1]
        for t in as_terms(RewardGuided(strength=2.0, distillation=base)(batch, with_reward))
    )
    want = torch.autograd.grad(values_of(base, s).mean(), network.inner.parameters())
    for a, b in zip(torch.autograd.grad(total, network.inner.parameters()), want, strict=True):
        same(a, b)
