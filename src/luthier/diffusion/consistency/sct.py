"""Stable consistency tuning: a trained diffusion model becomes a few-step one, with targets made calm by many reference images.

Paper: arXiv 2410.18958; its schedule is that of ECT, 2406.14548, section 3.
Formula: w * pseudo-Huber(f(x_t, t), f(x_r, r)), the second without gradient. x_r = the step from t to r with x0 replaced by the
posterior mean over reference images, sum_i w_i x0_i, w = softmax_i of -|x_t / alpha - x0_i|^2 / (2 ratio^2). The ratio of r to t is
1 - (1 + k sigmoid(-b t)) / q^(stage + 1): the two levels move together as the run goes on; w = 1 / (t - r).
Takes: images; `references` of them are drawn for each step.   Gives: (B,) values.
Choose it when: there is a trained diffusion model and no time for distillation with a teacher pass.   Rather not when: images are
conditional and the classes differ much: references are drawn from all.   Relatives: ict, consistency_distillation.

>>> import torch
>>> nearer(torch.tensor([1.0, 80.0]), 0, 2.0, 8.0, 1.0).tolist(), round(float(nearer(torch.tensor([80.0]), 3, 2.0, 8.0, 1.0)), 2)
([0.0, 40.0], 75.0)
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.diffusion.consistency._jump import land
from luthier.diffusion.consistency._ratios import time_at, two_levels
from luthier.diffusion.schedules._path import like, mix

CARD = Card(
    name="SCT",
    source="arXiv 2410.18958",
    papers=(7,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform", "progress", "references"), handles=("policy",)),
    cost="one forward and backward, one forward of the target; distances of the batch to the references",
    limits=(
        "no references: ECT, whose target keeps the image's own noise",
        "levels w times as high and b / w: the lower level is w times as high too",
        "all images as references: the direction is the exact score of the noised data",
        "the target carries no gradient",
        "data of one point and a network that knows it: loss 0",
    ),
    differs=(
        "the authors' code was not released; schedule and level distribution follow ECT's official code, the posterior mean the paper",
        "levels are ratios sigma / alpha, so that any path will do; on ve they are the paper's",
        "mean and b are for data of standard deviation 0.5; for data w times as wide raise mean by log w and divide b by w",
        "guidance and edge-skipping sampling are not part of it: use cfg and the samplers",
    ),
    use_when="there is a trained diffusion model and few steps are wanted",
    avoid_when="images are conditional and classes differ much",
    relatives=("diffusion.consistency.ict", "diffusion.consistency.consistency_distillation"),
    mechanism="consistency",
)


def nearer(ratio: Tensor, stage: int, q: float, k: float, b: float) -> Tensor:
    """The lower noise ratio of a pair, (B,): ratio * (1 - (1 + k sigmoid(-b ratio)) / q^(stage + 1)), at least 0."""
    return (ratio * (1 - (1 + k * torch.sigmoid(-b * ratio)) / q ** (stage + 1))).clamp_min(0)


def posterior_mean(y: Tensor, own: Tensor, references: Tensor, ratio: Tensor) -> Tensor:
    """E[x0 | y = x0 + ratio eps], (B, ...), if x0 is one of own (B, ...) - each row its own - and references (K, ...)."""
    flat, size = y.flatten(1), len(y)
    squares = torch.cdist(flat, references.flatten(1)).square() if len(references) else flat.new_zeros(size, 0)
    squares = torch.cat([(flat - own.flatten(1)).square().sum(1, keepdim=True), squares], 1)
    weight = (-squares / (2 * ratio.square()[:, None])).softmax(1)
    mean = weight[:, :1] * own.flatten(1) + weight[:, 1:] @ references.flatten(1).to(flat.dtype)
    return mean.view_as(y)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SCT(Objective):
    """references: images drawn for each step; q, k, b: of the schedule; stages: how often the two levels move together.

    mean, std: of the log ratio; huber: c.
    """

    references: Annotated[int, Ge(0)] = 256
    q: Annotated[float, Gt(1)] = 2.0
    k: Annotated[float, Ge(0)] = 8.0
    b: Annotated[float, Gt(0)] = 1.0
    stages: Annotated[int, Gt(0)] = 8
    mean: float = -1.1
    std: Annotated[float, Gt(0)] = 2.0
    huber: float | None = 0.0

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        model, x0, noise = s.handle("policy"), s["image"], s["noise"]
        ratio = (self.mean + self.std * torch.special.ndtri(s["uniform"][:, 0])).exp()
        near = nearer(ratio, math.floor(float(s["progress"][0]) * self.stages), self.q, self.k, self.b)
        t, r = time_at(model.path, ratio), time_at(model.path, near)
        x = mix(model.path, x0, noise, t)
        others = s["references"] if "references" in s else x0[:0]
        y = x0 + like(ratio, x) * noise
        clean = posterior_mean(y, x0, others, ratio)
        lower = land(model.path, clean, (y - clean) / like(ratio, x), r)
        values = two_levels(model, x, lower, t, r, batch.condition(), self.huber)
        return Terms("sct", values / (ratio - near))
