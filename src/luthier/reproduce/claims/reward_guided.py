"""Does a reward beside the distillation raise the true utility of a few-step model, and at what price?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from luthier.diffusion.consistency.consistency_distillation import ConsistencyDistillation
from luthier.diffusion.consistency.reward_guided import RewardGuided
from luthier.diffusion.samplers.consistency import Consistency
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._axes import SEEDS
from luthier.reproduce.claims._few_steps import Trial

STRENGTH, RIPPLE = 0.2, 0.1
BASE = ConsistencyDistillation(steps=20)


def utility(x: Tensor) -> Tensor:
    """What is really wanted of points (n, 2): to lie on the right, within reason."""
    return torch.tanh(x[:, 0] / 2)


def reward(x: Tensor, rows: Any) -> Tensor:
    """The reward that the training sees: the utility with ripples on it."""
    flat = x.flatten(1)
    return utility(flat) + RIPPLE * torch.sin(25 * flat).sum(1)


class Pleased(Trial):
    """Students read by the reward and by the utility as well."""

    def judged(self, drawn: Mapping[int, Tensor], seed: int) -> dict[str, float]:
        """True utility, the reward that was trained on, the distance from the data, and the axes."""
        found, x = super().judged(drawn, seed), drawn[2]
        pleased = {"utility": float(utility(x).mean()), "alignment/reward": float(reward(x, None).mean())}
        return {**found, **pleased, "mmd": found["mmd_2"]}


TRIAL = Pleased(
    {
        "reward_guided": (RewardGuided(strength=STRENGTH, distillation=BASE), Consistency()),
        "distillation": (BASE, Consistency()),
    },
    steps=300,
    counts=(2,),
    by="mmd_2",
    handles={"reward": reward},
)

CLAIM = Claim(
    component="reward_guided",
    papers=(32,),
    source="arXiv 2403.11027",
    says="Adding the gradient of a reward to consistency distillation raises what people want of 2-step samples.",
    world="mixtures of five modes in the plane; the reward is the true utility with ripples on it",
    expect="reward_guided > distillation : utility",
    also=("reward_guided < distillation : mmd",),
    measure="utility",
    seeds=SEEDS,
    run=TRIAL.run,
    budget_s=150,
    note="mmd is the distance from the data, which the guided student must leave in order to please; the second expectation asks "
    "whether it comes for free. Rates are chosen by mmd for both arms, on a world that is not reported.",
)
