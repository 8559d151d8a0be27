"""Does an entrywise product of two low-rank matrices fit a high-rank change better than one product of the same size?

The change to be found has independent entries, or is itself such a product, or suits low rank: a falling spectrum under
correlated inputs. LoHa is descended from several starts; LoRA's best is known in closed form.
"""

from __future__ import annotations

import torch

from luthier.adapt.lowrank.loha import LoHa
from luthier.core import stream
from luthier.lab.micro.linear import LinearWorld
from luthier.reproduce.claim import Claim
from luthier.reproduce.claims._fits import best_low_rank, drawn, missed, moved

WIDTH, RANK = 16, 3


def run(seed: int) -> dict[str, dict[str, float]]:
    """Share of the change that is missed: of a change without structure, of a product, of one with a falling spectrum."""
    falling = LinearWorld.random(WIDTH, WIDTH, seed)
    white, g = torch.eye(WIDTH, dtype=torch.float64), stream(seed, "claim.loha")
    product = drawn(WIDTH, WIDTH, RANK, g) * drawn(WIDTH, WIDTH, RANK, g)
    dense = torch.randn(WIDTH, WIDTH, generator=g, dtype=torch.float64)
    worlds = {"missed": moved(falling, dense, white), "product": moved(falling, product, white), "falling": falling}
    return {
        "loha": {name: missed(world, LoHa(rank=RANK), seed) for name, world in worlds.items()},
        "lora": {name: best_low_rank(world, 2 * RANK) for name, world in worlds.items()},
    }


CLAIM = Claim(
    component="loha",
    papers=(28,),
    source="arXiv 2309.14859",
    says="With as many parameters as LoRA, an entrywise product of two low-rank matrices reaches a higher rank and fits "
    "high-rank changes better.",
    world="linear map, 16 x 16; the change has independent normal entries, or is a product of two matrices of rank 3 "
    "(rank 9), or has a falling spectrum under correlated inputs; exact risk",
    expect="loha < lora",
    also=("loha < lora : product", "loha < lora : falling"),
    measure="missed",
    seeds=tuple(range(5)),
    run=run,
    budget_s=90,
    note="Rank 3 for LoHa and 6 for LoRA: 192 parameters in both arms. LoRA's figure is the optimum of its form; LoHa's is the "
    "best of four descents, so that it can only be too high.",
)
