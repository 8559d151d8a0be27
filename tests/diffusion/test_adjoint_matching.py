"""adjoint_matching: autograd through the chain, the tilted Gaussian, the linear adjoint, and a real network."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import Refused
from luthier.diffusion.align._trajectory import clean, walk
from luthier.diffusion.align._trajectory import drawn as normal
from luthier.diffusion.align.adjoint_matching import AdjointMatching, adjoints, pulled, reward_slope
from luthier.diffusion.samplers._affine import mean_of
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.diffusion.schedules._kinds import from_x0
from luthier.diffusion.schedules._path import Predictor, level
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
from tests.diffusion.oracle import Gaussian
from tests.tolerance import same

KIND = "image_prompts"
REWARD = lambda x, rows: x.flatten(1).sin().sum(1)  # noqa: E731
PATHS = [Flow(), VP()]


def exact(path, truth, kind="v"):
    def predict(x, t, condition):
        at = level(path, t, x)
        return from_x0(x, truth.clean(x, at.alpha, at.sigma), at, kind)

    return Predictor(predict, path, kind)


@pytest.mark.parametrize("kind", ["x0", "v", "velocity"])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_the_adjoint_is_autograd_through_the_means_of_the_base(path, kind):
    base, sampler = Network(path, kind), FlowSDE()
    noise, uniform = torch.randn(3, 2, 1, 1, dtype=F64), torch.rand(3, dtype=F64)
    taken = walk(Network(path, kind, seed=5), sampler, 5, noise, None, normal(uniform, 5, noise, "x"))
    end = torch.randn(3, 2, 1, 1, dtype=F64)
    lean, estimates = adjoints(base, sampler, taken, end, None)
    for k in range(5):
        leaves = []
        for j in range(k + 1, 5):
            x, t = taken.states[j].clone().requires_grad_(True), taken.grid[j].expand(3)
            leaves.append(
                (x, mean_of(sampler.move(path, taken.grid[j], taken.grid[j + 1]), x, clean(base, x, t, None)))
            )
        a = end
        for x, mean in reversed(leaves):
            (a,) = torch.autograd.grad(mean, x, a)
        same(lean[k], a)
        same(estimates[k], clean(base, taken.states[k], taken.grid[k].expand(3), None).detach())


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_a_linear_base_has_the_product_of_its_slopes(path):
    truth, sampler, n = Gaussian(), FlowSDE(), 6
    base, noise = exact(path, truth), torch.randn(4, 1, 1, 1, dtype=F64)
    taken = walk(base, sampler, n, noise, None, normal(torch.rand(4, dtype=F64), n, noise, "x"))
    lean, _ = adjoints(base, sampler, taken, torch.ones(4, 1, 1, 1, dtype=F64), None)
    slope = 1.0
    for k in range(n - 1, -1, -1):
        same(lean[k], torch.full((4, 1, 1, 1), slope, dtype=F64))
        at, move = path.level(taken.grid[k]), sampler.move(path, taken.grid[k], taken.grid[k + 1])
        gain = truth.c**2 * float(at.alpha) / float(at.alpha**2 * truth.c**2 + at.sigma**2)
        slope *= float(move.keep) + float(move.clean) * gain


@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_a_constant_reward_has_no_loss_at_the_base(path):
    policy, base = pair_of(path, "v", 0.0)
    flat = {"policy": policy, "reference": base, "reward": lambda x, rows: 0 * x.flatten(1).sum(1) + 2.0}
    got = values_of(AdjointMatching(steps=5), drawn(kind=KIND), flat, KIND)
    assert got.abs().max() == 0
    assert gradient(got.sum(), policy).norm() == 0


@pytest.mark.parametrize("n", [40, 400])
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
def test_the_optimum_of_a_linear_reward_has_no_loss_and_samples_the_tilted_gaussian(path, n):
    """Each step's mean must move by noise^2 times the reward's slope at its end; the sample's mean then moves by what it should."""
    truth, sampler, strength, none = Gaussian(), FlowSDE(), 0.8, torch.zeros(1, 1, 1, 1, dtype=F64)
    base = exact(path, truth)
    probe = walk(base, sampler, n, none, None, normal(torch.rand(1, dtype=F64), n, none, "x"))
    lean, _ = adjoints(base, sampler, probe, torch.full((1, 1, 1, 1), -strength, dtype=F64), None)
    shift = {}
    for k in range(n):
        move = sampler.move(path, probe.grid[k], probe.grid[k + 1])
        shift[round(float(probe.grid[k]), 9)] = float(-lean[k] * move.noise**2 / move.clean)

    def predict(x, t, condition):
        at = level(path, t, x)
        moved = torch.tensor([shift[round(float(v), 9)] for v in t], dtype=x.dtype).view(-1, 1, 1, 1)
        return from_x0(x, truth.clean(x, at.alpha, at.sigma) + moved, at, "v")

    best = Predictor(predict, path, "v")
    held = {"policy": best, "reference": base, "reward": lambda x, rows: x.flatten(1).sum(1)}
    values = {"noise": torch.randn(3, 1, 1, 1, dtype=F64), "uniform": torch.rand(3, 8, dtype=F64)}
    assert values_of(AdjointMatching(steps=n, reward_weight=strength), values, held, KIND).abs().max() < 1e-12
    noise, uniform = torch.randn(1, 1, 1, 1, dtype=F64), torch.rand(1, dtype=F64)
    ends = [walk(m, sampler, n, noise, None, normal(uniform, n, noise, "x")).sample for m in (best, base)]
    spread = sum(
        float(a) ** 2 * float(sampler.move(path, probe.grid[k], probe.grid[k + 1]).noise) ** 2
        for k, a in enumerate(lean)
    )
    # the chain's own variance is spread / strength^2; it tends to c^2 as steps grow
    assert float(ends[0] - ends[1]) == pytest.approx(spread / strength, rel=1e-9)
    assert abs(spread / strength**2 / truth.c**2 - 1) < 15 / n


def test_the_first_memoryless_step_forgets_its_start():
    sampler, grid = FlowSDE(), torch.tensor([1.0, 0.9], dtype=F64)
    assert float(sampler.move(Flow(), grid[0], grid[1]).keep) == 0


def test_pulled_by_a_handle_with_vjp_is_the_same():
    network = Network(VP(), "eps")

    class WithVjp:
        path, kind = network.path, network.kind

        def vjp(self, x, t, condition, v):
            leaf = x.detach().requires_grad_(True)
            out = network(leaf, t)
            return out.detach(), torch.autograd.grad(out, leaf, v)[0]

    x, v, t = (
        torch.randn(3, 2, 1, 1, dtype=F64),
        torch.randn(3, 2, 1, 1, dtype=F64),
        torch.tensor([0.2, 0.5, 0.9], dtype=F64),
    )
    for a, b in zip(pulled(network, x, t, None, v), pulled(WithVjp(), x, t, None, v), strict=True):
        same(a, b)


def test_a_reward_of_plain_numbers_is_refused():
    with pytest.raises(Refused, match="gradients flow through"):
        reward_slope(lambda x, rows: torch.ones(2), torch.zeros(2, 1, 1, 1), [{}, {}], "adjoint_matching")


@pytest.mark.parametrize("objective", [AdjointMatching(steps=4), AdjointMatching(steps=5, transitions=2)], ids=repr)
def test_rows_are_independent(objective):
    policy, base = pair_of(VP(), "eps")
    check_rows_are_independent(objective, {"policy": policy, "reference": base, "reward": REWARD}, KIND)


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(
        AdjointMatching(steps=3, transitions=1), tmp_path, KIND, lambda x, rows: x.flatten(1).mean(1)
    )
    assert got.norm() > 0
    assert policy.forwards == {"policy": 4, "reference": 3}
