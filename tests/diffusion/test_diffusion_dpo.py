"""diffusion_dpo: loops over pixels, its limits, and a step of a real network."""

from __future__ import annotations

import math

import pytest
import torch

from luthier.diffusion.align.diffusion_dpo import DiffusionDPO
from luthier.diffusion.schedules.vp import VP
from luthier.diffusion.schedules.weights.min_snr import MinSNR
from tests.diffusion.align_parts import F64, check_rows_are_independent, drawn, gradient, pair_of, real_step, values_of
from tests.tolerance import same

KIND = "image_preference"


def test_equals_the_loop_over_pairs_and_pixels():
    policy, reference = pair_of()
    values = drawn(kind=KIND)
    got = values_of(DiffusionDPO(beta=7.0), values, {"policy": policy, "reference": reference}, KIND)
    for i in range(5):
        t = float(policy.path.t_min + values["uniform"][i, 0] * (policy.path.t_max - policy.path.t_min))
        inside = 0.0
        for sign, image in zip((1, -1), values["image"], strict=True):
            x0, eps = image[i : i + 1], values["noise"][i : i + 1]
            xt = (1 - t) * x0 + t * eps
            for model, side in ((policy, 1), (reference, -1)):
                out = model(xt, torch.tensor([t], dtype=F64)).flatten().tolist()
                goal = (eps - x0).flatten().tolist()
                inside += sign * side * sum((a - b) ** 2 for a, b in zip(out, goal, strict=True)) / 2
        assert float(got[i].detach()) == pytest.approx(math.log(1 + math.exp(7.0 / 2 * inside)), rel=1e-9)


@pytest.mark.parametrize("beta", [1.0, 5000.0])
def test_the_reference_itself_has_log_2(beta):
    _, reference = pair_of()
    got = values_of(DiffusionDPO(beta=beta), drawn(kind=KIND), {"policy": reference, "reference": reference}, KIND)
    same(got, torch.full((5,), math.log(2), dtype=F64))


def test_swapping_the_images_turns_the_gradient_at_the_reference_round():
    policy, reference = pair_of(apart=0.0)
    values = drawn(kind=KIND)
    handles = {"policy": policy, "reference": reference}
    one = gradient(values_of(DiffusionDPO(beta=3.0), values, handles, KIND).sum(), policy)
    other = gradient(
        values_of(DiffusionDPO(beta=3.0), {**values, "image": values["image"][::-1]}, handles, KIND).sum(), policy
    )
    assert one.norm() > 0
    same(one, -other)


def test_two_equal_images_say_nothing():
    policy, reference = pair_of()
    values = drawn(kind=KIND)
    values["image"] = (values["image"][0],) * 2
    got = values_of(DiffusionDPO(), values, {"policy": policy, "reference": reference}, KIND)
    same(got, torch.full((5,), math.log(2), dtype=F64))
    assert gradient(got.sum(), policy).norm() == 0


@pytest.mark.parametrize("kind", ["eps", "v", "x0"])
def test_rows_are_independent(kind):
    policy, reference = pair_of(VP(), kind)
    check_rows_are_independent(DiffusionDPO(weighting=MinSNR()), {"policy": policy, "reference": reference}, KIND)


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(DiffusionDPO(), tmp_path, KIND)
    assert got.norm() > 0
    assert policy.forwards == {"reference": 2, "policy": 2}
