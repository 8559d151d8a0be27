"""Is a greedy choice for novelty better than other diverse choices, and than chance?"""

from __future__ import annotations

from luthier.data.select.kcenter import farthest_first
from luthier.data.select.qdit import qdit
from luthier.ops.novelty import local_density, novelselect
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._subsets import KEEP, SLOPE, VARIED, Clusters


def run(seed: int) -> dict[str, dict[str, float]]:
    """Four ways to choose, in a clean pool and in one with a tenth of outliers."""
    out: dict[str, dict[str, float]] = {arm: {} for arm in ("novelselect", "kcenter", "coverage", "random")}
    for suffix, outliers in (("", 0), ("_outliers", 100)):
        world = Clusters.random(seed, outliers, slope=SLOPE)
        x = world.pool.points
        chosen = {
            "novelselect": novelselect(x, KEEP, local_density(x))[0],
            "kcenter": farthest_first(x, KEEP).index,
            "coverage": qdit(x, None, KEEP, 0.0).index,
            "random": world.lot(seed),
        }
        for arm, rows in chosen.items():
            out[arm] |= {f"{k}{suffix}": v for k, v in world.errors(rows).items()}
    return out


CLAIM = Claim(
    component="novelselect",
    papers=(312,),
    source="arXiv 2502.17184",
    says="Choosing rows greedily for NovelSum gives better training data than k-centre and other diverse choices, and than "
    "random rows.",
    world=VARIED,
    expect="novelselect < kcenter",
    also=("novelselect < random", "novelselect < kcenter : mean", "novelselect < kcenter : held_outliers"),
    measure="held",
    seeds=tuple(range(20)),
    run=run,
    budget_s=60,
    note="Nothing is tuned in any arm; the powers and neighbours are the paper's. Distances between rows are cosine in novelselect "
    "and coverage, Euclidean in k-centre. In `mean` all clusters count alike; in `held_outliers` a tenth of the "
    "pool lies far out, with useless answers. Answers change inside the clusters: where a cluster has one answer, a dense region "
    "holds no more to learn than a thin one, and a choice that prefers it is wrong by construction.",
)
