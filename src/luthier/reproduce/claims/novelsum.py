"""Does NovelSum rank sets of training data by what a learner gets from them, better than other measures of diversity?

Subsets of one size are made in ways that differ in diversity: by lot, with copies, from few clusters, far apart, from
the rim. For each world the rank correlation of a measure with the learner's success over all subsets is one figure.
"""

from __future__ import annotations

import torch
from torch import Tensor

from luthier.core import stream
from luthier.data.select.kcenter import farthest_first
from luthier.data.select.qdit import qdit
from luthier.ops.distances import mean_pairwise
from luthier.ops.novelty import local_density, novelsum
from luthier.ops.vendi import vendi
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._subsets import KEEP, POOL, SLOPE, VARIED, Clusters, rank_correlation


def subsets(world: Clusters, seed: int) -> list[Tensor]:
    """Rows of fifteen subsets, all of one size; copies stand as repeated rows."""
    g, x = stream(seed, "claim.novelsum.subsets"), world.pool.points
    out = [torch.randperm(POOL, generator=g)[:KEEP] for _ in range(3)]
    for different in (20, 10, 5):
        own = torch.randperm(POOL, generator=g)[:different]
        out.append(own.repeat(KEEP // different))
    common = world.pool.label.bincount(minlength=len(world.asked)).argsort(descending=True)
    for clusters in (1, 2, 4, 8):
        inside = torch.isin(world.pool.label, common[:clusters]).nonzero()[:, 0]
        out.append(inside[torch.randperm(len(inside), generator=g)[:KEEP]])
    rim = (x - x.mean(0)).norm(dim=1).argsort(descending=True)
    out += [rim[:KEEP], torch.cat([rim[: KEEP // 2], out[0][: KEEP // 2]])]
    out += [farthest_first(x, KEEP).index, farthest_first(x, KEEP // 2).index.repeat(2), qdit(x, None, KEEP, 0.0).index]
    return out


def run(seed: int) -> dict[str, dict[str, float]]:
    """Rank correlation of each measure with success: minus the error on rows like the pool's, and on all clusters alike."""
    world = Clusters.random(seed, slope=SLOPE)
    made, x = subsets(world, seed), world.pool.points
    errors = [world.errors(rows) for rows in made]
    measures = {
        "novelsum": [novelsum(x[r], local_density(x[r], x)).item() for r in made],
        "no_density": [novelsum(x[r]).item() for r in made],
        "mean_distance": [mean_pairwise(x[r], "cosine").item() for r in made],
        "vendi": [vendi(x[r]).item() for r in made],
    }
    goals = {"held": [-e["held"] for e in errors], "even": [-e["mean"] for e in errors]}
    return {n: {k: rank_correlation(v, goal) for k, goal in goals.items()} for n, v in measures.items()}


CLAIM = Claim(
    component="novelsum",
    papers=(312,),
    source="arXiv 2502.17184",
    says="NovelSum ranks data sets by the success of what is trained on them more exactly than other measures of diversity, and "
    "its density factor helps.",
    world=f"{VARIED}; fifteen subsets: by lot, with copies, of few clusters, of the rim, far apart, covering",
    expect="novelsum > mean_distance",
    also=("novelsum > vendi", "novelsum > no_density", "novelsum > mean_distance : even"),
    measure="held",
    seeds=tuple(range(20)),
    run=run,
    budget_s=60,
    note="Spearman correlation over the subsets of a world with success on held-out rows of the pool's distribution; in `even` all "
    "clusters count alike. The powers and neighbours are the paper's, the reference of the "
    "density is the whole pool; nothing is tuned. Answers change inside the clusters: where a cluster has one answer, a dense "
    "region holds no more to learn than a thin one, and a measure that prefers it is wrong by construction.",
)
