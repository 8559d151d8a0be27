"""Does regressing reward differences bring a policy nearer to the tilted base than a policy gradient?"""

from __future__ import annotations

from luthier.diffusion.align.ddpo import DDPO
from luthier.diffusion.align.prdp import PRDP
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._axes import SEEDS
from luthier.reproduce.claims._rewarded import GRID, GROUP, RATES, SAMPLER, compared, figures

BEST = (PRDP(beta=1.0, steps=GRID, samples=GROUP, sampler=SAMPLER), GROUP)
PLAIN = (DDPO(steps=GRID, samples=GROUP, sampler=SAMPLER, normalise=False), GROUP)
FAST = 5 * max(RATES)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both arms at their own rate, the base and the tilt; fast: the distance at five times the largest rate."""
    out = compared({"prdp": [BEST], "ddpo": [PLAIN]}, "distance", seed)
    for name, (objective, group) in (("prdp", BEST), ("ddpo", PLAIN)):
        out[name] = {**out[name], "fast": figures(objective, seed, FAST, group)["distance"]}
    return out


CLAIM = Claim(
    component="prdp",
    papers=(225,),
    source="arXiv 2402.08714",
    says="Regressing reward differences ends nearer to the base tilted by the reward than a policy gradient with as many samples, "
    "and stands a rate that is far too large better.",
    world="mixtures of four modes in the plane with an exact base, a linear reward of strength 1, 64 samples a step, 40 steps",
    expect="prdp < ddpo : distance",
    also=("prdp < base : distance", "prdp < ddpo : fast"),
    measure="distance",
    seeds=SEEDS,
    run=run,
    budget_s=150,
    note="distance: 1000 x the squared discrepancy from the tilt, in closed form. Five rates for each arm, chosen by this distance "
    "on a world that is not reported. Samples are drawn anew each step, so that clipping rests in both arms; what is compared "
    "is regression against the plain gradient.",
)
