"""How much faster than a policy gradient does the reward's own gradient raise the reward, and what does it cost in spread?"""

from __future__ import annotations

from luthier.diffusion.align.ddpo import DDPO
from luthier.diffusion.align.draft import Draft
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._axes import SEEDS
from luthier.reproduce.claims._rewarded import GRID, GROUP, SAMPLER, compared

ARMS = {
    "last": [(Draft(steps=GRID, last=1, sampler=SAMPLER), 1)],
    "random": [(Draft(steps=GRID, last=None, sampler=SAMPLER), 1)],
    "ddpo": [(DDPO(steps=GRID, samples=GROUP, sampler=SAMPLER, normalise=False), GROUP)],
}


def run(seed: int) -> dict[str, dict[str, float]]:
    """The gradient of the last step, of a random number of last steps, and the policy gradient."""
    return compared(ARMS, "bounded", seed)


CLAIM = Claim(
    component="draft",
    papers=(265,),
    source="arXiv 2310.03739",
    says="With as many rewards asked for, backpropagating the reward through a random number of last steps reaches more reward than a "
    "policy gradient, and more than through the last step alone.",
    world="mixtures of four modes in the plane with an exact base, a reward with one peak, 64 samples a step, 40 steps",
    expect="random > ddpo : bounded",
    also=("random > last : bounded", "last > ddpo : bounded", "random > ddpo : spread"),
    measure="bounded",
    seeds=SEEDS,
    run=run,
    budget_s=150,
    note="Five rates for each arm, chosen by the reward on a world that is not reported. bounded: the mean reward, at most 1; "
    "spread is the fourth root of the determinant of the samples' covariance. Fidelity and diversity are read against the base.",
)
