"""dco: its gradient is denoise's at the start and fades, diffusion DPO with a silent loser, and a step of a real network."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.diffusion.align._pairs import pair_loss
from luthier.diffusion.personalise.dco import DCO, anchored_loss
from luthier.diffusion.schedules.vp import VP
from luthier.diffusion.train.denoise import Denoise
from tests.diffusion.align_parts import F64, check_rows_are_independent, drawn, gradient, pair_of, real_step, values_of
from tests.tolerance import same


@pytest.mark.parametrize("kind", ["eps", "v", "velocity", "x0"])
def test_at_the_start_it_is_log_2_with_the_gradient_of_denoise(kind):
    policy, reference = pair_of(VP(), kind, apart=0.0)
    values, handles = drawn(), {"policy": policy, "reference": reference}
    got = values_of(DCO(beta=30.0), values, handles)
    same(got, torch.full((5,), math.log(2), dtype=F64))
    same(gradient(got.sum(), policy), 15.0 * gradient(values_of(Denoise(), values, handles).sum(), policy))


def test_equals_the_formula_from_the_losses_of_both_models():
    policy, reference = pair_of()
    values = drawn()
    own, base = (values_of(Denoise(), values, {"policy": m}).tolist() for m in (policy, reference))
    want = [math.log(1 + math.exp(20.0 * (a - b))) for a, b in zip(own, base, strict=True)]
    same(values_of(DCO(beta=20.0), values, {"policy": policy, "reference": reference}), torch.tensor(want, dtype=F64))


def test_an_image_that_was_learned_enough_has_no_gradient():
    gained = torch.tensor([-1.0, 0.0, 1.0], dtype=F64, requires_grad=True)
    (slope,) = torch.autograd.grad(anchored_loss(gained, 1000.0).sum(), gained)
    assert slope[0] == -1000.0
    assert slope[1] == -500.0
    assert slope[2].abs() < 1e-300


def test_it_is_a_pair_with_a_silent_loser():
    gained = torch.randn(6, dtype=F64)
    same(anchored_loss(gained, 7.0), pair_loss(gained, torch.zeros(6, dtype=F64), 14.0))


def test_rows_are_independent():
    policy, reference = pair_of()
    check_rows_are_independent(DCO(), {"policy": policy, "reference": reference})


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(DCO(), tmp_path)
    assert got.norm() > 0
    assert policy.forwards == {"reference": 1, "policy": 1}
