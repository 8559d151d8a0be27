"""Denoising as a game of many small moves: a policy gradient makes the steps of well rewarded samples likelier.

Paper: arXiv 2305.13301, eq. 4-5 (score function and importance sampling).
Formula: -sum over steps of min(r A, clip(r, 1 - c, 1 + c) A), r = p(step) / p_old(step) with the Gaussian density of a step, A the
reward less the mean of the samples of the same condition, by their deviation.
Takes: conditions, any reward.   Gives: (B,) values.
Choose it when: the reward is a black box.   Rather not when: it has a gradient (draft, adjoint_matching), or the base must not be
forgotten (dpok, prdp).   Relatives: dpok (a KL to the base), grpo (the same for text), prdp.

>>> import torch
>>> one = torch.ones(1); clipped_gain(0.5 * one, 0 * one, one, 0.2), clipped_gain(0.5 * one, 0 * one, -one, 0.2).round(decimals=3)
(tensor([1.2000]), tensor([-1.6490]))
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
    name="DDPO",
    source="arXiv 2305.13301",
    equations=("4", "5"),
    needs=Needs(batch=("image_prompts",), signals=("noise", "uniform"), handles=("policy", "reward")),
    cost="`samples` samplings for each row, then one forward and backward for each step that is learned from",
    limits=(
        "equal rewards: no gradient",
        "drawn by the policy itself: the score function gradient, whatever clip",
        "the log density of a step is the Gaussian's",
        "on one linear step the mean gradient is that of the expected reward",
    ),
    differs=(
        "samples are drawn anew in each step by the policy, so that the ratio is 1 and clipping rests; behaviour = 'ema' draws "
        "by the average, from which the ratio departs",
        "the reward's mean and deviation are those of the samples of one condition in one step; the authors keep a longer record",
        "log densities are sums over pixels; the authors' code takes means",
        "the last step, which draws no noise, has no density and is left out",
    ),
    use_when="the reward is a black box",
    avoid_when="the reward has a gradient",
    relatives=("diffusion.align.dpok", "diffusion.align.prdp", "objectives.policy.grpo"),
    mechanism="diffusion alignment",
)


def clipped_gain(logp: Tensor, old: Tensor, advantage: Tensor, clip: float) -> Tensor:
    """min(r A, clip(r) A), of the inputs' shape, from log densities in nats under the policy and the one that drew."""
    ratio = (logp - old).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)


def standing(reward: Tensor, normalise: bool) -> Tensor:
    """Reward (B, n) less the mean of its row, divided by the row's deviation if asked. Equal rewards give 0."""
    off = reward - reward.mean(1, keepdim=True)
    return off / (off.square().mean(1, keepdim=True).sqrt() + 1e-6) if normalise else off


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DDPO(Objective):
    """steps: of a sampling; samples: for each condition; transitions: steps to learn from, None for all.

    sampler: one whose steps draw noise. behaviour: who draws. clip: of the ratio. normalise: divide rewards by their deviation.
    """

    steps: Annotated[int, Ge(2)] = 20
    samples: Annotated[int, Ge(2)] = 4
    transitions: Annotated[int, Ge(1)] | None = None
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=1.0))
    behaviour: Literal["policy", "ema"] = "policy"
    clip: Annotated[float, Gt(0)] = 1e-4
    normalise: bool = True

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        model, uniform = s.handle("policy"), s["uniform"]
        actor = s.handle(self.behaviour)
        walk, held = group_walk(
            actor, self.sampler, self.steps, s["noise"], uniform[:, 7], batch.condition(), self.samples
        )
        reward = rewards_of(s.handle("reward"), walk.sample, batch.meta, self.samples)
        advantage = standing(reward, self.normalise).flatten()
        noisy = noisy_steps(self.sampler, model.path, walk.grid, "ddpo")
        numbers = picks(uniform[:, 2].repeat_interleave(self.samples), noisy, self.transitions)
        total = torch.zeros_like(advantage)
        for move, x, t, after, x0 in weighed(model, self.sampler, walk, numbers, held):
            logp = log_prob(move, x, x0, after)
            with torch.no_grad():
                old = (
                    logp
                    if actor is model or self.behaviour == "policy"
                    else log_prob(move, x, clean(actor, x, t, held), after)
                )
            total = total + clipped_gain(logp, old.detach(), advantage, self.clip)
        return Terms("ddpo", -(total * noisy / len(numbers)).view(-1, self.samples).mean(1))
