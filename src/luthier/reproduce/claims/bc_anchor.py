"""Does an anchor on old states keep what reinforcement tuning does not visit?"""

from __future__ import annotations

from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._stages import NOTE, WORLD, run_arms

CLAIM = Claim(
    component="bc_anchor",
    papers=(110,),
    source="arXiv 2402.02868",
    says="Keeping the start policy's distributions on old states keeps what tuning does not visit at first, "
    "and reaches a higher return than plain tuning.",
    world=WORLD,
    expect="bc_anchor > plain",
    also=("bc_anchor > plain : lowest", "bc_anchor > plain : kept"),
    measure="return",
    seeds=tuple(range(10)),
    run=lambda seed: run_arms(("bc_anchor", "plain"), seed),
    budget_s=60,
    note=NOTE,
)
