"""Phased consistency: the ODE is cut into phases, and the student jumps to the lower edge of the phase that it is in.

Paper: arXiv 2405.18407, eq. 3-5.
Formula: d(f(x_t, t, e), f'(x_r, r, e)) with e the lower edge of t's phase, x_r one guided DDIM step of the frozen start; sampling
is `phases` deterministic jumps from edge to edge (sampler ddim or euler on a grid of as many steps).
Takes: images, conditions; the model before training is the teacher.   Gives: (B,) values.
Choose it when: two to sixteen steps must each improve the image, with the same noise giving the same image.
Rather not when: a single step must do (consistency_distillation is this with one phase).   Relatives: consistency_distillation,
tcd_distillation.

>>> import torch
>>> edge_below(torch.tensor([1.0, 0.75, 0.5, 0.1]), torch.tensor([1.0, 0.5, 0.0])).tolist()
[0.5, 0.5, 0.0, 0.0]
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import ConfigError, sentence
from luthier.diffusion.consistency._jump import guided_step, jump, pseudo_huber
from luthier.diffusion.consistency.consistency_distillation import neighbours
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._path import mix

CARD = Card(
    name="PCM",
    source="arXiv 2405.18407",
    papers=(100,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="one forward and backward, one forward of the teacher (two with guidance), one of the target",
    limits=(
        "phases = 1: consistency distillation",
        "at the lower edge of a phase the jump is the identity",
        "data of one point and a network that knows it: loss 0",
    ),
    differs=(
        "the adversarial loss on phase solutions is left out",
        "the metric is taken for each image; the authors' code takes it for each number of it",
        "edges are equal steps of time, as in the authors' code; with phases = 1 the only edge is the image",
    ),
    use_when="two to sixteen deterministic steps must each improve the image",
    avoid_when="a single step must do",
    relatives=("diffusion.consistency.consistency_distillation", "diffusion.samplers.ddim"),
    mechanism="consistency",
)


def edge_below(t: Tensor, edges: Tensor) -> Tensor:
    """The largest edge below each time, (B,); edges fall and end in 0."""
    rising = edges.flip(0).to(t)
    return rising[(torch.searchsorted(rising, t.contiguous()) - 1).clamp_min(0)]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class PCM(Objective):
    """phases: number of them; steps: of the teacher's grid, a multiple of phases; guidance: scale that is built in.

    target, huber: as in consistency_distillation.
    """

    phases: Annotated[int, Ge(1)] = 4
    steps: Annotated[int, Ge(2)] = 48
    guidance: float = 1.0
    target: Literal["ema", "self"] = "self"
    huber: Annotated[float, Ge(0)] | None = None

    def __post_init__(self) -> None:
        if self.steps % self.phases:
            raise ConfigError(
                sentence("pcm", "steps that are a multiple of phases", f"{self.steps} and {self.phases}", "Change one")
            )

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        student, condition = s.handle("policy"), batch.condition()
        grid = make_grid(student.path, self.steps)
        t, r = neighbours(s["uniform"][:, 0], grid, 1)
        edge = edge_below(t, grid[:: self.steps // self.phases])
        x = mix(student.path, s["image"], s["noise"], t)
        lower = guided_step(s.handle("reference"), x, t, r, condition, self.guidance)
        with torch.no_grad():
            other = s.handle("ema") if self.target == "ema" else student
            goal = jump(other, lower, r.clamp_min(student.path.t_min), edge, condition)
            goal = torch.where((r == edge).view(-1, *(1,) * (x.ndim - 1)), lower, goal)
        return Terms("pcm", pseudo_huber(jump(student, x, t, edge, condition), goal, self.huber))
