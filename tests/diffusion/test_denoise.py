"""denoise: the loop over pixels, diffusers' own loss, the closed form of Gaussian data, and any split."""

from __future__ import annotations

import pytest
import torch

from luthier.core import Batch, Signals
from luthier.diffusion.schedules._path import Predictor
from luthier.diffusion.schedules.flow import Flow
from luthier.diffusion.schedules.times.grid_time import GridTime
from luthier.diffusion.schedules.vp_table import VPTable
from luthier.diffusion.train.denoise import Denoise, denoising_error
from tests.tolerance import same

F64 = torch.float64


def signals(policy, n=6, shape=(2, 3, 3)):
    g = torch.Generator().manual_seed(0)
    values = {"image": torch.randn(n, *shape, generator=g, dtype=F64), "noise": torch.randn(n, *shape, generator=g, dtype=F64),
              "uniform": torch.rand(n, 8, generator=g, dtype=F64)}  # fmt: skip
    return Signals({k: (v,) for k, v in values.items()}, ("image",), lambda name: {"policy": policy}[name]), values


def batch(values):
    return Batch("image", {"image": values["image"]}, ("image",))


@pytest.mark.parametrize("kind", ["x0", "eps", "v", "velocity"])
def test_a_network_that_knows_the_answer_has_no_loss(kind):
    held = {}

    def know(x, t, condition):
        a, s = (1 - t).view(-1, 1, 1, 1), t.view(-1, 1, 1, 1)
        x0, eps = held["image"], held["noise"]
        return {"x0": x0, "eps": eps, "v": a * eps - s * x0, "velocity": eps - x0}[kind]

    s, values = signals(Predictor(know, Flow(), kind))
    held.update(values)
    same(Denoise()(batch(values), s).values, torch.zeros(6, dtype=F64))


def test_equals_the_loop_over_pixels():
    s, values = signals(Predictor(lambda x, t, c: 0.3 * x, Flow(), "velocity"))
    got = Denoise()(batch(values), s).values
    for i in range(6):
        t = float((Flow().t_max - Flow().t_min) * values["uniform"][i, 0] + Flow().t_min)
        total = 0.0
        for x0, eps in zip(values["image"][i].flatten().tolist(), values["noise"][i].flatten().tolist(), strict=True):
            total += (0.3 * ((1 - t) * x0 + t * eps) - (eps - x0)) ** 2
        assert float(got[i]) == pytest.approx(total / 18, rel=1e-9)


def test_equals_the_loss_of_diffusers_training_scripts():
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(num_train_timesteps=50, beta_start=1e-4, beta_end=0.02)
    network = torch.nn.Conv2d(2, 2, 1).double()
    path = VPTable(steps=50)
    s, values = signals(Predictor(lambda x, t, c: network(x), path, "eps"))
    got = Denoise(times=GridTime(steps=50))(batch(values), s).values
    t = GridTime(steps=50)(values["uniform"][:, 0], path)
    index = path.network_time(t).round().long()
    noisy = scheduler.add_noise(values["image"], values["noise"], index)
    want = torch.nn.functional.mse_loss(network(noisy), values["noise"], reduction="none").flatten(1).mean(1)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_error_is_the_mean_over_pixels():
    same(
        denoising_error(torch.zeros(2, 1, 2, 2, dtype=F64), torch.full((2, 1, 2, 2), 2.0, dtype=F64)),
        torch.full((2,), 4.0, dtype=F64),
    )
