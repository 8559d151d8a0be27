"""lora_pro: the projection, the Sylvester equation, the released steps, and a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from luthier.adapt.attach import attach
from luthier.adapt.full import Full
from luthier.adapt.lowrank.locon import LoCon
from luthier.adapt.lowrank.lora import LoRA
from luthier.core import Context
from luthier.core.errors import Refused
from luthier.optim.gradients.lora_pro import LoRAPro, projected
from tests.tolerance import same

F64 = torch.float64
S = 1.7


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


def case(out: int = 5, inputs: int = 7, r: int = 2) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return drawn(r, inputs), drawn(out, r, seed=1), drawn(out, inputs, seed=2)


def move(a: torch.Tensor, b: torch.Tensor, g: torch.Tensor, s: float = S) -> torch.Tensor:
    """How the weight moves for the weight gradient g."""
    on_a, on_b = projected(a, b, s * b.T @ g, s * g @ a.T, s, 0.0)
    return s * (b @ on_a + on_b @ a)


def test_it_is_the_least_squares_solution():
    """Over all pairs of factor gradients at once: 24 unknowns, 35 equations."""
    a, b, g = case()
    left = torch.kron(S * b, torch.eye(7, dtype=F64))
    right = torch.kron(torch.eye(5, dtype=F64), S * a.T.contiguous())
    system = torch.cat([left, right], 1)
    best = torch.linalg.lstsq(system, g.flatten()[:, None], driver="gelsd").solution
    same(move(a, b, g), (system @ best).view(5, 7))


def test_it_is_the_projection_on_what_the_factors_can_reach():
    a, b, g = case()
    p_b = b @ torch.linalg.inv(b.T @ b) @ b.T
    p_a = a.T @ torch.linalg.inv(a @ a.T) @ a
    got = move(a, b, g)
    same(got, p_b @ g + (torch.eye(5, dtype=F64) - p_b) @ g @ p_a)
    same(move(a, b, got), got)
    same((g * got).sum(), got.square().sum())
    plain = S * (b @ (S * b.T @ g) + (S * g @ a.T) @ a)
    for scale in torch.linspace(-1, 1, 41, dtype=F64):
        assert (got - g).norm() <= (scale * plain - g).norm() + 1e-12


def test_the_move_does_not_depend_on_the_basis_of_the_factors():
    a, b, g = case()
    r = drawn(2, 2, seed=3)
    same(move(torch.linalg.inv(r) @ a, b @ r, g), move(a, b, g))


def test_a_rank_as_large_as_the_weight_gives_the_full_gradient():
    a, b, g = case(4, 4, 4)
    same(move(a, b, g), g)


def test_x_solves_the_sylvester_equation_and_is_nearest_to_the_raw_gradients():
    from scipy.linalg import solve_sylvester

    a, b, g = case()
    raw_a, raw_b = S * b.T @ g, S * g @ a.T
    inverse = torch.linalg.inv(b.T @ b)
    x = solve_sylvester((b.T @ b).numpy(), (a @ a.T).numpy(), -(inverse @ raw_a @ a.T / S**2).numpy())
    x = torch.from_numpy(x)
    base_a = inverse @ raw_a / S**2
    base_b = (torch.eye(5, dtype=F64) - b @ inverse @ b.T) @ raw_b @ torch.linalg.inv(a @ a.T) / S**2
    on_a, on_b = projected(a, b, raw_a, raw_b, S, 0.0)
    same(on_a, base_a + x @ a)
    same(on_b, base_b - b @ x)
    nearest = (on_a - raw_a).square().sum() + (on_b - raw_b).square().sum()
    for seed in range(20):
        other = x + 0.1 * drawn(2, 2, seed=seed)
        far = (base_a + other @ a - raw_a).square().sum() + (base_b - b @ other - raw_b).square().sum()
        same(S * (b @ (base_a + other @ a) + (base_b - b @ other) @ a), move(a, b, g))
        assert far > nearest


@pytest.mark.parametrize("damping", [0.0, 1e-8])
def test_a_zero_b_keeps_a_and_moves_b_as_the_released_first_step(damping: float):
    a, _, g = case()
    b = torch.zeros(5, 2, dtype=F64)
    on_a, on_b = projected(a, b, S * b.T @ g, S * g @ a.T, S, damping)
    assert not on_a.any()
    same(on_b, S * g @ a.T @ torch.linalg.inv(a @ a.T + damping * torch.eye(2, dtype=F64)) / S**2)


def test_dependent_columns_are_projected_all_the_same():
    a, b, g = case()
    b = torch.cat([b[:, :1], 2 * b[:, :1]], 1)
    p_b = b[:, :1] @ b[:, :1].T / b[:, :1].square().sum()
    p_a = a.T @ torch.linalg.inv(a @ a.T) @ a
    same(move(a, b, g), p_b @ g + (torch.eye(5, dtype=F64) - p_b) @ g @ p_a)


def layers() -> tuple[nn.Linear, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Linear(7, 5, dtype=F64), drawn(20, 7), drawn(20, 5, seed=1)


def test_a_step_of_the_factors_moves_the_weight_along_the_projected_gradient():
    layer, x, y = layers()
    handle = attach(nn.Sequential(layer), LoRA(rank=2, alpha=3.0))
    with torch.no_grad():
        for _, p in handle.named_parameters():
            p.add_(0.3 * drawn(*p.shape))
    weight = handle.merged()["0.weight"].requires_grad_()
    (g,) = torch.autograd.grad((x @ weight.T + layer.bias - y).square().mean(), weight)
    (layer(x) - y).square().mean().backward()
    ((_, a, b, s),) = handle.low_rank()
    ctx = Context(0, 1, 0, attached=handle)
    LoRAPro(damping=0.0).gradients(list(handle.named_parameters()), ctx)
    assert ctx.changed == 2
    same(s * (b @ a.grad + b.grad @ a), move(a.detach(), b.detach(), g, s))
    before, loss = handle.merged()["0.weight"], (layer(x) - y).square().mean()
    torch.optim.SGD([a, b], lr=1e-4).step()
    assert (layer(x) - y).square().mean() < loss
    moved = (before - handle.merged()["0.weight"]) / 1e-4
    assert (moved - move(a.detach(), b.detach(), g, s)).norm() < 1e-2 * moved.norm()


def test_adam_follows_the_released_steps():
    """A loop over the formulas, moments kept in the shape of the weight; five steps of SGD apply the result."""
    layer, x, y = layers()
    handle = attach(nn.Sequential(layer), LoRA(rank=2, alpha=3.0))
    ((_, a, b, s),) = handle.low_rank()
    ra, rb = a.detach().clone(), b.detach().clone()
    mean, square = torch.zeros(5, 7, dtype=F64), torch.zeros(5, 7, dtype=F64)
    hook, search = LoRAPro(adam=True), torch.optim.SGD([a, b], lr=0.01)
    for step in range(5):
        search.zero_grad()
        (layer(x) - y).square().mean().backward()
        hook.gradients(list(handle.named_parameters()), Context(step, 5, 0, attached=handle, optimiser=search))
        search.step()
        weight = (layer.weight.detach() + s * rb @ ra).requires_grad_()
        (g,) = torch.autograd.grad((x @ weight.T + layer.bias - y).square().mean(), weight)
        for stage in ("gradient", "step"):
            on_a, on_b = projected(ra, rb, s * rb.T @ g, s * g @ ra.T, s, 1e-8)
            if stage == "gradient":
                g = s * (rb @ on_a + on_b @ ra)
                mean, square = 0.9 * mean + 0.1 * g, 0.999 * square + 0.001 * g * g
                g = mean / (1 - 0.9 ** (step + 1)) / ((square / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8)
        ra, rb = ra - 0.01 * on_a, rb - 0.01 * on_b
        torch.testing.assert_close(b.detach(), rb, rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(a.detach(), ra, rtol=1e-5, atol=1e-7)
    again = LoRAPro(adam=True)
    again.load(hook.state())
    assert all(torch.equal(again.state()[k]["0"], hook.state()[k]["0"]) for k in ("mean", "square"))
    assert LoRAPro().state() == {}


def test_convolutions_and_other_trained_weights():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 4, 5))
    handle = attach(model, LoCon(rank=2))
    model(torch.randn(6, 3, 4, 4)).square().mean().backward()
    ctx = Context(0, 1, 0, attached=handle)
    LoRAPro().gradients(list(handle.named_parameters()), ctx)
    assert ctx.changed == 4
    assert all(torch.isfinite(p.grad).all() for _, p in handle.named_parameters())


def test_what_cannot_be_is_refused():
    def run(adaptation: Any, hook: LoRAPro, optimiser: Any = None) -> None:
        layer, x, _ = layers()
        handle = attach(nn.Sequential(layer), adaptation)
        layer(x).sum().backward()
        hook.gradients(list(handle.named_parameters()), Context(0, 1, 0, attached=handle, optimiser=optimiser))

    with pytest.raises(Refused, match=r"two trained low-rank factors a weight; got adapt\.full"):
        run(Full(), LoRAPro())
    with pytest.raises(Refused, match=r"two trained low-rank factors a weight; got adapt\.lowrank\.lora"):
        run(LoRA(rank=2, mode="b_only"), LoRAPro())
    with pytest.raises(Refused, match="requires the optimiser sgd; got AdamW"):
        run(LoRA(rank=2), LoRAPro(adam=True), torch.optim.AdamW([nn.Parameter(torch.zeros(1))]))


def test_a_new_run_starts_without_moments():
    hook, found = LoRAPro(adam=True), []
    for _ in range(2):
        layer, x, y = layers()
        handle = attach(nn.Sequential(layer), LoRA(rank=2))
        for step in range(2):
            (layer(x) - y).square().mean().backward()
            hook.gradients(list(handle.named_parameters()), Context(step, 2, 0, attached=handle))
        found.append([p.grad for _, p in handle.named_parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
