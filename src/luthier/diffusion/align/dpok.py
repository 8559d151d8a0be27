"""Policy gradient of a reward with a leash: every denoising step also pays for its divergence from the base model's step.

Paper: arXiv 2305.16381, eq. 5 and algorithm 1.
Formula: -reward_weight (r - value) sum_t log p(step) + kl_weight sum_t KL_t, KL_t = |mean - mean_base|^2 / (2 noise_t^2); the value is
the mean reward of the other samples of the same condition.
Takes: conditions, any reward; the model before training is the base.   Gives: two terms, gain and kl, (B,) values each.
Choose it when: the reward is a black box and the base must not be forgotten.   Rather not when: it has a gradient
(adjoint_matching has the same optimum and less noise).   Relatives: ddpo (kl_weight = 0), prdp.

>>> import torch
>>> surplus(torch.tensor([[1.0, 3.0, 5.0]])).tolist()
[[-3.0, 0.0, 3.0]]
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Sampler, Signals, Terms, component
from luthier.diffusion.align._trajectory import clean, group_walk, noisy_steps, picks, rewards_of, step_kl, weighed
from luthier.diffusion.align.ddpo import clipped_gain
from luthier.diffusion.samplers._affine import log_prob
from luthier.diffusion.samplers.ddim import DDIM

CARD = Card(
    name="DPOK",
    source="arXiv 2305.16381",
    papers=(113,),
    equations=("5",),
    needs=Needs(batch=("image_prompts",), signals=("noise", "uniform"), handles=("policy", "reference", "reward")),
    cost="ddpo, and one forward of the reference for each step that is learned from",
    limits=(
        "policy = reference: the KL is 0 and so is its gradient",
        "the KL of a step is |mean - mean_base|^2 / (2 noise^2)",
        "equal rewards: no gradient but the KL's",
        "kl_weight = 0: ddpo without normalisation, times samples / (samples - 1)",
    ),
    differs=(
        "the learned value function is replaced by the mean of the condition's other samples, which needs no network",
        "samples are drawn anew in each step, so that the clipped ratio of the authors' code is 1",
        "the gradient of the KL holds the states of the walk fixed, as in the paper's algorithm",
        "the last step, which draws no noise, has neither density nor KL and is left out",
    ),
    use_when="the reward is a black box and the base must not be forgotten",
    avoid_when="the reward has a gradient",
    relatives=("diffusion.align.ddpo", "diffusion.align.prdp", "diffusion.align.adjoint_matching"),
    mechanism="diffusion alignment",
)


def surplus(reward: Tensor) -> Tensor:
    """Reward (B, n) less the mean of the others in its row."""
    n = reward.shape[1]
    return (reward - reward.mean(1, keepdim=True)) * (n / (n - 1))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DPOK(Objective):
    """reward_weight, kl_weight: of the two terms; the other parameters as in ddpo."""

    reward_weight: Annotated[float, Gt(0)] = 10.0
    kl_weight: Annotated[float, Ge(0)] = 0.01
    steps: Annotated[int, Ge(2)] = 20
    samples: Annotated[int, Ge(2)] = 4
    transitions: Annotated[int, Ge(1)] | None = None
    sampler: Sampler = field(default_factory=lambda: DDIM(eta=1.0))

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        model, reference, uniform = s.handle("policy"), s.handle("reference"), s["uniform"]
        walk, held = group_walk(
            model, self.sampler, self.steps, s["noise"], uniform[:, 7], batch.condition(), self.samples
        )
        advantage = surplus(rewards_of(s.handle("reward"), walk.sample, batch.meta, self.samples)).flatten()
        noisy = noisy_steps(self.sampler, model.path, walk.grid, "dpok")
        numbers = picks(uniform[:, 2].repeat_interleave(self.samples), noisy, self.transitions)
        gained, apart = torch.zeros_like(advantage), torch.zeros_like(advantage)
        for move, x, t, after, x0 in weighed(model, self.sampler, walk, numbers, held):
            logp = log_prob(move, x, x0, after)
            gained = gained + clipped_gain(logp, logp.detach(), advantage, 1.0)
            if self.kl_weight:
                with torch.no_grad():
                    base = clean(reference, x, t, held)
                apart = apart + step_kl(move, x0, base)
        gained, apart = ((v * noisy / len(numbers)).view(-1, self.samples).mean(1) for v in (gained, apart))
        return Terms("dpok.gain", -gained).scaled(self.reward_weight), Terms("dpok.kl", apart).scaled(self.kl_weight)
