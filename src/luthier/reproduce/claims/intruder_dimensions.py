"""Does low-rank tuning bring singular directions that full tuning does not, and do they come with forgetting?

The language model learns a new skill by full tuning and by LoRA of rank 1 and 64 with the rank-stabilised scale, each at the
learning rate of three that answers held-out rows of the new skill best.
"""

from __future__ import annotations

import functools
from typing import Any

from luthier.measure.diagnose.intruder_dimensions import IntruderDimensions
from luthier.recipes.build import Prepared
from luthier.recipes.run import subject_of
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._language import NEW, OLD, ROTATE, Judge, rows, trained

RATES = (5e-4, 2e-3, 8e-3)
SITES = "all-linear"
ARMS: dict[str, dict[str, Any]] = {
    "full": {"full": {"sites": SITES}},
    "rank_1": {"lora": {"rank": 1, "alpha": 8.0, "rank_stabilised": True, "sites": SITES}},
    "rank_64": {"lora": {"rank": 64, "alpha": 8.0, "rank_stabilised": True, "sites": SITES}},
}


def tuned_model(arm: str, seed: int, lr: float) -> Prepared:
    """One arm after training on the new skill."""
    return trained({**ROTATE, "adapt": ARMS[arm], "train": {"steps": 50, "batch": 16, "lr": lr, "warmup": 0.1}}, seed)


@functools.cache
def best_rate(arm: str) -> float:
    """The learning rate of the lowest loss on held-out rows of the new skill, at a seed that is not reported."""
    judge, held = Judge(), rows(NEW, "stop", 64)
    return min(RATES, key=lambda lr: judge.nll(tuned_model(arm, TUNING_SEED, lr), held))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Intruders in all matrices, and nats per token on old skills and on the new one, for each arm."""
    judge, made = Judge(), {}
    for arm in ARMS:
        model = tuned_model(arm, seed, best_rate(arm))
        count = sum(f.intruders for f in IntruderDimensions().report(subject_of(model)))
        old, new = (judge.nll(model, rows(skills, "test", 60)) for skills in (OLD, NEW))
        made[arm] = {"intruders": float(count), "old_nll": old, "new_nll": new}
    return made


CLAIM = Claim(
    component="intruder_dimensions",
    papers=(39,),
    source="arXiv 2410.21228",
    says="LoRA leaves intruder dimensions in the weights where full tuning leaves none; a high rank with the rank-stabilised "
    "scale has fewer. Among LoRAs more of them go with more forgetting, though LoRA forgets less than full tuning.",
    world="language: rotate learned on all linear maps; old skills sort, reverse and copy",
    expect="rank_1 > full",
    also=("rank_1 > rank_64", "rank_1 > rank_64 : old_nll", "rank_1 < full : old_nll"),
    measure="intruders",
    seeds=tuple(range(5)),
    run=run,
    budget_s=150,
    note="Counts over 28 matrices, the 10 strongest directions each, epsilon 0.5. Each arm has the learning rate of three with "
    "the least loss on the new skill; `new_nll` shows how far each came.",
)
