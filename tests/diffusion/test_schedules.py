"""Paths (flow, ve, vp, vp_table), prediction kinds, grids, training times and loss weights."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.core.errors import ConfigError, Refused
from luthier.diffusion.schedules._grid import index_grid, karras_grid, log_snr_grid, make_grid, shifted, uniform_grid
from luthier.diffusion.schedules._kinds import (
    convert,
    from_pair,
    kind_of,
    sensitivity,
    to_eps,
    to_score,
    to_velocity,
    to_x0,
)
from luthier.diffusion.schedules._path import check_times, level, log_snr, mix, noise_share
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.times.grid_time import GridTime
from luthier.diffusion.schedules.times.karras_time import KarrasTime
from luthier.diffusion.schedules.times.logit_normal import LogitNormal
from luthier.diffusion.schedules.times.uniform_time import UniformTime
from luthier.diffusion.schedules.ve import VE
from luthier.diffusion.schedules.vp import VP
from luthier.diffusion.schedules.vp_table import VPTable
from luthier.diffusion.schedules.weights.edm_weight import EDMWeight
from luthier.diffusion.schedules.weights.min_snr import MinSNR
from luthier.diffusion.schedules.weights.sigmoid_weight import SigmoidWeight
from luthier.diffusion.schedules.weights.snr_weight import SNRWeight
from luthier.diffusion.schedules.weights.unit_weight import UnitWeight
from tests.diffusion.oracle import F64, KINDS, PATHS, numbers
from tests.tolerance import same

paths = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)


def times(path, n=50):
    return torch.linspace(path.t_min, path.t_max * 0.999, n, dtype=F64)


@paths
def test_derivatives_are_those_of_alpha_and_sigma(path):
    for t in times(path, 9).tolist():
        at = path.level(torch.tensor(t + 1e-9, dtype=F64))
        _, _, d_alpha, d_sigma = numbers(path, t + 1e-9)
        assert float(at.d_alpha) == pytest.approx(d_alpha, rel=1e-8, abs=1e-12)
        assert float(at.d_sigma) == pytest.approx(d_sigma, rel=1e-8, abs=1e-12)


@paths
def test_time_of_is_the_inverse_of_log_snr(path):
    t = times(path)
    same(path.time_of(log_snr(path, t)), t)


@paths
def test_clean_at_zero_and_noise_rises(path):
    at = path.level(torch.tensor(0.0, dtype=F64))
    assert float(at.alpha) == 1.0 and float(at.sigma) == 0.0
    assert bool((log_snr(path, times(path)).diff() < 0).all())
    share = noise_share(path, times(path))
    assert bool((share.diff() > 0).all()) and float(share.min()) >= 0 and float(share.max()) <= 1
    with pytest.raises(Refused, match="times in"):
        check_times(path, torch.tensor([path.t_max * 1.1]), "test")


@pytest.mark.parametrize("path", [VP(), VP(schedule="cosine"), VPTable(), VPTable(zero_snr=True)], ids=repr)
def test_vp_preserves_variance(path):
    at = path.level(torch.linspace(0, path.t_max, 101, dtype=F64))
    same(at.alpha.square() + at.sigma.square(), torch.ones(101, dtype=F64))


def test_vp_follows_its_integral():
    path, t = VP(beta_0=0.3, beta_1=7.0), 0.6
    beta = torch.linspace(0, t, 200_001, dtype=F64) * (7.0 - 0.3) + 0.3
    assert float(path.level(torch.tensor(t)).alpha) == pytest.approx(math.exp(-0.5 * float(beta.mean()) * t), rel=1e-7)


def test_table_holds_its_products():
    betas = (0.1, 0.2, 0.4)
    path = VPTable(steps=3, betas=betas)
    left = 1.0
    for k, beta in enumerate(betas):
        left *= 1 - beta
        at = path.level(path.index_time(torch.tensor(k, dtype=F64)))
        assert float(at.alpha) ** 2 == pytest.approx(left)
    same(path.network_time(torch.tensor([1 / 3, 2 / 3, 1.0])), torch.tensor([0.0, 1.0, 2.0]))


def test_table_with_zero_snr_ends_in_noise_and_begins_as_before():
    plain, moved = VPTable(), VPTable(zero_snr=True)
    first, last = torch.tensor(plain.t_min, dtype=F64), torch.tensor(1.0, dtype=F64)
    assert float(moved.level(last).alpha) == 0.0
    assert float(moved.level(first).alpha) == pytest.approx(float(plain.level(first).alpha), rel=1e-12)


@pytest.mark.parametrize(
    "make", [lambda: VPTable(betas=(0.1,)), lambda: VE(t_min=1.0, t_max=0.5), lambda: VP(beta_1=0.01)]
)
def test_impossible_paths_are_refused(make):
    with pytest.raises(ValueError, match="requires"):
        make()


def test_network_time():
    assert float(Flow().network_time(torch.tensor(0.25))) == 250.0
    assert float(VE().network_time(torch.tensor(1.0))) == 0.0
    float32 = torch.arange(1, 1001, dtype=torch.float32) / 1000
    assert torch.equal(VPTable().network_time(float32), torch.arange(1000, dtype=torch.float32))


# ---------------------------------------------------------------------- kinds
@paths
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_agree_with_the_truth(path, kind):
    g = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 7, 3, generator=g, dtype=F64)
    t = times(path, 7) if path.name != "ve" else torch.linspace(0.1, 10, 7, dtype=F64)
    x, at = mix(path, x0, eps, t), level(path, t, x0)
    out = from_pair(x0, eps, at, kind)
    torch.testing.assert_close(to_x0(x, out, at, kind), x0, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(to_eps(x, out, at, kind), eps, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(to_velocity(x, out, at, kind), at.d_alpha * x0 + at.d_sigma * eps, rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(to_score(x, out, at, kind), -eps / at.sigma, rtol=1e-7, atol=1e-7)
    for other in KINDS:
        back = convert(x, convert(x, out, at, kind, other), at, other, kind)
        torch.testing.assert_close(back, out, rtol=1e-6, atol=1e-8)
    assert convert(x, out, at, kind, kind) is out


@paths
@pytest.mark.parametrize("kind", KINDS)
def test_sensitivity_is_the_slope_of_the_prediction(path, kind):
    from luthier.diffusion.schedules._kinds import from_x0

    t = torch.tensor([0.3], dtype=F64)
    x, x0 = torch.tensor([[0.4]], dtype=F64), torch.tensor([[0.2]], dtype=F64)
    at = level(path, t, x)
    slope = (from_x0(x, x0 + 1e-3, at, kind) - from_x0(x, x0 - 1e-3, at, kind)) / 2e-3
    same(slope.abs(), sensitivity(at, kind))


def test_ends_where_a_kind_says_nothing_are_refused():
    x, flow = torch.zeros(2, 3), Flow()
    noise, clean = level(flow, torch.tensor([1.0, 1.0]), x), level(flow, torch.tensor([0.0, 0.5]), x)
    with pytest.raises(Refused, match="x0 from eps"):
        to_x0(x, x, noise, "eps")
    with pytest.raises(Refused, match="sigma > 0"):
        to_eps(x, x, clean, "x0")
    with pytest.raises(Refused, match="prediction kind"):
        kind_of("noise")
    for kind in ("v", "velocity"):
        for at in (noise, clean):
            assert bool(torch.isfinite(to_x0(x, x, at, kind)).all() & torch.isfinite(to_eps(x, x, at, kind)).all())


# ---------------------------------------------------------------------- grids
def test_karras_grid_is_the_papers():
    grid = karras_grid(VE(), 18)
    want = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)] + [0.0]
    same(grid, torch.tensor(want, dtype=F64))
    assert len(karras_grid(VE(), 1)) == 2


@paths
@pytest.mark.parametrize("spacing", ["uniform", "karras", "log_snr"])
def test_grids_fall_to_zero(path, spacing):
    path = Flow(t_max=0.99) if path.name == "flow" else path
    grid = make_grid(path, 12, spacing)
    assert grid.shape == (13,) and float(grid[-1]) == 0.0
    assert bool((grid.diff() < 0).all())
    assert float(grid[0]) == pytest.approx(path.t_max, rel=1e-6)


def test_log_snr_grid_has_equal_steps():
    gain = log_snr(VP(), log_snr_grid(VP(), 9)[:-1]).diff()
    same(gain, gain[:1].expand(8))


def test_shift_moves_to_noise_and_keeps_ends():
    grid = uniform_grid(Flow(), 4)
    same(shifted(grid, 1.0), grid)
    same(shifted(grid, 3.0), torch.tensor([1.0, 0.9, 0.75, 0.5, 0.0], dtype=F64))


@pytest.mark.parametrize("make", [
    lambda: karras_grid(Flow(), 5), lambda: uniform_grid(Flow(), 0), lambda: shifted(uniform_grid(Flow(), 2), 0.0),
    lambda: index_grid([5, 7], 10), lambda: index_grid([10], 10), lambda: karras_grid(VE(), 5, rho=0.0),
    lambda: log_snr_grid(VP(), 5, high=0.1, low=0.2)])  # fmt: skip
def test_impossible_grids_are_refused(make):
    with pytest.raises(ConfigError, match="requires"):
        make()


# ---------------------------------------------------------------------- times
UNIFORM = (torch.arange(4000, dtype=F64) + 0.5) / 4000


@pytest.mark.parametrize("times", [UniformTime(), LogitNormal(shift=2.0), KarrasTime(), GridTime(steps=10)], ids=repr)
@paths
def test_times_lie_in_the_domain_and_rise_or_fall_with_the_number(times, path):
    t = times(UNIFORM, path)
    assert t.shape == UNIFORM.shape
    assert float(t.min()) >= path.t_min * (1 - 1e-9) and float(t.max()) <= path.t_max * (1 + 1e-9)
    rises = t.diff()
    assert bool((rises >= -1e-12).all() | (rises <= 1e-12).all())


def test_uniform_time_ends():
    path = VP()
    same(UniformTime()(torch.tensor([0.0, 1.0], dtype=F64), path), torch.tensor([path.t_min, path.t_max], dtype=F64))


def test_grid_time_is_even_and_whole_on_a_table():
    table = VPTable(steps=10)
    t = GridTime(steps=10)(UNIFORM, table)
    steps, counts = table.network_time(t).round().unique(return_counts=True)
    assert steps.tolist() == list(range(10)) and set(counts.tolist()) == {400}


def test_logit_normal_and_karras_are_one_family_on_flow():
    path = Flow(t_min=1e-9, t_max=1 - 1e-9)
    logit = torch.logit(LogitNormal(mean=0.3, std=0.8)(UNIFORM, path))
    assert float(logit.mean()) == pytest.approx(0.3, abs=1e-6) and float(logit.std()) == pytest.approx(0.8, rel=2e-3)
    same(KarrasTime(mean=0.3, std=0.8)(UNIFORM, path), LogitNormal(mean=0.3, std=0.8)(UNIFORM, path))
    median = LogitNormal(mean=0.5, shift=3.0)(torch.tensor([0.5], dtype=F64), path)
    share = 1 / (1 + math.exp(-0.5))
    assert float(median) == pytest.approx(3 * share / (1 + 2 * share))


def test_karras_time_is_log_normal_on_ve():
    log = KarrasTime()(UNIFORM, VE(t_min=1e-6, t_max=1e6)).log()
    assert float(log.mean()) == pytest.approx(-1.2, abs=1e-6) and float(log.std()) == pytest.approx(1.2, rel=2e-3)


# -------------------------------------------------------------------- weights
def snr_of(path, t):
    alpha, sigma = numbers(path, t)[:2]
    return (alpha / sigma) ** 2


@paths
def test_weights_are_their_formulas(path):
    for t in (0.2, 0.5, 0.9):
        snr, at = snr_of(path, t), torch.tensor([t], dtype=F64)

        def got(weight, kind, at=at):
            return float(weight(path, at, kind))

        assert got(UnitWeight(), "v") == 1.0
        assert got(SNRWeight(), "eps") == pytest.approx(1.0)
        assert got(SNRWeight(), "x0") == pytest.approx(snr)
        assert got(MinSNR(), "x0") == pytest.approx(min(snr, 5))
        assert got(MinSNR(), "eps") == pytest.approx(min(snr, 5) / snr)
        assert got(MinSNR(gamma=1e12), "v") == pytest.approx(got(SNRWeight(), "v"))
        assert got(EDMWeight(deviation=0.5), "x0") == pytest.approx((1 / snr + 0.25) / (1 / snr * 0.25))
        assert got(EDMWeight(deviation=1e9), "x0") == pytest.approx(got(SNRWeight(), "x0"))
        assert got(SigmoidWeight(bias=-1.0), "eps") == pytest.approx(1 / (1 + math.exp(1 + math.log(snr))))
        assert got(SigmoidWeight(bias=80.0), "eps") == pytest.approx(1.0)
        if path.name.startswith("vp"):
            assert got(MinSNR(), "v") == pytest.approx(min(snr, 5) / (snr + 1))


@pytest.mark.parametrize("weight", [SNRWeight(), MinSNR(), EDMWeight(), SigmoidWeight()], ids=repr)
@paths
def test_a_weighted_error_is_the_same_in_every_kind(weight, path):
    t = torch.tensor([0.4], dtype=F64)
    x, x0, guess = (torch.randn(1, 5, dtype=F64, generator=torch.Generator().manual_seed(i)) for i in range(3))
    at = level(path, t, x)
    losses = [float(weight(path, t, kind)) * float((convert(x, guess, at, "x0", kind) - convert(x, x0, at, "x0", kind))
              .square().mean()) for kind in KINDS]  # fmt: skip
    assert losses == pytest.approx([losses[0]] * 4, rel=1e-9)
