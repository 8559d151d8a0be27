"""Does a pull to the old weights, weighed by Fisher information, keep a skill that is not visited at first?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._stages import NOTE, WORLD, run_arms

CLAIM = Claim(
    component="ewc",
    papers=(110,),
    source="arXiv 2402.02868",
    says="Pulling weights back by their Fisher information for old states keeps more of the old skill and "
    "reaches a higher return than plain tuning.",
    world=WORLD,
    expect="ewc > plain",
    also=("ewc > plain : lowest", "ewc > plain : kept"),
    measure="return",
    seeds=tuple(range(10)),
    run=lambda seed: run_arms(("ewc", "plain"), seed),
    budget_s=60,
    note=NOTE,
)
