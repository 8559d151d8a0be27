"""Does a guide help contrastive training where a batch holds several texts of one meaning?

Pairs of texts from hidden topics; the fewer topics a batch has, the more of its "negatives" are right answers. The guide sees
the hidden topic through noise. What counts is how well the passages of a query's topic are found among new topics.
"""

from __future__ import annotations

import functools

import torch

from luthier.core import Objective, stream
from luthier.objectives.contrastive.gist import GIST, blocks, kept
from luthier.objectives.contrastive.info_nce import InfoNCE
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._embedding import Encoder, Pairs, Topics, ndcg, train

ROWS, BATCH, STEPS, BLUR = 256, 64, 80, 0.3
WORLDS = {"none": 256, "many": 32}
"""Topics among the 256 training rows: no two rows of a batch share one, or each has about two."""
TEMPERATURES, MARGINS, RATE = (0.05, 0.2), (0.0, 0.1), 3e-3


def guide_of(data: Pairs, seed: int) -> dict[str, torch.Tensor]:
    """The guide's vectors: what is behind the texts, with noise."""
    noise = BLUR * torch.randn(data.core.shape, generator=stream(seed, "claim.gist.guide"))
    return {"guide_query": (data.core + noise)[:, 0], "guide_positive": (data.core + noise)[:, 1]}


def masked(data: Pairs, seed: int, margin: float) -> float:
    """Share of same-topic positives of other rows that the guide drops, over one batch."""
    guide = guide_of(data, seed)
    sides = blocks(guide["guide_query"][:BATCH], guide["guide_positive"][:BATCH], None)
    topic = data.topic[torch.arange(BATCH)]
    twin = (topic[:, None] == topic[None]) & ~torch.eye(BATCH, dtype=torch.bool)
    return float((~kept(sides, margin)[0])[twin].double().mean()) if bool(twin.any()) else 1.0


def figures(arm: str, world: str, temperature: float, margin: float, seed: int, split: str) -> float:
    """nDCG@10 on new topics."""
    topics = Topics(seed=seed)
    data, new = topics.pairs(ROWS, WORLDS[world], "train"), topics.pairs(320, 160, split)
    objective: Objective = (
        GIST(temperature=temperature, margin=margin) if arm == "gist" else InfoNCE(temperature=temperature)
    )
    model = train(Encoder(topics.inputs, 32, 1, seed), data, lambda _: objective, STEPS, BATCH, RATE, seed,
                  guide_of(data, seed))  # fmt: skip
    with torch.no_grad():
        return ndcg(model(new.query)[:, -1], model(new.positive)[:, -1], new.topic)


@functools.cache
def tuned(arm: str, world: str) -> tuple[float, float]:
    """Temperature (and for GIST margin) of the best retrieval on a world that is not reported."""
    tries = [(t, m) for t in TEMPERATURES for m in (MARGINS if arm == "gist" else (0.0,))]
    return max(tries, key=lambda at: figures(arm, world, *at, TUNING_SEED, "stop"))


def run(seed: int) -> dict[str, dict[str, float]]:
    """Both losses in each world at their own best settings."""
    out: dict[str, dict[str, float]] = {
        arm: {f"ndcg_{w}": figures(arm, w, *tuned(arm, w), seed, "test") for w in WORLDS}
        for arm in ("gist", "info_nce")
    }
    out["gist"] |= {f"masked_{w}": masked(Topics(seed=seed).pairs(ROWS, n, "train"), seed, tuned("gist", w)[1])
                    for w, n in WORLDS.items() if w != "none"}  # fmt: skip
    return out


CLAIM = Claim(
    component="gist",
    papers=(119,),
    source="arXiv 2402.16829",
    says="Dropping in-batch negatives that a guide finds closer than the true pair gives embeddings that retrieve better, the "
    "more so the more rows of a batch mean the same.",
    world="micro: pairs of 16 hidden dimensions under nuisance, 256 rows of 256 or 32 topics, batches of 64; nDCG@10 among "
    "160 new topics",
    expect="gist > info_nce",
    also=("gist > info_nce : ndcg_none",),
    measure="ndcg_many",
    seeds=tuple(range(8)),
    run=run,
    note="Temperature is chosen for each arm and world from the same two, GIST's margin from two. The guide sees the hidden "
    "vector with noise. masked_*: share of same-topic positives that the guide drops.",
)
