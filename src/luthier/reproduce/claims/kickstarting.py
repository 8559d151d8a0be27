"""Does an anchor on visited states keep a skill that is not visited at first?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._stages import NOTE, WORLD, run_arms

CLAIM = Claim(
    component="kickstarting",
    papers=(110,),
    source="arXiv 2402.02868",
    says="Keeping the start policy's distributions on the states that the tuned policy visits keeps more of "
    "the old skill and reaches a higher return than plain tuning.",
    world=WORLD,
    expect="kickstarting > plain",
    also=("kickstarting > plain : lowest", "kickstarting > plain : kept"),
    measure="return",
    seeds=tuple(range(10)),
    run=lambda seed: run_arms(("kickstarting", "plain"), seed),
    budget_s=60,
    note=NOTE,
)
