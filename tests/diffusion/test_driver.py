"""The sampling loop: rows, randomness, gradients, observers and what it refuses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from luthier.core.errors import NonFinite, Refused
from luthier.diffusion.samplers._affine import log_prob, mean_of
from luthier.diffusion.samplers._driver import Noise, Visit, sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.samplers.dpmpp_2m import DPMpp2M
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.diffusion.samplers.heun import Heun
from luthier.diffusion.schedules._grid import uniform_grid
from luthier.diffusion.schedules._path import Predictor
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.ve import VE
from tests.diffusion.oracle import F64, Gaussian
from tests.tolerance import same

FLOW = Gaussian().denoiser(Flow(), "velocity")
GRID = uniform_grid(Flow(), 5)


def test_a_sample_depends_on_its_seed_and_row_only():
    def run(rows: list[int]) -> torch.Tensor:
        noise = Noise(7, rows)
        return sample(FLOW, DDPM(), noise.start(Flow(), (len(rows), 2, 3)), GRID, noise=noise)

    whole = run([0, 1, 2, 3])
    assert torch.equal(run([2]), whole[2:3])
    assert torch.equal(run([3, 0]), whole[[3, 0]])
    assert not torch.equal(whole[0], whole[1])


def test_the_noise_of_a_row_has_parts_steps_and_a_scale():
    noise = Noise(0, [5])
    assert not torch.equal(noise.normal((1, 4), 0), noise.normal((1, 4), 1))
    assert not torch.equal(noise.normal((1, 4), 0), noise.part("other").normal((1, 4), 0))
    same(noise.start(VE(), (1, 4), dtype=F64), 80 * noise.normal((1, 4), -1, F64))
    assert noise.normal((1, 4), 0, torch.bfloat16).dtype == torch.bfloat16
    assert Noise(0, []).normal((0, 4), 0).shape == (0, 4)


def test_dtype_is_kept():
    for dtype in (torch.float32, torch.bfloat16, F64):
        assert sample(FLOW, DPMpp2M(), torch.zeros(2, 3, dtype=dtype), GRID).dtype == dtype


@pytest.mark.parametrize("steps", [0, 1, 3])
def test_gradients_flow_through_the_last_steps_only(steps):
    shift = torch.tensor(0.3, requires_grad=True)
    asked: list[bool] = []

    def predict(x, t, c):
        asked.append(torch.is_grad_enabled())
        return x - shift

    out = sample(Predictor(predict, Flow(), "velocity"), DDIM(), torch.ones(1, 2), GRID, grad_last=steps)
    assert asked == [False] * (5 - steps) + [True] * steps
    assert out.requires_grad == (steps > 0)


def test_the_observer_sees_every_step():
    seen: list[Visit] = []
    x = torch.ones(2, 3)
    out = sample(FLOW, Heun(), x, GRID, watch=seen.append)
    assert [v.step for v in seen] == list(range(5))
    assert torch.equal(seen[0].before, x) and torch.equal(seen[-1].after, out)
    assert all(torch.equal(a.after, b.before) for a, b in itertools.pairwise(seen))
    assert (seen[0].t, seen[-1].s) == (1.0, 0.0)


def test_clip_bounds_the_clean_estimate():
    seen: list[Visit] = []
    sample(FLOW, DDIM(), 9 * torch.ones(1, 3), GRID, clip=0.5, watch=seen.append)
    assert max(float(v.clean.abs().max()) for v in seen) <= 0.5


def test_nan_names_step_and_rows():
    def predict(x, t, c):
        return torch.where((t < 0.5)[:, None] & (torch.arange(3) == 1)[:, None], torch.nan, x)

    with pytest.raises(NonFinite, match=r"ddim.*step 4 of 5.*rows \[1\]"):
        sample(Predictor(predict, Flow(), "velocity"), DDIM(), torch.ones(3, 2), GRID)


@pytest.mark.parametrize(("grid", "x", "noise", "message"), [
    (GRID.flip(0), torch.ones(1, 2), None, "falling"), (GRID[:1], torch.ones(1, 2), None, "falling"),
    (2 * GRID, torch.ones(1, 2), None, "times in"), (GRID, torch.ones(1, 2).long(), None, "floating"),
    (GRID, torch.ones(1, 2), Noise(0, [0, 1]), "row number"), (GRID, torch.ones(1, 2), None, "source of noise")])  # fmt: skip
def test_what_cannot_be_sampled_is_refused(grid, x, noise, message):
    with pytest.raises(Refused, match=message):
        sample(FLOW, DDPM(), x, grid, noise=noise)


def test_a_denoiser_of_eps_at_pure_noise_is_refused():
    with pytest.raises(Refused, match="alpha > 0"):
        sample(Predictor(lambda x, t, c: x, Flow(), "eps"), DDIM(), torch.ones(1, 2), GRID)


def test_conditions_reach_the_denoiser():
    want = {"label": torch.tensor([1, 2])}
    seen = []
    denoiser = Predictor(lambda x, t, c: seen.append(c) or x, Flow(), "velocity")
    sample(denoiser, DDIM(), torch.ones(2, 2), GRID, want)
    assert all(c is want for c in seen) and len(seen) == 5


@pytest.mark.parametrize(
    "sampler", [DDPM(), DDIM(eta=0.4), FlowSDE(level=0.5), FlowSDE(level=0.5, scheme="euler")], ids=repr
)
def test_log_density_of_a_step_is_that_of_a_normal(sampler):
    """Rows at different times, as a policy gradient has them."""
    t, s = torch.tensor([0.9, 0.5, 0.3]), torch.tensor([0.7, 0.4, 0.1])
    x, x0, after = torch.randn(3, 3, 2, 4, dtype=F64)
    move = sampler.move(Flow(), t, s)
    got = log_prob(move, x, x0, after)
    for i in range(3):
        one = sampler.move(Flow(), t[i], s[i])
        mean = mean_of(one, x[i : i + 1], x0[i : i + 1])[0]
        want = torch.distributions.Normal(mean, one.noise).log_prob(after[i]).sum()
        assert float(got[i]) == pytest.approx(float(want), rel=1e-6)


def test_steps_without_noise_have_no_density():
    move = DDIM().move(Flow(), torch.tensor(0.5), torch.tensor(0.2))
    with pytest.raises(Refused, match="draws noise"):
        log_prob(move, *torch.zeros(3, 1, 2))


def test_memoryless_noise_forgets_the_start():
    move = FlowSDE().move(Flow(), torch.tensor(1.0), torch.tensor(0.8))
    assert float(move.keep) == 0.0
    assert float(move.noise) == pytest.approx(0.8)
    assert math.isfinite(float(FlowSDE(scheme="euler").move(Flow(), torch.tensor(1.0), torch.tensor(0.8)).noise))
