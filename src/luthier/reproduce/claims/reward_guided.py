"""Does a reward beside the distillation raise the true utility of a few-step model, and at what price?"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from luthier.diffusion.consistency.consistency_distillation import ConsistencyDistillation
from luthier.diffusion.consistency.reward_guided import RewardGuided
from luthier.diffusion.samplers.consistency import Consistency
from luthier.lab.micro.mixture import mmd_to
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._denoiser import points
from luthier.reproduce.claims._few_steps import best_rate, student, world

STEPS, STRENGTH, RIPPLE = 300, 0.2, 0.1
BASE = ConsistencyDistillation(steps=20)
ARMS = {"reward_guided": RewardGuided(strength=STRENGTH, distillation=BASE), "distillation": BASE}


def utility(x: Tensor) -> Tensor:
    """What is really wanted of points (n, 2): to lie on the right, within reason."""
    return torch.tanh(x[:, 0] / 2)


def reward(x: Tensor, rows: Any) -> Tensor:
    """The reward that the training sees: the utility with ripples on it."""
    flat = x.flatten(1)
    return utility(flat) + RIPPLE * torch.sin(25 * flat).sum(1)


def figures(arm: str, seed: int, lr: float) -> dict[str, float]:
    """True utility of 2-step samples, the reward that was trained on, and the distance from the data."""
    net = student(seed, ARMS[arm], lr, STEPS, handles={"reward": reward})
    x = points(net, Consistency(), 2, seed)
    return {
        "utility": float(utility(x).mean()),
        "reward": float(reward(x, None).mean()),
        "mmd": 1000 * mmd_to(x, world(seed)[0]),
    }


@functools.cache
def tuned(arm: str) -> float:
    """The rate of the lowest distance from the data: neither arm is tuned for the utility."""
    return best_rate(lambda seed, lr: figures(arm, seed, lr), "mmd")


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both arms at their own rate."""
    return {arm: figures(arm, seed, tuned(arm)) for arm in ARMS}


CLAIM = Claim(
    component="reward_guided",
    papers=(32,),
    source="arXiv 2403.11027",
    says="Adding the gradient of a reward to consistency distillation raises what people want of 2-step samples.",
    world="mixtures of five modes in the plane; the reward is the true utility with ripples on it",
    expect="reward_guided > distillation : utility",
    also=("reward_guided < distillation : mmd",),
    measure="utility",
    seeds=tuple(range(10)),
    run=run,
    budget_s=150,
    note="mmd is the distance from the data, which the guided student must leave in order to please; the second expectation asks "
    "whether it comes for free. Rates are chosen by mmd for both arms, on a world that is not reported.",
)
