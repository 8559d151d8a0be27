"""Reward backpropagation: sample an image and follow the gradient of its reward through the last steps of the sampler.

Paper: arXiv 2309.17400 (DRaFT-K: the last K steps), arXiv 2310.03739 (AlignProp: K drawn for every sample, checkpoints).
Formula: -r(x_0), x_0 the end of a chain of `steps` steps from noise; the predictions of all steps but the last K are constants.
last = None draws K uniformly from 1 ... steps.
Takes: conditions, a reward that gradients flow through.   Gives: (B,) values.
Choose it when: the reward is differentiable and quick progress matters.   Rather not when: it is a black box (ddpo, prdp), or the
samples must keep to the tilted distribution (adjoint_matching): this one maximises, and collapses if it runs for long.
Relatives: reward_guided, adjoint_matching, ddpo.

>>> import torch
>>> first_kept(torch.tensor([0.0, 0.5, 0.999]), 4, None).tolist(), first_kept(torch.rand(2), 4, 1).tolist()
([3, 1, 0], [3, 3])
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from luthier.core import Batch, Card, Needs, Objective, Sampler, Signals, Terms, component
from luthier.core.errors import Refused
from luthier.diffusion.align._trajectory import drawn
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.ddim import DDIM
from luthier.diffusion.schedules._grid import make_grid
from luthier.diffusion.schedules._path import Condition, Predictor, like

CARD = Card(
    name="DRaFT / AlignProp",
    source="arXiv 2310.03739",
    papers=(265,),
    needs=Needs(batch=("image_prompts",), signals=("noise", "uniform"), handles=("policy", "reward")),
    cost="a whole sampling, one backward through the last K steps and the reward; memory of K forwards, or of one with checkpoints",
    limits=(
        "last = steps: the gradient of the whole chain",
        "checkpoints change no gradient",
        "a reward without slope: no gradient",
        "one step of a linear model: the reparameterised gradient in closed form",
    ),
    differs=(
        "K is drawn for each sample; the authors' AlignProp code draws one for each batch",
        "no guidance inside the chain: the model is sampled as it is trained",
        "an early stop, or averaging of adapters, against over-optimisation is left to the recipe",
    ),
    use_when="the reward is differentiable",
    avoid_when="the reward is a black box, or diversity must stay",
    relatives=("diffusion.align.adjoint_matching", "diffusion.align.ddpo", "diffusion.consistency.reward_guided"),
    mechanism="diffusion alignment",
)


def first_kept(uniform: Tensor, steps: int, last: int | None) -> Tensor:
    """Number of the first step with a gradient, for each row (B,): steps - K, K = last, or 1 ... steps by uniform numbers."""
    if last is not None:
        return torch.full_like(uniform, max(steps - last, 0), dtype=torch.long)
    return steps - 1 - (uniform * steps).floor().clamp(0, steps - 1).long()


def truncated(model: Any, since: Tensor, checkpoints: bool) -> Predictor:
    """The model with constant predictions at times (B,) above `since` (B,)."""

    def predict(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        kept = t.to(since) <= since * (1 + 1e-6)
        if not torch.is_grad_enabled() or not bool(kept.any()):
            with torch.no_grad():
                return model(x, t, condition)
        out: Any = checkpoint(model, x, t, condition, use_reentrant=False) if checkpoints else model(x, t, condition)
        return torch.where(like(kept, x).bool(), out, out.detach())

    return Predictor(predict, model.path, model.kind)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Draft(Objective):
    """steps: of the chain; last: how many of its last steps carry the gradient, None for a random number of each sample.

    checkpoints: forget activations inside the chain and compute them again. sampler: of the chain; ddim is the papers'.
    """

    steps: Annotated[int, Ge(1)] = 20
    last: Annotated[int, Ge(1)] | None = 1
    checkpoints: bool = False
    sampler: Sampler = field(default_factory=DDIM)

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        model, noise, uniform = s.handle("policy"), s["noise"], s["uniform"]
        grid = make_grid(model.path, self.steps)
        since = grid.to(uniform.device)[first_kept(uniform[:, 2], self.steps, self.last)]
        start = noise * like(model.path.level(grid[0]).sigma, noise)
        source = drawn(uniform[:, 7], self.steps, noise, "draft")
        chain = truncated(model, since, self.checkpoints)
        made = sample(chain, self.sampler, start, grid, batch.condition(), source, grad_last=self.last or self.steps)
        value = s.handle("reward")(made, batch.meta)
        if torch.is_grad_enabled() and not value.requires_grad:
            raise Refused(
                "draft requires a reward that gradients flow through; this one gives plain numbers. Use ddpo, or another reward."
            )
        return Terms("draft", -value)
