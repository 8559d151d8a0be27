"""Trajectory consistency distillation: jumps to every earlier time agree, not only those to the clean image.

Paper: arXiv 2402.19159, eq. 14-18.
Formula: d(f(x_t, t, s), f'(x_r, r, s)) for s drawn uniformly among the grid's times from 0 to r, x_r one guided DDIM step of the
frozen start. The sampler tcd uses the jumps with a share of fresh noise.
Takes: images, conditions; the model before training is the teacher.   Gives: (B,) values.
Choose it when: the number of steps is chosen late, from two up, and more steps must not hurt.   Rather not when: one step must do.
Relatives: consistency_distillation (s = 0 always), pcm (s = the phase's edge), sampler tcd.

>>> import torch
>>> between(torch.tensor([0.0, 0.999]), torch.tensor([2, 2]), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])).tolist()
[0.5, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.diffusion.consistency._jump import guided_step, jump, pick, pseudo_huber
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._path import mix

CARD = Card(
    name="TCD",
    source="arXiv 2402.19159",
    papers=(30,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="one forward and backward, one forward of the teacher (two with guidance), one of the target",
    limits=(
        "s = 0: consistency distillation",
        "f(x, t, t) = x",
        "data of one point and a network that knows it: loss 0",
    ),
    differs=(
        "s enters through the DDIM form of the jump alone, as in the authors' code: the network is not told s",
        "the metric is the pseudo-Huber one of an image as a whole; scripts in use take it for each number of it",
    ),
    use_when="the number of steps is chosen late and more steps must not hurt",
    avoid_when="one step must do",
    relatives=("diffusion.consistency.consistency_distillation", "diffusion.samplers.tcd"),
    mechanism="consistency",
)


def between(uniform: Tensor, lower: Tensor, grid: Tensor) -> Tensor:
    """Times s (B,) of the falling grid (n + 1,), at place `lower` (B,) or later, each with the same probability."""
    last = len(grid) - 1
    return grid.to(uniform)[lower + (uniform * (last - lower + 1)).floor().clamp_max((last - lower).to(uniform)).long()]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TCDDistillation(Objective):
    """steps: of the teacher's grid; guidance: scale that is built in; target, huber: as in consistency_distillation."""

    steps: Annotated[int, Ge(2)] = 50
    guidance: float = 1.0
    target: Literal["ema", "self"] = "self"
    huber: Annotated[float, Ge(0)] | None = None

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        student, condition, uniform = s.handle("policy"), batch.condition(), s["uniform"]
        grid = make_grid(student.path, self.steps).to(uniform)
        at = pick(uniform[:, 0], self.steps)
        t, r = grid[at], grid[at + 1]
        end = between(uniform[:, 2], at + 1, grid)
        x = mix(student.path, s["image"], s["noise"], t)
        lower = guided_step(s.handle("reference"), x, t, r, condition, self.guidance)
        with torch.no_grad():
            other = s.handle("ema") if self.target == "ema" else student
            goal = jump(other, lower, r.clamp_min(student.path.t_min), end, condition)
            goal = torch.where((r == end).view(-1, *(1,) * (x.ndim - 1)), lower, goal)
        return Terms("tcd_distillation", pseudo_huber(jump(student, x, t, end, condition), goal, self.huber))
