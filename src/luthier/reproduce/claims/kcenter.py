"""Do rows far apart teach rare kinds of requests better than rows drawn by lot?"""

from __future__ import annotations

from luthier.data.select.kcenter import farthest_first
from luthier.data.select.qdit import qdit
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._subsets import KEEP, WORLD, Clusters


def run(seed: int) -> dict[str, dict[str, float]]:
    """k-centre, coverage by facility location, and chance, in a clean pool and in one with a tenth of outliers."""
    out: dict[str, dict[str, float]] = {"kcenter": {}, "coverage": {}, "random": {}}
    for suffix, outliers in (("", 0), ("_outliers", 100)):
        world = Clusters.random(seed, outliers)
        chosen = {
            "kcenter": farthest_first(world.pool.points, KEEP).index,
            "coverage": qdit(world.pool.points, None, KEEP, 0.0).index,
            "random": world.lot(seed),
        }
        for arm, rows in chosen.items():
            out[arm] |= {f"{k}{suffix}": v for k, v in world.errors(rows).items()}
    return out


CLAIM = Claim(
    component="kcenter",
    papers=(308,),
    source="arXiv 2311.08182",
    says="Rows chosen to be far from all chosen before teach better than as many rows drawn by lot.",
    world=WORLD,
    expect="kcenter < random",
    also=("kcenter < random : mean", "kcenter < coverage", "kcenter < random : worst_outliers"),
    measure="worst",
    seeds=tuple(range(20)),
    run=run,
    budget_s=30,
    note="Nothing is tuned in any arm. `coverage` is greedy facility location; in `worst_outliers` a tenth of the pool lies far "
    "from all clusters and has useless answers.",
)
