"""Every path x prediction kind x sampler on Gaussian data, where the best denoiser and the exact answer are closed forms."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from luthier.core import Sampler
from luthier.diffusion.samplers._affine import Affine
from luthier.diffusion.samplers._driver import Visit, sample
from luthier.diffusion.samplers.consistency import Consistency
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.samplers.dpmpp_2m import DPMpp2M
from luthier.diffusion.samplers.euler import Euler
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.diffusion.samplers.heun import Heun
from luthier.diffusion.samplers.tcd import TCD
from luthier.diffusion.schedules._grid import log_snr_grid
from tests.diffusion.oracle import F64, KINDS, PATHS, SPAN, Gaussian, expected, numbers
from tests.tolerance import same

SAMPLERS: dict[str, Sampler] = {
    "ddpm": DDPM(),
    "ddpm_large": DDPM(variance="large"),
    "ddim": DDIM(),
    "ddim_half": DDIM(eta=0.5),
    "ddim_one": DDIM(eta=1.0),
    "euler": Euler(),
    "euler_ratio": Euler(space="ratio"),
    "heun": Heun(),
    "heun_ratio": Heun(space="ratio"),
    "dpmpp_2m": DPMpp2M(),
    "consistency": Consistency(),
    "tcd": TCD(gamma=0.3),
    "flow_sde": FlowSDE(level=0.5),
    "flow_sde_euler": FlowSDE(level=0.5, scheme="euler"),
}
ORDER = {"ddim": 1, "euler": 1, "euler_ratio": 1, "heun": 2, "heun_ratio": 2, "dpmpp_2m": 2}
STOCHASTIC = ("ddpm", "ddim_half", "ddim_one", "flow_sde", "flow_sde_euler")
CELLS = [(p, k) for p in PATHS for k in KINDS]
cells = pytest.mark.parametrize(("path", "kind"), CELLS, ids=[f"{p}-{k}" for p, k in CELLS])
samplers = pytest.mark.parametrize("name", SAMPLERS)


def grid_of(path: str, steps: int) -> Tensor:
    """Times of equal log-SNR steps inside the path, both ends included and noisy."""
    high, low = SPAN[path]
    return log_snr_grid(PATHS[path], steps + 1, high, low)[:-1]


@cells
@samplers
def test_one_step_is_the_formula(path, kind, name):
    data, t, s = Gaussian(), *SPAN[path]
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    z = torch.randn(x.shape, generator=torch.Generator().manual_seed(3), dtype=F64)
    got = sample(data.denoiser(PATHS[path], kind), SAMPLERS[name], x, torch.tensor([t, s], dtype=F64),
                 noise=torch.Generator().manual_seed(3))  # fmt: skip
    want = [[expected(name, PATHS[path], data, float(x[i]), float(z[i]), t, s)] for i in range(5)]
    same(got, torch.tensor(want, dtype=F64))


@cells
@samplers
def test_the_step_to_zero_is_the_clean_estimate(path, kind, name):
    data, t = Gaussian(), SPAN[path][1]
    x = torch.linspace(-2, 2, 5, dtype=F64)[:, None]
    got = sample(data.denoiser(PATHS[path], kind), SAMPLERS[name], x, torch.tensor([t, 0.0], dtype=F64),
                 noise=torch.Generator().manual_seed(0))  # fmt: skip
    alpha, sigma = (torch.tensor(n, dtype=F64) for n in numbers(PATHS[path], t)[:2])
    same(got, data.clean(x, alpha, sigma))


@cells
@pytest.mark.parametrize("name", ORDER)
def test_ode_samplers_converge_at_their_order(path, kind, name):
    data, (high, low) = Gaussian(), SPAN[path]
    x = torch.tensor([[-1.5], [0.5], [2.0]], dtype=F64)
    want = data.flow(PATHS[path], x, high, low)
    errors = []
    for steps in (40, 80):
        got = sample(data.denoiser(PATHS[path], kind), SAMPLERS[name], x, grid_of(path, steps))
        errors.append(float((got - want).abs().max()))
    assert 0.9 * 2 ** ORDER[name] < errors[0] / errors[1] < 1.4 * 2 ** ORDER[name], errors
    assert errors[-1] < (3e-2 if ORDER[name] == 1 else 2e-3), errors


def propagated(name: str, path: str, data: Gaussian, steps: int) -> tuple[float, float]:
    """Mean and variance at the end of the grid, through the affine steps in closed form."""
    sampler, grid = SAMPLERS[name], grid_of(path, steps)
    assert isinstance(sampler, Affine)
    alpha, sigma = numbers(PATHS[path], float(grid[0]))[:2]
    mean, variance = alpha * data.m, alpha**2 * data.c**2 + sigma**2
    at, move = PATHS[path].level(grid[:-1]), sampler.move(PATHS[path], grid[:-1], grid[1:])
    for keep, clean, noise, a, b in torch.stack((*move, at.alpha, at.sigma), 1).tolist():
        gain = data.c**2 * a / (a**2 * data.c**2 + b**2)
        mean = keep * mean + clean * (data.m + gain * (mean - a * data.m))
        variance = (keep + clean * gain) ** 2 * variance + noise**2
    return mean, variance


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_converge_to_mean_and_variance(path, name):
    data = Gaussian()
    alpha, sigma = numbers(PATHS[path], SPAN[path][1])[:2]
    want = (alpha * data.m, alpha**2 * data.c**2 + sigma**2)
    errors = []
    for steps in (200, 400):
        got = propagated(name, path, data, steps)
        errors.append(max(abs(g - w) for g, w in zip(got, want, strict=True)))
    assert errors[-1] < 5e-3, errors
    assert errors[0] / errors[1] > 1.9, errors


@cells
@pytest.mark.parametrize("name", STOCHASTIC)
def test_driver_moves_means_as_propagated(path, kind, name):
    """The mean of the driver's map, found from opposite noise: x and z negated about the mean leave twice the mean."""
    data, grid = Gaussian(), grid_of(path, 6)
    alpha = numbers(PATHS[path], float(grid[0]))[0]
    x = torch.full((1, 3), alpha * data.m, dtype=F64) + torch.tensor([[0.3, -0.4, 0.9]], dtype=F64)
    both = torch.cat((x, 2 * alpha * data.m - x))
    noise = _Opposite()
    got = sample(data.denoiser(PATHS[path], kind), SAMPLERS[name], both, grid, noise=noise)  # type: ignore[arg-type]
    same(got.mean(0), torch.full((3,), propagated(name, path, data, 6)[0], dtype=F64))


class _Opposite:
    """Noise of which the second row is the negative of the first."""

    def normal(self, shape: tuple[int, ...], step: int, dtype: torch.dtype) -> Tensor:
        z = torch.randn(1, shape[1], generator=torch.Generator().manual_seed(step), dtype=dtype)
        return torch.cat((z, -z))


@cells
@pytest.mark.parametrize("name", ["ddpm", "ddim_half", "ddim", "consistency", "tcd", "flow_sde"])
def test_a_point_keeps_its_distribution_exactly(path, kind, name):
    """Data without spread: the clean estimate is right, and every step of the family is exact, however long."""
    data, sampler = Gaussian(c=0.0), SAMPLERS[name]
    assert isinstance(sampler, Affine)
    grid = grid_of(path, 3)
    mean, variance = float("nan"), float("nan")
    for i, (t, s) in enumerate(itertools.pairwise(grid)):
        (alpha, sigma), (to, noise) = numbers(PATHS[path], float(t))[:2], numbers(PATHS[path], float(s))[:2]
        mean, variance = (alpha * data.m, sigma**2) if i == 0 else (mean, variance)
        move = sampler.move(PATHS[path], t, s)
        mean = float(move.keep) * mean + float(move.clean) * data.m
        variance = float(move.keep) ** 2 * variance + float(move.noise) ** 2
        assert mean == pytest.approx(to * data.m, rel=1e-9)
        assert variance == pytest.approx(noise**2, rel=1e-9)
    x = torch.randn(4, 2, dtype=F64)
    out = sample(data.denoiser(PATHS[path], kind), sampler, x, torch.cat((grid, grid.new_zeros(1))),
                 noise=torch.Generator().manual_seed(1))  # fmt: skip
    same(out, torch.full_like(out, data.m))


@cells
def test_consistency_functions_give_the_exact_distribution(path, kind):
    """With the exact map to t = 0 the sampler's x has the right mean and variance after every step."""
    data, grid = Gaussian(), grid_of(path, 4)
    seen: list[Visit] = []
    alpha, sigma = numbers(PATHS[path], float(grid[0]))[:2]
    spread = math.sqrt(alpha**2 * data.c**2 + sigma**2)
    x = alpha * data.m + spread * torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64)
    sample(data.consistency(PATHS[path], kind), Consistency(), x, grid, noise=_Zero(), watch=seen.append)  # type: ignore[arg-type]
    same(seen[0].clean, data.m + data.c * torch.tensor([[-1.0], [0.0], [1.0]], dtype=F64))
    for t, s in itertools.pairwise(grid):
        move = Consistency().move(PATHS[path], t, s)
        to, noise = numbers(PATHS[path], float(s))[:2]
        assert float(move.clean) ** 2 * data.c**2 + float(move.noise) ** 2 == pytest.approx(
            to**2 * data.c**2 + noise**2
        )


class _Zero:
    def normal(self, shape: tuple[int, ...], step: int, dtype: torch.dtype) -> Tensor:
        return torch.zeros(shape, dtype=dtype)
