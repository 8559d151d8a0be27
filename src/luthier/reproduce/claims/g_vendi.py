"""Does the number of gradient directions tell how well training data generalises, better than diversity of the texts?"""

from __future__ import annotations

import torch

from luthier.core import stream
from luthier.measure.diversity.g_vendi import g_vendi
from luthier.ops.distances import mean_pairwise
from luthier.ops.vendi import vendi
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._skills import SKILLS, TOPICS, Skills
from luthier.reproduce.claims._subsets import rank_correlation

POOL, SETS, SIZE = 600, 40, 60


def run(seed: int) -> dict[str, dict[str, float]]:
    """Rank correlation, over forty sets of one size, of each measure with success on all skills alike."""
    world, g = Skills.random(seed, POOL, skew=0.5), stream(seed, "claim.g_vendi.sets")
    gradients, topic = world.gradients(), world.topic
    sets = []
    for i in range(SETS):
        skills = torch.randperm(SKILLS, generator=g)[: 2 + i % (SKILLS - 1)]
        topics = torch.randperm(TOPICS, generator=g)[: 1 + int(torch.randint(TOPICS, (1,), generator=g))]
        wanted = torch.isin(world.skill, skills) & torch.isin(topic, topics)
        inside = wanted.nonzero()[:, 0]
        sets.append(inside[torch.randint(len(inside), (SIZE,), generator=g)] if len(inside) else torch.arange(SIZE))
    success = [-world.errors(rows)["even"] for rows in sets]
    measures = {
        "g_vendi": [g_vendi(gradients[r]).item() for r in sets],
        "vendi": [vendi(world.vectors[r]).item() for r in sets],
        "mean_distance": [mean_pairwise(world.vectors[r], "cosine").item() for r in sets],
    }
    return {name: {"correlation": rank_correlation(values, success)} for name, values in measures.items()}


CLAIM = Claim(
    component="g_vendi",
    papers=(371,),
    source="arXiv 2505.20161",
    says="The entropy of gradient directions of a training set tells how well what it teaches generalises, better than the "
    "diversity of its texts.",
    world="a linear learner of twelve skills; forty sets of 60 rows that cover 2 to 12 skills and some topics, drawn apart",
    expect="g_vendi > vendi",
    also=("g_vendi > mean_distance",),
    measure="correlation",
    seeds=tuple(range(20)),
    run=run,
    budget_s=60,
    note="Spearman correlation over the sets of a world, success being the error on fresh rows of all skills alike. Gradients are "
    "exact, of a first guess of the weights. Texts tell topics, which do not matter for the answer: the case the paper is "
    "about; in a world where topics are the skills, texts would tell as much.",
)
