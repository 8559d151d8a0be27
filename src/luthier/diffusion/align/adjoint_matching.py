"""Tune a denoiser to the base tilted by a reward, without bias: each noisy step learns to move along the reward's adjoint.

Paper: arXiv 2409.08861, eq. 37-39 and algorithm 1.
Formula: walk with the memoryless sampler; a = -reward_weight grad r(x_0) at the end, carried back through the base's steps only,
a_k = (d mean_base / d x)^T a_{k+1}; loss sum_k |(mean(x_k) - mean_base(x_k)) / noise_k + noise_k a_{k+1}|^2, walk and a constant.
The optimum samples p_base exp(reward_weight r).
Takes: conditions, a reward that gradients flow through; the model before training is the base.   Gives: (B,) values.
Choose it when: the reward has a gradient and diversity must stay.   Rather not when: it is a black box (prdp, dpok).
Relatives: draft (no base, collapses), flow_sde (the memoryless sampler).

>>> AdjointMatching(reward_weight=2.0).reward_weight
2.0
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Sampler, Signals, Terms, component
from luthier.core.errors import Refused
from luthier.diffusion.align._trajectory import Condition, Walk, clean, drawn, noisy_steps, picks, walk
from luthier.diffusion.samplers._affine import Move
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.diffusion.schedules._kinds import kind_of, to_x0
from luthier.diffusion.schedules._path import level, like

CARD = Card(
    name="Adjoint Matching",
    source="arXiv 2409.08861",
    papers=(36,),
    equations=("37", "38", "39"),
    needs=Needs(batch=("image_prompts",), signals=("noise", "uniform"), handles=("policy", "reference", "reward")),
    cost="one sampling, a forward and a backward by the input of the base at every step, then forward and backward of the policy "
    "at the steps that are learned from",
    limits=(
        "a constant reward and policy = base: no loss and no gradient",
        "base N(m, c^2) and reward a x: the optimum that samples N(m + reward_weight a c^2, c^2) has loss 0 on the chain itself",
        "a linear base: the adjoint is the product of its slopes",
        "the memoryless first step forgets its start",
    ),
    differs=(
        "the adjoint is that of the steps themselves, as in the authors' code (differences of steps of a DDIM scheduler), and not "
        "of a step of the ODE; it is taken at the end of a step, for which a linear chain's optimum is exact, there at its start",
        "the loss of a step is not divided by its length; steps to learn from are spread evenly, there half are drawn among the "
        "last two fifths; large losses are not clipped",
        "the last step draws no noise: it is part of the adjoint and learns nothing",
    ),
    use_when="the reward has a gradient and diversity must stay",
    avoid_when="the reward is a black box",
    relatives=("diffusion.align.draft", "diffusion.samplers.flow_sde", "diffusion.align.dpok"),
    mechanism="diffusion alignment",
)


def pulled(model: Any, x: Tensor, t: Tensor, condition: Condition, v: Tensor) -> tuple[Tensor, Tensor]:
    """(the model's clean estimate x0 at x, the gradient of sum(x0 v) by x), (B, ...) each, without graph."""
    times = t.to(device=x.device, dtype=torch.promote_types(x.dtype, torch.float32))
    at, kind = level(model.path, t, x), kind_of(model.kind)
    one, none = torch.ones_like(at.alpha), torch.zeros_like(at.alpha)
    by_x, by_out = to_x0(one, none, at, kind), to_x0(none, one, at, kind)  # x0 is linear in both
    if hasattr(model, "vjp"):
        out, slope = model.vjp(x, times, condition, by_out * v)
    else:
        with torch.enable_grad():
            leaf = x.detach().requires_grad_(True)
            out = model(leaf, times, condition)
            (slope,) = torch.autograd.grad(out, leaf, (by_out * v).expand_as(out))
    return to_x0(x, out.detach(), at, kind), by_x * v + slope


def adjoints(
    base: Any, sampler: Any, taken: Walk, end: Tensor, condition: Condition
) -> tuple[list[Tensor], list[Tensor]]:
    """(a at the end of each step, the base's clean estimate at its start), n tensors (B, ...) each, from a at the walk's end."""
    made: list[Tensor] = []
    estimates: list[Tensor] = []
    a = end
    for k in range(len(taken.states) - 2, -1, -1):
        x, t = taken.states[k], taken.grid[k].to(end.device).expand(len(end))
        move: Move = sampler.move(base.path, taken.grid[k], taken.grid[k + 1])
        made.append(a)
        x0, slope = pulled(base, x, t, condition, like(move.clean, a) * a)
        estimates.append(x0)
        a = like(move.keep, a) * a + slope
    return made[::-1], estimates[::-1]


def reward_slope(reward: Any, x: Tensor, rows: Any, who: str) -> Tensor:
    """The gradient of each sample's reward by the sample, (B, ...). Raises Refused for a reward without one."""
    with torch.enable_grad():
        leaf = x.detach().requires_grad_(True)
        value = reward(leaf, rows)
        if not value.requires_grad:
            raise Refused(
                f"{who} requires a reward that gradients flow through; this one gives plain numbers. Use prdp or dpok, or another "
                "reward."
            )
        return torch.autograd.grad(value.sum(), leaf)[0]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class AdjointMatching(Objective):
    """reward_weight: strength of the tilt; steps: of the walk; transitions: steps to learn from, None for all; sampler: memoryless."""

    reward_weight: Annotated[float, Ge(0)] = 1.0
    steps: Annotated[int, Ge(2)] = 20
    transitions: Annotated[int, Ge(1)] | None = None
    sampler: Sampler = field(default_factory=FlowSDE)

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        model, base, uniform, condition = s.handle("policy"), s.handle("reference"), s["uniform"], batch.condition()
        source = drawn(uniform[:, 7], self.steps, s["noise"], "adjoint")
        taken = walk(model, self.sampler, self.steps, s["noise"], condition, source)
        end = -self.reward_weight * reward_slope(s.handle("reward"), taken.sample, batch.meta, "adjoint_matching")
        lean, estimates = (torch.stack(v) for v in adjoints(base, self.sampler, taken, end, condition))
        noisy = noisy_steps(self.sampler, model.path, taken.grid, "adjoint_matching")
        numbers, rows = picks(uniform[:, 2], noisy, self.transitions), torch.arange(len(uniform), device=uniform.device)
        total = torch.zeros(len(uniform), dtype=end.dtype, device=end.device)
        for index in numbers:
            x, t, low, _ = taken.at(index)
            move: Move = self.sampler.move(model.path, t, low)  # type: ignore[attr-defined]
            moved = like(move.clean / move.noise, x) * (clean(model, x, t, condition) - estimates[index, rows])
            total = total + (moved + like(move.noise, x) * lean[index, rows]).square().flatten(1).sum(1)
        return Terms("adjoint_matching", total * (noisy / len(numbers)))
