"""Does a Kronecker product fit a change better than a low-rank product with as many parameters?

The change to be found is itself a Kronecker product, has independent entries, or suits low rank: a falling spectrum under
correlated inputs. LoRA's best is known in closed form, LoKr is descended from several starts.
"""

from __future__ import annotations

import torch

from luthier.adapt.lowrank.lokr import LoKr
from luthier.core import stream
from luthier.lab.micro.linear import LinearWorld
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._fits import best_low_rank, missed, moved

SIDE = 5
LOKR = LoKr(factor=SIDE, whole=True)


def run(seed: int) -> dict[str, dict[str, float]]:
    """Share of the change that is missed: of a Kronecker product, of independent entries, of a falling spectrum."""
    falling = LinearWorld.random(SIDE**2, SIDE**2, seed)
    white, g = torch.eye(SIDE**2, dtype=torch.float64), stream(seed, "claim.lokr")
    small, large = torch.randn(2, SIDE, SIDE, generator=g, dtype=torch.float64)
    dense = torch.randn(SIDE**2, SIDE**2, generator=g, dtype=torch.float64)
    worlds = {
        "missed": moved(falling, torch.kron(small, large), white),
        "dense": moved(falling, dense, white),
        "falling": falling,
    }
    return {
        "lokr": {name: missed(world, LOKR, seed) for name, world in worlds.items()},
        "lora": {name: best_low_rank(world, 1) for name, world in worlds.items()},
    }


CLAIM = Claim(
    component="lokr",
    papers=(28,),
    source="arXiv 2309.14859",
    says="With as many parameters as LoRA, a Kronecker product reaches a much higher rank; where the change has that form it "
    "fits better.",
    world="linear map, 25 x 25; the change is a Kronecker product of two 5 x 5 matrices, has independent normal entries, or has "
    "a falling spectrum under correlated inputs; exact risk",
    expect="lokr < lora",
    also=("lokr < lora : dense", "lokr < lora : falling"),
    measure="missed",
    seeds=tuple(range(8)),
    run=run,
    budget_s=60,
    note="Two 5 x 5 factors against rank 1: 50 parameters in both arms. LoRA's figure is the optimum of its form; LoKr's is the "
    "best of four descents. The first expectation tests that the form is what it says it is; the others have no such bias.",
)
