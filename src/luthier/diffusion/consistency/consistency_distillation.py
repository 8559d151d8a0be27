"""Consistency distillation: the student learns to say at t what its target says one teacher step closer to the image.

Paper: arXiv 2303.01469, eq. 7; in latents with guidance built in, 2310.04378, eq. 14.
Formula: d(f(x_t, t, 0), f'(x_r, r, 0)), x_r = one guided DDIM step of the frozen start from x_t to the time r some grid steps
lower, f' the student's average (or itself) without gradient.
Takes: images, conditions; the model before training is the teacher.   Gives: (B,) values.
Choose it when: a diffusion model shall draw in one to four steps.   Rather not when: a few more steps must go on improving
(pcm, tcd_distillation), or there is no trained teacher (ict).   Relatives: pcm, tcd_distillation, ict.

>>> import torch
>>> t, r = neighbours(torch.tensor([0.0, 0.999]), torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0]), 1)
>>> t.tolist(), r.tolist()
([1.0, 0.25], [0.75, 0.0])
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
    name="consistency distillation",
    source="arXiv 2303.01469",
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="one forward and backward, one forward of the teacher (two with guidance), one of the target",
    limits=(
        "data of one point and a network that knows it: loss 0",
        "the target carries no gradient",
        "f(x, t, t) = x, whatever the network says",
    ),
    differs=(
        "guidance has a fixed scale; 2310.04378 draws it per image and tells the network",
        "the DDIM form of the jump takes the place of c_skip and c_out; both have the boundary",
    ),
    use_when="a diffusion model shall draw in one to four steps",
    avoid_when="there is no trained model to begin with",
    relatives=("diffusion.consistency.ict", "diffusion.consistency.pcm"),
    mechanism="consistency",
)


def neighbours(uniform: Tensor, grid: Tensor, skip: int) -> tuple[Tensor, Tensor]:
    """(t, r), each (B,): a time of the falling grid (n + 1,) and the one `skip` steps lower, drawn by uniform numbers (B,)."""
    at = pick(uniform, len(grid) - 1)
    grid = grid.to(uniform)
    return grid[at], grid[(at + skip).clamp_max(len(grid) - 1)]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class ConsistencyDistillation(Objective):
    """steps: of the teacher's grid; skip: grid steps between the two times; guidance: scale that is built in.

    target: "ema" takes the average of `regularise: [ema]` for f', "self" the student as it is. huber: c of the metric, None for
    0.00054 sqrt(dimension).
    """

    steps: Annotated[int, Ge(2)] = 50
    skip: Annotated[int, Ge(1)] = 1
    guidance: float = 1.0
    target: Literal["ema", "self"] = "self"
    huber: Annotated[float, Ge(0)] | None = None

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        student, x0, condition = s.handle("policy"), s["image"], batch.condition()
        t, r = neighbours(s["uniform"][:, 0], make_grid(student.path, self.steps), self.skip)
        x = mix(student.path, x0, s["noise"], t)
        lower = guided_step(s.handle("reference"), x, t, r, condition, self.guidance)
        end = torch.zeros_like(t)
        with torch.no_grad():
            other = s.handle("ema") if self.target == "ema" else student
            goal = jump(other, lower, r.clamp_min(student.path.t_min), end, condition)
            goal = torch.where((r == 0).view(-1, *(1,) * (x.ndim - 1)), lower, goal)
        return Terms("consistency_distillation", pseudo_huber(jump(student, x, t, end, condition), goal, self.huber))
