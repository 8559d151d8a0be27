"""Predict reward differences: the log ratio of policy to base over two whole walks is regressed on the difference of their rewards.

Paper: arXiv 2402.08714, eq. 14 and 16-21.
Formula: max(l, l_clip), l = (g(a) - g(b) - (r(a) - r(b)) / beta)^2, g = sum_t log p(step) / p_base(step); l_clip has each step's log
ratio within clip of that of the policy that drew. Zero loss on all pairs: p proportional to p_base exp(r / beta).
Takes: conditions, any reward; the model before training is the base.   Gives: (B,) values.
Choose it when: the reward is a black box and many prompts make policy gradients unstable.
Rather not when: the reward has a gradient (adjoint_matching).   Relatives: dpok (the same optimum), ddpo, rebel for text.

>>> import torch
>>> difference_loss(torch.tensor([[0.5, 0.0]]), torch.tensor([[2.0, 1.0]]), 2.0)
tensor([0.])
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Sampler, Signals, Terms, component
from luthier.diffusion.align._trajectory import clean, group_walk, noisy_steps, picks, rewards_of, weighed
from luthier.diffusion.samplers._affine import log_prob
from luthier.diffusion.samplers.ddim import DDIM

CARD = Card(
    name="PRDP",
    source="arXiv 2402.08714",
    papers=(225,),
    equations=("14", "18", "20"),
    needs=Needs(batch=("image_prompts",), signals=("noise", "uniform"), handles=("policy", "reference", "reward")),
    cost="`samples` samplings for each row, then forward and backward of the policy and forward of the base at every step",
    limits=(
        "policy = base: the mean squared difference of the rewards, over beta^2",
        "a constant added to the reward of a condition changes nothing",
        "the optimum exp(r / beta) has loss 0",
        "drawn by the policy itself: clipping rests, and the gradient is the plain regression's",
    ),
    differs=(
        "samples are drawn anew in each step, not kept for several; behaviour = 'ema' draws by the average, from which clipping "
        "keeps the policy",
        "the loss is over beta^2 as in the paper, so that a small beta asks for a small rate",
        "the last step, which draws no noise, has no density and is left out",
    ),
    use_when="the reward is a black box",
    avoid_when="the reward has a gradient",
    relatives=("diffusion.align.dpok", "diffusion.align.ddpo"),
    mechanism="diffusion alignment",
)


def difference_loss(ratio: Tensor, reward: Tensor, beta: float, clipped: Tensor | None = None) -> Tensor:
    """Mean over the pairs of each row of the squared error, (B,), from log ratios, rewards and clipped ratios, all (B, n)."""

    def squared(g: Tensor) -> Tensor:
        off = g - reward / beta
        return (off[:, :, None] - off[:, None, :]).square()

    found = squared(ratio) if clipped is None else torch.maximum(squared(ratio), squared(clipped))
    return found.flatten(1).sum(1) / (ratio.shape[1] * (ratio.shape[1] - 1))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class PRDP(Objective):
    """beta: strength of the base against the reward; clip: of a step's log ratio. The others as in ddpo."""

    beta: Annotated[float, Gt(0)] = 1.0
    steps: Annotated[int, Ge(2)] = 20
    samples: Annotated[int, Ge(2)] = 4
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=1.0))
    behaviour: Literal["policy", "ema"] = "policy"
    clip: Annotated[float, Gt(0)] = 1e-4

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        model, reference, uniform = s.handle("policy"), s.handle("reference"), s["uniform"]
        actor = s.handle(self.behaviour)
        walk, held = group_walk(
            actor, self.sampler, self.steps, s["noise"], uniform[:, 7], batch.condition(), self.samples
        )
        reward = rewards_of(s.handle("reward"), walk.sample, batch.meta, self.samples)
        noisy = noisy_steps(self.sampler, model.path, walk.grid, "prdp")
        numbers = picks(uniform[:, 2].repeat_interleave(self.samples), noisy, None)
        ratio, clipped = torch.zeros_like(reward).flatten(), torch.zeros_like(reward).flatten()
        for move, x, t, after, x0 in weighed(model, self.sampler, walk, numbers, held):
            logp = log_prob(move, x, x0, after)
            with torch.no_grad():
                base = log_prob(move, x, clean(reference, x, t, held), after)
                old = logp if self.behaviour == "policy" else log_prob(move, x, clean(actor, x, t, held), after)
            ratio = ratio + logp - base
            clipped = clipped + logp.clamp(old.detach() - self.clip, old.detach() + self.clip) - base
        return Terms("prdp", difference_loss(ratio.view_as(reward), reward, self.beta, clipped.view_as(reward)))
