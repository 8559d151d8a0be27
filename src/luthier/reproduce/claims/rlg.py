"""Does mixing the predictions of a base and a reward-tuned model set the strength of the reward?

Points from a mixture of Gaussians in the plane and a linear reward: what tuning at any strength should reach is again a
mixture, in closed form. A small network learns the base, then the optimum of strength 1; strengths of 0.5, 2 and 3 are asked
of guidance, and of mixed weights.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.core import stream
from luthier.diffusion.guidance.rlg import RLG
from luthier.diffusion.samplers._driver import sample
from luthier.diffusion.samplers.dpmpp_2m import DPMpp2M
from luthier.diffusion.schedules._grid import log_snr_grid
from luthier.diffusion.schedules.vp import VP
from luthier.diffusion.train.denoise import Denoise
from luthier.lab.micro.mixture import Mixture, mmd_to
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._axes import SEEDS, axes, timed
from luthier.reproduce.claims._denoiser import Net, Trainer, frozen

PATH, STRENGTHS, DRAWN, TRUE = VP(), (0.5, 2.0, 3.0), 800, 1.0
STEPS, TUNING, LR = 1000, 500, 2e-3


def world_of(seed: int) -> tuple[Mixture, Tensor]:
    """A base mixture of spread 1 and a unit direction of reward."""
    base = Mixture.random(5, 2, seed, spread=1.0, deviation=0.3)
    direction = torch.randn(2, generator=stream(seed, "claim.rlg.reward"), dtype=torch.float64)
    return base, direction / direction.norm()


def learnt(seed: int, base: Mixture, direction: Tensor) -> tuple[Net, Net]:
    """A network of the base, and the same tuned to the optimum of strength 1."""
    data = [w.sample(20_000, stream(seed, f"claim.rlg.data{i}"))[0].float()
            for i, w in enumerate((base, base.tilted(direction, TRUE)))]  # fmt: skip
    net = Trainer(Net(PATH, "v", seed), data[0], seed).run(Denoise(), STEPS, LR)
    first = frozen(net)
    return first, frozen(Trainer(net, data[1], seed + 1).run(Denoise(), TUNING, LR / 2))


def mixed(one: Net, other: Net, weight: float) -> Net:
    """The network whose weights are one + weight (other - one)."""
    made = frozen(one)
    with torch.no_grad():
        for target, a, b in zip(made.parameters(), one.parameters(), other.parameters(), strict=True):
            target.copy_(torch.lerp(a, b, weight))
    return made


@torch.no_grad()
def drawn(net: Net, base: Net, weight: float, seed: int) -> Tensor:
    """Samples (n, 2) guided from the base to the net."""
    noise = torch.randn(DRAWN, 2, 1, 1, generator=stream(seed, "claim.rlg.noise"))
    grid = log_snr_grid(PATH, 15)
    guided = sample(net, DPMpp2M(), noise, grid, guidance=[RLG(weight=weight)], handles={"reference": base})
    return guided.flatten(1).double()


@timed
def figures(net: Net, start: Net, weight: float, strength: float, seed: int) -> dict[str, float]:
    """Distance from the true optimum of a strength, by how much the mean reward misses it, and the axes."""
    x, (base, direction) = drawn(net, start, weight, seed), world_of(seed)
    truth = base.tilted(direction, TRUE * strength)
    found = axes(x, truth, base=base, reward=lambda x: x @ direction, length=0.5)
    return {**found, "distance": mmd_to(x, truth, 0.5), "miss": abs(float((x.mean(0) - truth.mean) @ direction))}


def run(seed: int) -> dict[str, dict[str, float]]:
    """Guidance, mixed weights and the tuned model as it is, means over the strengths."""
    base, direction = world_of(seed)
    one, other = learnt(seed, base, direction)
    rewards = {w: float((drawn(other, one, w, seed) @ direction).mean()) for w in (1.0, 2.0)}
    out: dict[str, dict[str, float]] = {}
    for arm in ("rlg", "weights", "tuned"):
        found = []
        for w in STRENGTHS:
            net = mixed(one, other, w) if arm == "weights" else other
            found.append(figures(net, one, w if arm == "rlg" else 1.0, w, seed))
        out[arm] = {k: sum(f[k] for f in found) / len(found) for k in found[0]}
    out["rlg"]["reward"], out["tuned"]["reward"] = rewards[2.0], rewards[1.0]
    return out


CLAIM = Claim(
    component="rlg",
    papers=(109,),
    source="arXiv 2508.21016",
    says="Guidance by the difference of a tuned and a base model acts like another weight of the KL penalty, below and above "
    "the strength that was trained, and so raises the reward further.",
    world="mixtures of five modes in the plane, a small network tuned to the exact optimum of a linear reward; exact optima "
    "at other strengths",
    expect="rlg < weights",
    also=("rlg < tuned", "rlg > tuned : reward", "rlg < weights : miss"),
    measure="distance",
    seeds=SEEDS,
    run=run,
    budget_s=120,
    note="Strengths 0.5, 2 and 3; weights mixes or extrapolates the weights of the two networks. Nothing is chosen: strength is "
    "given to all. The reward is that of strength 2 against the tuned model; the axes are means "
    "over the strengths, cost that of drawing.",
)
