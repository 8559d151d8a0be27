"""The in-context world: closed forms against loops, sums over samples, and limits."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core import stream
from luthier.core.errors import ConfigError
from luthier.lab.micro.in_context import InContextWorld
from luthier.lab.micro.linear import posterior
from tests.tolerance import same

F64 = torch.float64


@pytest.fixture
def world():
    return InContextWorld.random(4, 3, seed=0)


@pytest.fixture
def prompt(world):
    x, y = world.sample(6, 8, stream(1, "test"))
    return x[:, :5], y[:, :5], x[:, 5]


def test_ridge_is_the_posterior_mean_under_the_gaussian(world, prompt):
    x, y, query = prompt
    for i in range(6):
        mean, _ = posterior(x[i], y[i][:, None], world.noise, 1.0)
        same(world.ridge(x, y, query)[i], (mean @ query[i])[0])


def test_the_discrete_answer_is_the_posterior_mean_in_loops(world, prompt):
    x, y, query = prompt
    for i in range(6):
        weights = []
        for w in world.tasks:
            miss = sum((float(y[i, k]) - float(x[i, k] @ w)) ** 2 for k in range(5))
            weights.append(math.exp(-miss / (2 * world.noise**2)))
        mean = sum(p * w for p, w in zip(weights, world.tasks, strict=True)) / sum(weights)
        same(world.discrete(x, y, query)[i], mean @ query[i])


def test_the_mixture_is_the_posterior_mean_over_both_priors(world):
    """Against importance weights of 400,000 Gaussian tasks beside the few."""
    x, y = world.sample(1, 4, stream(3, "test"))
    query = torch.tensor([[1.0, -0.5, 0.3]], dtype=F64)
    g = torch.Generator().manual_seed(0)
    many = torch.randn(400_000, 3, generator=g, dtype=F64)

    def weights(tasks):
        return (-(y[0] - tasks @ x[0].T).square().sum(-1) / (2 * world.noise**2)).exp()

    few, rest = weights(world.tasks), weights(many)
    mass = world.share * few.mean() + (1 - world.share) * rest.mean()
    mean = (
        world.share * (few[:, None] * world.tasks).mean(0) + (1 - world.share) * (rest[:, None] * many).mean(0)
    ) / mass
    assert float(world.best(x, y, query)[0]) == pytest.approx(float(mean @ query[0]), abs=0.01)
    assert float(world.belief(x, y)[0]) == pytest.approx(float(world.share * few.mean() / mass), abs=0.01)


def test_the_best_answer_beats_both_and_ends_are_the_single_ones(world):
    x, y = world.sample(4000, 6, stream(2, "test"))
    given = x[:, :5], y[:, :5], x[:, 5]
    errors = {f: float((getattr(world, f)(*given) - y[:, 5]).square().mean()) for f in ("best", "ridge", "discrete")}
    assert errors["best"] < min(errors["ridge"], errors["discrete"])
    same(InContextWorld(world.tasks, world.noise, 0.0).best(*given), world.ridge(*given))
    same(InContextWorld(world.tasks, world.noise, 1.0).best(*given), world.discrete(*given))


def test_no_example_gives_the_prior(world):
    x, query = torch.zeros(2, 0, 3, dtype=F64), torch.randn(2, 3, dtype=F64)
    y = torch.zeros(2, 0, dtype=F64)
    same(world.ridge(x, y, query), torch.zeros(2, dtype=F64))
    same(world.discrete(x, y, query), query @ world.tasks.mean(0))
    same(world.belief(x, y), torch.full((2,), 0.5, dtype=F64))


def test_faults():
    with pytest.raises(ConfigError, match="noise > 0"):
        InContextWorld(torch.ones(2, 2), noise=0)
