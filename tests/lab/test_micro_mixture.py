"""The Gaussian mixture world against autograd, integrals, conditioning in loops and sampling."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import ConfigError
from luthier.core.streams import stream
from luthier.lab.micro.mixture import Mixture, covered, mmd, mmd_to
from tests.tolerance import same

F64 = torch.float64


@pytest.fixture
def world() -> Mixture:
    return Mixture.random(3, 2, seed=0)


def points(n: int = 9) -> torch.Tensor:
    return 3 * torch.randn(n, 2, generator=stream(1, "points"), dtype=F64)


@pytest.mark.parametrize(("alpha", "sigma"), [(1.0, 0.0), (0.6, 0.8), (0.0, 1.0), (1.0, 5.0)])
def test_density_and_score_equal_torch(world, alpha, sigma):
    x = points().requires_grad_(True)
    covariance = alpha**2 * world.covariances + sigma**2 * torch.eye(2, dtype=F64)
    parts = torch.distributions.MultivariateNormal(alpha * world.means, covariance)
    torch_world = torch.distributions.MixtureSameFamily(torch.distributions.Categorical(world.weights), parts)
    want = torch_world.log_prob(x)
    same(world.log_density(x, alpha, sigma), want)
    (slope,) = torch.autograd.grad(want.sum(), x)
    same(world.score(x.detach(), alpha, sigma), slope)


def test_denoiser_is_the_posterior_mean_in_loops(world):
    x, alpha, sigma = points(), 0.7, 0.5
    want = []
    for point in x:
        total, mean = 0.0, torch.zeros(2, dtype=F64)
        for w, m, s in zip(world.weights, world.means, world.covariances, strict=True):
            cover = alpha**2 * s + sigma**2 * torch.eye(2, dtype=F64)
            p = w * torch.distributions.MultivariateNormal(alpha * m, cover).log_prob(point).exp()
            mean = mean + p * (m + alpha * s @ torch.linalg.inv(cover) @ (point - alpha * m))
            total = total + p
        want.append(mean / total)
    same(world.denoise(x, alpha, sigma), torch.stack(want))


def test_tweedie_holds_with_a_level_for_each_row(world):
    x = points()
    alpha, sigma = torch.linspace(0.2, 1, 9, dtype=F64), torch.linspace(0.1, 2, 9, dtype=F64)
    tweedie = (x + sigma[:, None] ** 2 * world.score(x, alpha, sigma)) / alpha[:, None]
    same(world.denoise(x, alpha, sigma), tweedie)


def test_tilt_multiplies_the_density(world):
    direction, x = torch.tensor([0.7, -0.4], dtype=F64), points()
    tilted = world.tilted(direction, 1.5)
    ratio = tilted.log_density(x) - world.log_density(x) - 1.5 * x @ direction
    same(ratio, ratio[:1].expand(9))
    same(world.tilted(direction, 0.0).log_density(x), world.log_density(x))
    again = world.tilted(direction, 0.5).tilted(direction, 1.0)
    same(again.log_density(x), tilted.log_density(x))


def test_samples_have_its_moments_and_modes(world):
    x, mode = world.sample(200_000, stream(0, "mixture"))
    torch.testing.assert_close(x.mean(0), world.mean, rtol=0, atol=0.08)
    torch.testing.assert_close(torch.cov(x.T), world.covariance, rtol=0.05, atol=0.1)
    assert float((world.assign(x, radius=9.0) == mode).double().mean()) > 0.95
    share = torch.bincount(mode, minlength=3) / 200_000
    torch.testing.assert_close(share.double(), world.weights, rtol=0, atol=0.02)


def test_assignment_leaves_out_what_lies_far_off(world):
    assert world.assign(world.means).tolist() == [0, 1, 2]
    assert world.assign(world.means + 100.0).tolist() == [-1, -1, -1]
    assert covered(torch.tensor([0, 0, 2, -1])) == 2
    same(world.posterior(points()).sum(1), torch.ones(9, dtype=F64))


def test_one_mode_alone_is_a_gaussian(world):
    one = world.only(torch.tensor([1]))
    same(one.mean, world.means[1])
    same(one.covariance, world.covariances[1])


def test_discrepancies_agree_and_see_differences(world):
    (x, _), (y, _) = world.sample(1500, stream(0, "x")), world.sample(1500, stream(1, "y"))
    other = world.tilted(torch.tensor([1.0, 0.0], dtype=F64), 0.5).sample(1500, stream(2, "z"))[0]
    assert abs(mmd(x, y)) < 5e-3 and abs(mmd_to(x, world)) < 5e-3
    assert mmd_to(other, world) > 20 * abs(mmd_to(x, world))
    assert mmd_to(other, world) == pytest.approx(mmd(other, y), rel=0.2)


def test_discrepancy_to_the_mixture_equals_an_integral():
    world = Mixture.round(torch.tensor([[-1.0], [1.5]], dtype=F64), 0.5)
    line = torch.linspace(-8, 8, 4001, dtype=F64)[:, None]
    p = world.log_density(line).exp() * (16 / 4000)
    kernel = torch.exp(-torch.cdist(line, line).square() / (2 * 0.7**2))
    x = torch.tensor([[0.3], [1.2], [-2.0]], dtype=F64)
    near = torch.exp(-torch.cdist(x, line).square() / (2 * 0.7**2)) @ p
    pairs = torch.exp(-torch.cdist(x, x).square() / (2 * 0.7**2))
    want = (pairs.sum() - 3) / 6 - 2 * near.mean() + p @ kernel @ p
    assert mmd_to(x, world, 0.7) == pytest.approx(float(want), rel=1e-8)


def test_what_is_no_mixture_is_refused():
    eye = torch.eye(2, dtype=F64).expand(2, 2, 2)
    with pytest.raises(ConfigError, match="sum 1"):
        Mixture(torch.tensor([0.5, 0.6]), torch.zeros(2, 2), eye)
    with pytest.raises(ConfigError, match="positive definite"):
        Mixture(torch.tensor([0.5, 0.5], dtype=F64), torch.zeros(2, 2, dtype=F64), eye - torch.eye(2))
    with pytest.raises(ConfigError, match="two points"):
        mmd(torch.zeros(1, 2), torch.zeros(5, 2))
    assert math.isfinite(mmd(torch.zeros(2, 2), torch.ones(2, 2)))
