"""Are signs of the largest entries and one scale the best use of a bit for each entry of a difference?

A small net is tuned on a narrow task and the difference is compressed to at most one bit an entry, in three ways. Their
settings are chosen on the same held-out rows; the risk that is reported is exact.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from luthier.core import stream
from luthier.lab.micro.features import FeatureWorld
from luthier.merge._golomb import encode, entropy
from luthier.merge.task_vectors.compeft import ternarise
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._nets import INPUTS, KNOWN, Weights, fresh, mixed, net_of, risk, trained

BUDGET, FLOAT = 1.0, 16
DENSITIES, ALPHAS = (0.05, 0.1, 0.15, 0.2), (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0)
Deltas = dict[str, Tensor]


def bits(signs: Deltas) -> float:
    """Bits an entry of the coded signs."""
    flat = torch.cat([s.flatten() for s in signs.values()]).numpy()
    return encode(flat).bits / len(flat)


def ternary(deltas: Deltas, density: float) -> Iterator[Deltas]:
    """Signs of the largest entries at every scale."""
    signs, deviation = ternarise(deltas, density)
    if density < 1 and bits(signs) > BUDGET + 0.05:
        return
    for alpha in ALPHAS:
        yield {n: alpha * deviation * s.to(deltas[n].dtype) for n, s in signs.items()}


def pruned(deltas: Deltas) -> Iterator[Deltas]:
    """As many of the largest entries as fit with 16 bits each, at every factor."""
    density = max(p / 1000 for p in range(1, 1000) if entropy(p / 1000) - p / 1000 + FLOAT * p / 1000 <= BUDGET)
    signs, _ = ternarise(deltas, density)
    for factor in ALPHAS:
        yield {n: factor * d * (signs[n] != 0) for n, d in deltas.items()}


def run(seed: int) -> dict[str, dict[str, float]]:
    """The best of each way to spend the bits, the difference at full size, and the base."""
    world, g = FeatureWorld.random(INPUTS, KNOWN, 0, seed), stream(seed, "claim.compeft")
    broad = world.task(tuple(range(KNOWN)), seed * 10)
    narrow = mixed(broad, world.task(tuple(range(4)), seed * 10 + 1), 0.5)
    base = trained(fresh(seed), world.sample(broad, 2000, g), 400, 0.01)
    full = trained(base, world.sample(narrow, 400, g), 200, 0.003)
    x, y = world.sample(narrow, 200, g)
    deltas = {n: full[n] - base[n] for n in base}

    def with_delta(delta: Deltas) -> Weights:
        return {n: base[n] + delta[n] for n in base}

    def held(delta: Deltas) -> float:
        with torch.no_grad():
            return float((net_of(with_delta(delta))(x) - y).square().mean())

    arms = {
        "compeft": [d for density in DENSITIES for d in ternary(deltas, density)],
        "pruned": list(pruned(deltas)),
        "signs": list(ternary(deltas, 1.0)),
    }
    out = {arm: {"risk": risk(world, with_delta(min(tried, key=held)), narrow)} for arm, tried in arms.items()}
    return {**out, "full": {"risk": risk(world, full, narrow)}, "base": {"risk": risk(world, base, narrow)}}


CLAIM = Claim(
    component="compeft",
    papers=(127,),
    source="arXiv 2311.13171",
    says="At equal bits, ternary differences lose less than the largest entries at full precision and than the signs of all "
    "entries with one scale.",
    world="feature world: net of 48 units tuned on a narrow task, 816 entries at one bit each; exact risk",
    expect="compeft < pruned",
    also=("compeft < signs", "compeft < base"),
    measure="risk",
    seeds=tuple(range(10)),
    run=run,
    budget_s=60,
    note="Density (at most 0.2, to fit the bits) and scale of compeft, the factor of the kept entries in pruned (16 bits each) and "
    "the scale of signs are chosen on the same 200 held-out rows. Risk is a share of that of answering 0.",
)
