"""Does a KL to the base's steps bring a policy gradient nearer to the tilted base than stopping in time does?"""

from __future__ import annotations

from luthier.diffusion.align.ddpo import DDPO
from luthier.diffusion.align.dpok import DPOK
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._axes import SEEDS
from luthier.reproduce.claims._rewarded import GRID, GROUP, SAMPLER, compared

ARMS = {
    "dpok": [(DPOK(reward_weight=1.0, kl_weight=1.0, steps=GRID, samples=GROUP, sampler=SAMPLER), GROUP)],
    "ddpo": [(DDPO(steps=GRID, samples=GROUP, sampler=SAMPLER, normalise=False), GROUP)],
}


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both arms at their own rate, the base and the tilt."""
    return compared(ARMS, "distance", seed)


CLAIM = Claim(
    component="dpok",
    papers=(113,),
    source="arXiv 2305.16381",
    says="With a KL to each step of the base, the policy gradient ends nearer to the base tilted by the reward than without, "
    "although the one without may stop early.",
    world="mixtures of four modes in the plane with an exact base, a linear reward of strength 1, 64 samples a step, 40 steps",
    expect="dpok < ddpo : distance",
    also=("dpok < base : distance", "dpok < ddpo : drift", "dpok > ddpo : spread"),
    measure="distance",
    seeds=SEEDS,
    run=run,
    budget_s=150,
    note="distance: 1000 x the squared discrepancy from the tilt, in closed form. Five rates for each arm, chosen by this distance "
    "on a world that is not reported; a low rate is an early stop.",
)
