"""Does a fixed ladder of layers and dims train smaller models inside one encoder better than random pairs of them do?

The same residual encoder and the same number of steps: Starbucks trains its whole ladder in every step, 2D-Matryoshka the full
model and one random layer and dim. Beside them a small encoder trained alone at the smallest size.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from luthier.core import Batch, Objective, Signals, Terms, stream
from luthier.objectives.contrastive.info_nce import InfoNCE
from luthier.objectives.contrastive.starbucks import Starbucks
from luthier.reproduce.claim import TUNING_SEED, Claim
from luthier.reproduce.claims._embedding import Encoder, Topics, ndcg, train

LAYERS, DIMS, WIDTH = (1, 2, 3, 4), (4, 8, 16, 32), 32
ROWS, TOPICS, BATCH, STEPS, TEMPERATURE = 256, 256, 64, 80, 0.1
RATES, KLS, MARGIN = (1e-3, 3e-3), (0.0, 0.3), 0.05


@dataclass(frozen=True)
class Small:
    """InfoNCE on the first coordinates of one layer."""

    inner: InfoNCE
    layer: int
    dim: int

    def __call__(self, batch: Batch, s: Signals) -> Terms:
        return self.inner(
            batch, s.replaced(embedding=tuple(p[:, self.layer, : self.dim] for p in s.tensors("layer_embedding")))
        )


class Drawn:
    """2D-Matryoshka at one step: the full model, a random dim of it, a random layer, and that layer at that dim."""

    def __init__(self, inner: InfoNCE, kl: float, layer: int, dim: int) -> None:
        """kl: weight of the alignment of the random size, as Starbucks has it."""
        self.both = Starbucks(inner=inner, layers=(layer,), dims=(dim,), kl=kl)
        self.more = [Small(inner, LAYERS[-1], dim), Small(inner, layer, WIDTH)]

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        return (*self.both(batch, s), *(one(batch, s) for one in self.more))


def figures(arm: str, lr: float, kl: float, seed: int, split: str) -> dict[str, float]:
    """nDCG@10 at every size of the ladder, its mean, and at the smallest."""
    topics, inner = Topics(seed=seed), InfoNCE(temperature=TEMPERATURE)
    data, new = topics.pairs(ROWS, TOPICS, "train"), topics.pairs(320, 160, split)
    ladder, g = Starbucks(inner=inner, layers=LAYERS, dims=DIMS, kl=kl), stream(seed, "claim.starbucks.sizes")
    sizes = torch.randint(len(LAYERS), (STEPS, 2), generator=g).tolist()

    def at(step: int) -> Objective:
        drawn: object = Drawn(inner, kl, LAYERS[sizes[step][0]], DIMS[sizes[step][1]])
        one = ladder if arm == "starbucks" else drawn if arm == "matryoshka_2d" else Small(inner, LAYERS[0], DIMS[0])
        return one  # type: ignore[return-value]

    depth = LAYERS[0] if arm == "alone" else LAYERS[-1]
    model = train(Encoder(topics.inputs, WIDTH, depth, seed), data, at, STEPS, BATCH, lr, seed)
    with torch.no_grad():
        query, positive = model(new.query), model(new.positive)
    asked = [(k, d) for k, d in zip(LAYERS, DIMS, strict=True) if k <= depth]
    found = [ndcg(query[:, k, :d], positive[:, k, :d], new.topic) for k, d in asked]
    return {"ladder": sum(found) / len(found), "smallest": found[0], "full": found[-1]}


@functools.cache
def tuned(arm: str) -> tuple[float, float]:
    """Learning rate and weight of the KL with the best mean over the ladder, on a world that is not reported."""
    tries = [(lr, kl) for lr in RATES for kl in ((0.0,) if arm == "alone" else KLS)]
    return max(tries, key=lambda at: figures(arm, *at, TUNING_SEED, "stop")["ladder"])


def run(seed: int) -> dict[str, dict[str, float]]:
    """Each arm at its own best settings; "floor" is the small model alone, less the stated margin."""
    out = {arm: figures(arm, *tuned(arm), seed, "test") for arm in ("starbucks", "matryoshka_2d", "alone")}
    out["floor"] = {"smallest": out["alone"]["smallest"] - MARGIN}
    return out


CLAIM = Claim(
    component="starbucks",
    papers=(151,),
    source="arXiv 2410.13230",
    says="Training a fixed ladder of layer and dimension pairs in every step makes the sizes of the ladder retrieve better than "
    "random pairs do, and its smallest size about as well as a small model trained alone.",
    world="micro: pairs of 16 hidden dimensions under nuisance, a residual encoder of 4 layers, ladder (1, 4) to (4, 32), 80 "
    "steps; nDCG@10 among 160 new topics",
    expect="starbucks > matryoshka_2d",
    also=("starbucks > floor : smallest", "starbucks > matryoshka_2d : smallest", "starbucks > matryoshka_2d : full"),
    measure="ladder",
    seeds=tuple(range(6)),
    run=run,
    budget_s=150,
    note="Learning rate and weight of the KL are chosen from the same grid for both. Steps are equal; Starbucks computes the inner "
    "loss on four sizes a step, 2D-Matryoshka on four as well (full, cut, layer, both). floor: the small model less 0.05. The "
    "paper's pre-training is left out.",
)
