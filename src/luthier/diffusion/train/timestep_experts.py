"""One expert of a range of noise levels: a copy of the denoiser learns its own range; the copies are merged into one afterwards.

Paper: arXiv 2410.06664, section 3.2 and 3.3.
Formula: denoising at levels of [low, high], with probability stray at any level, plus consistency * |out - out_start|^2; then
theta_0 + sum_k w_k (theta_k - theta_0) with the merge rule task_arithmetic.
Takes: images, conditions; the model before training is the start.   Gives: one or two terms, (B,) values each.
Choose it when: a converged denoiser shall still improve, and several short runs can be made.   Rather not when: the model still
learns fast from all levels together (denoise).   Relatives: denoise, task_arithmetic, soup.

>>> import torch
>>> own_range(torch.tensor([0.0, 0.5]), torch.tensor([0.9, 0.01]), 0.5, 0.75, 0.1).tolist()
[0.5, 0.5]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, Times, Weighting, component
from luthier.core.errors import ConfigError, sentence
from luthier.diffusion.schedules._kinds import from_pair, kind_of
from luthier.diffusion.schedules._path import level
from luthier.diffusion.schedules.times.uniform_time import UniformTime
from luthier.diffusion.schedules.weights.unit_weight import UnitWeight
from luthier.diffusion.train.denoise import denoising_error

CARD = Card(
    name="DeMe",
    source="arXiv 2410.06664",
    papers=(345,),
    needs=Needs(batch=("image",), signals=("image", "noise", "uniform"), handles=("policy", "reference")),
    cost="denoise, and one forward of the start; as many runs as experts, and a merge",
    limits=(
        "range [0, 1] and consistency = 0: denoise",
        "at the start the consistency is 0 and so is its gradient",
        "stray = 0: every level lies in the range",
    ),
    differs=(
        "the channel-wise projection before the network is left out",
        "ranges are shares of the training levels (quantiles of `times`), which for uniform times are equal stretches of time",
        "the weights of the merge are the user's to choose, as in the authors' code (0.1, 0.1, 0.2, 0.5 from low to high noise in "
        "its example); the paper's search for them is not part of it",
        "stray is for each image; the authors' script draws once for a batch, with 0.3 on LSUN. Its tie has weight 1 on the outputs",
    ),
    use_when="a converged denoiser shall still improve",
    avoid_when="the model still learns fast",
    relatives=("diffusion.train.denoise", "merge.task_vectors.task_arithmetic"),
    mechanism="denoising",
)


def own_range(uniform: Tensor, chance: Tensor, low: float, high: float, stray: float) -> Tensor:
    """Uniform numbers (B,) moved into [low, high], but left as they are where chance (B,) is below stray."""
    return torch.where(chance < stray, uniform, low + (high - low) * uniform)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TimestepExperts(Objective):
    """low, high: the range, 0 clean and 1 noise; stray: how often any level; consistency: weight of the tie to the start.

    times, weighting: as in denoise.
    """

    low: Annotated[float, Ge(0), Le(1)] = 0.0
    high: Annotated[float, Ge(0), Le(1)] = 1.0
    stray: Annotated[float, Ge(0), Le(1)] = 0.1
    consistency: Annotated[float, Ge(0)] = 1.0
    times: Times = field(default_factory=UniformTime)
    weighting: Weighting = field(default_factory=UnitWeight)

    def __post_init__(self) -> None:
        if self.low >= self.high:
            raise ConfigError(
                sentence("timestep_experts", "low < high", f"{self.low} and {self.high}", "Swap or widen the range")
            )

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        model, x0, noise, uniform = s.handle("policy"), s["image"], s["noise"], s["uniform"]
        t = self.times(own_range(uniform[:, 0], uniform[:, 2], self.low, self.high, self.stray), model.path)
        at = level(model.path, t, x0)
        x, condition = at.alpha * x0 + at.sigma * noise, batch.condition()
        out, weight = model(x, t, condition), self.weighting(model.path, t, model.kind)
        own = Terms("timestep_experts", weight * denoising_error(out, from_pair(x0, noise, at, kind_of(model.kind))))
        if self.consistency == 0:
            return (own,)
        with torch.no_grad():
            start = s.handle("reference")(x, t, condition)
        return own, Terms("timestep_experts.consistency", denoising_error(out, start)).scaled(self.consistency)
