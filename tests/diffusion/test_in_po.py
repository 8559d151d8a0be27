"""in_po: the inversion against diffusers and against a Gaussian's closed form, its limits, and a real network."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.diffusion.align import in_po
from luthier.diffusion.align.diffusion_dpo import DiffusionDPO
from luthier.diffusion.align.in_po import InPO, inverted
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._kinds import from_x0
from luthier.diffusion.schedules._path import Predictor, level
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.times.grid_time import GridTime
from luthier.diffusion.schedules.vp import VP
from luthier.diffusion.schedules.vp_table import VPTable
from tests.diffusion.align_parts import F64, Network, check_rows_are_independent, drawn, pair_of, real_step, values_of
from tests.diffusion.oracle import Gaussian
from tests.tolerance import same

KIND = "image_preference"


def test_the_inversion_is_that_of_diffusers():
    from diffusers import DDIMInverseScheduler

    path = VPTable(steps=50)
    network = Network(path, "eps")
    scheduler = DDIMInverseScheduler(num_train_timesteps=50, beta_start=1e-4, beta_end=0.02, clip_sample=False,
                                     timestep_spacing="trailing")  # fmt: skip
    scheduler.set_timesteps(10)
    x0, t, s = torch.randn(3, 2, 1, 1, dtype=F64), 24, 29
    at, to = ((k + 1) / 50 for k in (t, s))
    eps = network(x0, torch.full((3,), at, dtype=F64))
    bar = scheduler.alphas_cumprod.double()
    want = bar[s].sqrt() * (x0 - (1 - bar[t]).sqrt() * eps) / bar[t].sqrt() + (1 - bar[s]).sqrt() * eps
    theirs = scheduler.step(eps, s, x0).prev_sample  # its argument is the time that is stepped to
    torch.testing.assert_close(theirs, want, rtol=1e-4, atol=1e-5)
    from luthier.diffusion.consistency._jump import estimates, land

    ours = land(path, *estimates(network, x0, torch.full((3,), at, dtype=F64), None), torch.full((3,), to, dtype=F64))
    torch.testing.assert_close(ours, want, rtol=1e-4, atol=1e-5)


def exact(path, kind="v"):
    truth = Gaussian()

    def predict(x, t, condition):
        at = level(path, t, x)
        return from_x0(x, truth.clean(x, at.alpha, at.sigma), at, kind)

    return Predictor(predict, path, kind)


@pytest.mark.parametrize("path", [Flow(), VP()], ids=lambda p: p.name)
def test_an_exact_model_inverts_to_the_standardised_image(path):
    truth, x0 = Gaussian(), torch.randn(6, 1, 1, 1, dtype=F64)
    steps = 400
    for count in (200, 400):
        x = inverted(exact(path), x0, None, torch.full((6,), count), steps, 0.0, None)
        at = path.level(make_grid(path, steps).flip(0)[count])
        want = at.alpha * truth.m + (at.alpha**2 * truth.c**2 + at.sigma**2).sqrt() * (x0 - truth.m) / truth.c
        torch.testing.assert_close(x, want, rtol=0.02, atol=0.02)


def test_sampling_leads_back_to_the_image():
    path, x0 = VP(), torch.randn(6, 1, 1, 1, generator=torch.Generator().manual_seed(0), dtype=F64)
    off = []
    for steps in (50, 400):
        x = inverted(exact(path), x0, None, torch.full((6,), steps), steps, 0.0, None)
        back = sample(exact(path), DDIM(), x, make_grid(path, steps))
        off.append(float((back - x0).abs().max()))
    assert off[1] < 0.05
    assert off[1] < off[0] / 4


def test_with_random_noise_it_is_diffusion_dpo(monkeypatch):
    policy, reference = pair_of(VP(), "v")
    values, handles = drawn(kind=KIND), {"policy": policy, "reference": reference}
    steps = 10
    grid = make_grid(policy.path, steps).flip(0)

    def mixed(model, x0, condition, count, *rest):
        at = level(model.path, grid[count], x0)
        return at.alpha * x0 + at.sigma * values["noise"]

    monkeypatch.setattr(in_po, "inverted", mixed)
    got = values_of(InPO(beta=9.0, steps=steps), values, handles, KIND)
    falling = {**values, "uniform": 1 - values["uniform"]}  # the grid of the other counts from the top
    same(got, values_of(DiffusionDPO(beta=9.0, times=GridTime(steps=steps)), falling, handles, KIND))


def test_the_reference_itself_has_log_2():
    _, reference = pair_of()
    got = values_of(InPO(), drawn(kind=KIND), {"policy": reference, "reference": reference}, KIND)
    same(got, torch.full((5,), math.log(2), dtype=F64))


def test_without_eta_nothing_is_random():
    policy, reference = pair_of(VP(), "v")
    handles, values = {"policy": policy, "reference": reference}, drawn(kind=KIND)
    other = {**values, "uniform": values["uniform"].clone(), "noise": values["noise"] + 1}
    other["uniform"][:, 1:] = 0.5
    same(values_of(InPO(eta=0.0), values, handles, KIND), values_of(InPO(eta=0.0), other, handles, KIND))
    assert (values_of(InPO(), values, handles, KIND) != values_of(InPO(), other, handles, KIND)).any()


@pytest.mark.parametrize("kind", ["eps", "v", "velocity", "x0"])
def test_rows_are_independent(kind):
    policy, reference = pair_of(VP(), kind)
    check_rows_are_independent(InPO(), {"policy": policy, "reference": reference}, KIND)


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(InPO(steps=3), tmp_path, KIND)
    assert got.norm() > 0
    assert policy.forwards["reference"] == 2
