"""draft: the chain in loops, truncation for each row, checkpoints, the closed form of one linear step, and a real network."""

from __future__ import annotations

import pytest
import torch

from luthier.core.errors import Refused
from luthier.diffusion.align.draft import Draft, first_kept
from luthier.diffusion.samplers.ddpm import DDPM
from luthier.diffusion.schedules._path import Predictor
from luthier.diffusion.schedules.flow import Flow
from tests.diffusion.align_parts import F64, Network, check_rows_are_independent, drawn, gradient, real_step, values_of
from tests.tolerance import same

KIND = "image_prompts"
REWARD = lambda x, rows: (x.flatten(1) * torch.tensor([1.0, -2.0], dtype=x.dtype)).sin().sum(1)  # noqa: E731


def chain(network, noise, steps, kept):
    """Euler on flow in plain steps, gradients from step `kept` on."""
    x = noise
    for i in range(steps):
        t = 1 - i / steps
        out = network(x, torch.tensor([t], dtype=F64))
        x = x - (out if i >= kept else out.detach()) / steps
    return x


@pytest.mark.parametrize("last", [1, 3, 6, None])
def test_equals_the_chain_in_a_loop_with_its_gradient(last):
    network, values = Network(), drawn(kind=KIND)
    got = values_of(Draft(steps=6, last=last), values, {"policy": network, "reward": REWARD}, KIND)
    kept = [5 - int(6 * float(u)) for u in values["uniform"][:, 2]] if last is None else [6 - last] * 5
    want = torch.cat([-REWARD(chain(network, values["noise"][i : i + 1], 6, kept[i]), None) for i in range(5)])
    same(got, want)
    for i in range(5):
        same(gradient(got[i], network), gradient(want[i], network))


@pytest.mark.parametrize("last", [2, None])
def test_checkpoints_change_no_gradient(last):
    network, values = Network(), drawn(kind=KIND)
    handles = {"policy": network, "reward": REWARD}
    one, other = (gradient(values_of(Draft(steps=5, last=last, checkpoints=c, sampler=DDPM()), values, handles, KIND).sum(), network)
                  for c in (False, True))  # fmt: skip
    assert one.norm() > 0
    same(one, other)


def test_one_step_of_a_linear_model_has_the_reparameterised_gradient():
    scale = torch.tensor(0.3, dtype=F64, requires_grad=True)
    model = Predictor(lambda x, t, c: scale * x, Flow(), "velocity")
    values = drawn(kind=KIND)
    linear = lambda x, rows: x.flatten(1).sum(1)  # noqa: E731
    (got,) = torch.autograd.grad(
        values_of(Draft(steps=1), values, {"policy": model, "reward": linear}, KIND).sum(), scale
    )
    same(got, values["noise"].sum())  # x0 = (1 - scale) noise, so -r has slope + noise


def test_a_reward_without_slope_moves_nothing_and_plain_numbers_are_refused():
    network = Network()
    flat = {"policy": network, "reward": lambda x, rows: 0 * x.flatten(1).sum(1) + 3.0}
    assert gradient(values_of(Draft(steps=3, last=2), drawn(kind=KIND), flat, KIND).sum(), network).norm() == 0
    plain = {"policy": network, "reward": lambda x, rows: torch.ones(len(x))}
    with pytest.raises(Refused, match="gradients flow through"):
        values_of(Draft(steps=3), drawn(kind=KIND), plain, KIND)


def test_random_truncation_is_uniform():
    kept = first_kept(torch.linspace(1e-6, 1 - 1e-6, 4000), 4, None)
    assert kept.bincount().tolist() == [1000] * 4


@pytest.mark.parametrize("sampler", [None, DDPM()])
def test_rows_are_independent(sampler):
    more = {} if sampler is None else {"sampler": sampler}
    check_rows_are_independent(Draft(steps=4, last=None, **more), {"policy": Network(), "reward": REWARD}, KIND)


def test_a_step_of_a_real_network(tmp_path):
    policy, got = real_step(Draft(steps=3, last=2), tmp_path, KIND, lambda x, rows: x.flatten(1).mean(1))
    assert got.norm() > 0
    assert policy.forwards == {"policy": 3}
