"""Does training on old rows beside new episodes keep a skill that is not visited at first?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._stages import NOTE, WORLD, run_arms

CLAIM = Claim(
    component="replay",
    papers=(110,),
    source="arXiv 2402.02868",
    says="Old samples kept in training keep the old skill and reach a higher return than plain tuning.",
    world=WORLD,
    expect="replay > plain",
    also=("replay > plain : lowest", "replay > plain : kept"),
    measure="return",
    seeds=tuple(range(10)),
    run=lambda seed: run_arms(("replay", "plain"), seed),
    budget_s=60,
    note=NOTE,
)
