"""Reward tuning in one small world: the same base, reward, samples and steps for every technique.

Points of a mixture in the plane, a linear reward r, a policy that begins as the exact base. What a technique with a leash of
strength 1 should reach is the base tilted by exp(r), a mixture in closed form. Every arm spends WALKS samples and rewards a step.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from luthier.core import Objective, stream
from luthier.diffusion.samplers.flow_sde import FlowSDE
from luthier.lab.micro.mixture import Mixture
from luthier.reproduce.claim import TUNING_SEED
from luthier.reproduce.claims._axes import axes, timed
from luthier.reproduce.claims._tuned import figures_of, points_of, tune, world_of

STEPS, GRID, WALKS, GROUP = 40, 8, 64, 8
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
SAMPLER = FlowSDE()  # memoryless: ancestral steps


def bump(x: Tensor, seed: int) -> Tensor:
    """A reward with a peak of 1 at one place, of points (n, 2) -> (n,)."""
    world, direction = world_of(seed)
    place = (world.mean + 1.5 * direction).to(x)
    return torch.exp(-(x - place).square().sum(1) / 2)


def reward_of(seed: int, bounded: bool) -> Callable[[Tensor, object], Tensor]:
    """The reward of the seed's world on points (B, 2, 1, 1): linear, or the bump."""
    direction = world_of(seed)[1].float()
    return (lambda x, rows: bump(x.flatten(1), seed)) if bounded else (lambda x, rows: x.flatten(1) @ direction)


@functools.cache
@timed
def figures(objective: Objective, seed: int, lr: float, group: int, bounded: bool = False) -> dict[str, float]:
    """Reward, distance from the tilt and drift from the base of samples drawn as the walks were; spread: their deviation."""
    reward = {"reward": reward_of(seed, bounded)}
    policy = tune(seed, objective, lr, STEPS, lambda g: {}, WALKS // group, "image_prompts", reward)
    return judged(points_of(policy, seed, SAMPLER, GRID), seed, bounded)


def judged(x: Tensor, seed: int, peaked: bool = False) -> dict[str, float]:
    """All figures of points (n, 2); bounded: the mean of the bump. peaked: the bump is the reward, and no tilt is wanted."""
    world, direction = world_of(seed)
    spread = float(torch.linalg.det(x.T.cov()).clamp_min(0) ** 0.25)
    plain = figures_of(x, world.tilted(direction, 1.0), world, direction)
    if peaked:
        plain |= axes(x, world, base=world, reward=lambda x: bump(x, seed), length=0.5)
    return {**plain, "spread": spread, "bounded": float(bump(x, seed).mean())}


@timed
def exact(world: Mixture, role: str, seed: int, peaked: bool) -> dict[str, float]:
    """All figures of true samples of a mixture."""
    return judged(world.sample(1500, stream(seed, f"claim.rewarded.{role}"))[0], seed, peaked)


@functools.cache
def rate(objective: Objective, group: int, measure: str) -> float:
    """The learning rate of the best figure on a world that is not reported: the highest bounded reward, or the lowest distance."""
    bounded = measure == "bounded"
    sign = -1 if bounded else 1
    return min(RATES, key=lambda lr: sign * figures(objective, TUNING_SEED, lr, group, bounded)[measure])


def compared(
    arms: Mapping[str, Sequence[tuple[Objective, int]]], measure: str, seed: int
) -> dict[str, dict[str, float]]:
    """Each arm at its best setting (objective, samples for each row) and rate by the measure, and the exact base and tilt."""
    out: dict[str, dict[str, float]] = {}
    bounded = measure == "bounded"
    for name, settings in arms.items():

        def tried(setting: tuple[Objective, int]) -> float:
            found = figures(setting[0], TUNING_SEED, rate(*setting, measure), setting[1], bounded)[measure]
            return -found if bounded else found

        objective, group = min(settings, key=tried) if len(settings) > 1 else settings[0]
        out[name] = figures(objective, seed, rate(objective, group, measure), group, bounded)
    world, direction = world_of(seed)
    for name, of in (("base", world), ("tilt", world.tilted(direction, 1.0))):
        out[name] = exact(of, name, seed, bounded)
    return out
