"""spin_diffusion: diffusion DPO on the opponent's samples, its limits, and a real network."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.diffusion.align import spin_diffusion
from luthier.diffusion.align._trajectory import Walk
from luthier.diffusion.align._trajectory import drawn as normal
from luthier.diffusion.align.diffusion_dpo import DiffusionDPO
from luthier.diffusion.align.spin_diffusion import SpinDiffusion
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules.vp import VP
from tests.diffusion.align_parts import F64, check_rows_are_independent, drawn, gradient, pair_of, real_step, values_of
from tests.tolerance import same


def test_is_diffusion_dpo_on_the_opponents_samples():
    policy, base = pair_of(VP(), "v")
    values = drawn()
    start = normal(values["uniform"][:, 7], 7, values["noise"], "spin").values[-1] * float(
        VP().level(torch.tensor(VP().t_max)).sigma
    )
    loser = sample(base, DDIM(), start, make_grid(VP(), 6))
    pair = {**values, "image": (values["image"][0], loser)}
    for opponent, held in (("reference", {"reference": base}), ("ema", {"ema": base})):
        got = values_of(SpinDiffusion(beta=5.0, steps=6, opponent=opponent), values, {"policy": policy, **held})
        want = values_of(DiffusionDPO(beta=5.0), pair, {"policy": policy, "reference": base}, "image_preference")
        torch.testing.assert_close(got, want, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 3000.0])
def test_at_the_opponent_it_is_log_2(beta):
    _, base = pair_of()
    got = values_of(SpinDiffusion(beta=beta), drawn(), {"policy": base, "reference": base})
    same(got, torch.full((5,), math.log(2), dtype=F64))


def test_swapping_real_and_drawn_turns_the_gradient_round(monkeypatch):
    policy, base = pair_of(apart=0.0)
    values, handles, other = drawn(), {"policy": policy, "reference": base}, torch.randn(5, 2, 1, 1, dtype=F64)

    def slope(real, made):
        monkeypatch.setattr(spin_diffusion, "walk", lambda *rest: Walk(torch.zeros(1), (made,)))
        return gradient(values_of(SpinDiffusion(beta=3.0), {**values, "image": (real,)}, handles).sum(), policy)

    one = slope(values["image"][0], other)
    assert one.norm() > 0
    same(one, -slope(other, values["image"][0]))


@pytest.mark.parametrize("sampler", [DDIM(), DDPM()], ids=repr)
def test_rows_are_independent(sampler):
    policy, base = pair_of(VP(), "eps")
    check_rows_are_independent(SpinDiffusion(steps=4, sampler=sampler), {"policy": policy, "reference": base})


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(SpinDiffusion(steps=3), tmp_path)
    assert got.norm() > 0
    assert policy.forwards == {"reference": 5, "policy": 2}
