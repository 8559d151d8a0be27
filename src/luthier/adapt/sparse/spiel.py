"""SpIEL: trains a fixed number of single weights, and every so often drops those that moved least for better ones.

Paper: arXiv 2401.16405.   Formula: W = W0 + scatter(delta); every S steps the share p0 (1 - t / T) of smallest |delta| goes,
and as many positions of largest accumulated |gradient| (ag) or SM3 momentum row_i * column_j (ma) come, from delta = 0.
Takes: linear weights.   Gives: positions and values, merged exactly.
Choose it when: which weights matter is not known beforehand.   Rather not when: runs last a few steps only.
Relatives: saft (chooses once), lt_sft (chooses by a full tuning), neuroada (k per neuron).

>>> spiel = SpIEL(rate=0.25, every=20, accumulate=5)
>>> [spiel.part(step, steps=100) for step in (3, 4, 5, 24, 44)]
[None, 1.0, None, 0.1875, 0.1375]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Gt, Le
from torch import Generator, Tensor

from luthier.adapt._sparse import Sparse, SparseHandle, draw, share
from luthier.adapt.sparse._reselect import Reselect
from luthier.core import Card, Hook, component

CARD = Card(
    name="SpIEL",
    source="arXiv 2401.16405",
    papers=(210,),
    cost="k values with optimiser state and 4-byte positions a site; while it selects, k candidates a site (ag), or one number "
    "for each row and column (ma), and a score for every weight of one site at a time",
    limits=(
        "each site has max(1, int(density * size)) active positions at all times, all distinct",
        "a newcomer starts at value 0; what a reselection changes is exactly the values that it drops",
        "zero values at the start: the model is the base bit for bit; inactive weights stay bit-identical",
        "rate = 0: after the first selection the positions stay",
    ),
    differs=(
        "schedule, choice and accumulators follow the authors' peft fork (algorithms rigl and sm3), read in its source",
        "the share p counts completed steps; the first selection may change all positions, as in the fork",
        "ag: candidates are those of the first micro-batch of a selection, as in the fork; their sums are the gradients of whole "
        "steps, so that squares do not depend on the split into micro-batches",
        "torch counts steps per tensor, the fork per entry: a newcomer's moments are stored times 1 - beta^step, so that the "
        "corrected estimates are the mean gradient and mean square (the fork stores the means and a small count)",
        "ma keeps SM3's accumulators beside any optimiser, in the fork they are its optimiser's; newcomers have first moment 0 "
        "and the mean second moment of those that stay",
        "density counts each site's own weights; the fork spreads a share of the whole model over the sites",
        "quantised bases and, for ag, several processes are refused",
    ),
    use_when="sparse tuning in runs of some hundred steps or more, where the right weights are found on the way",
    avoid_when="runs of a few steps, quantised bases",
    relatives=("adapt.sparse.saft", "adapt.sparse.lt_sft", "adapt.sparse.neuroada"),
    mechanism="sparse updates",
    tags=("starts_at_base", "exact_merge"),
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SpIEL(Sparse):
    """density: share of each weight that is active. grow: by accumulated gradient (ag) or SM3 momentum (ma).

    every: steps between reselections. accumulate: steps whose gradients decide. rate: p0, the share dropped at first.
    """

    density: Annotated[float, Gt(0), Le(1)] = 0.01
    grow: Literal["ag", "ma"] = "ag"
    every: Annotated[int, Ge(1)] = 20
    accumulate: Annotated[int, Ge(1)] = 5
    rate: Annotated[float, Ge(0), Le(1)] = 0.2
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    keys: ClassVar[tuple[str, ...]] = ("weight",)

    def __post_init__(self) -> None:
        if self.accumulate > self.every:
            raise ValueError(
                f"accumulate must not exceed every = {self.every}; got {self.accumulate}. Lower accumulate."
            )

    def start(self, sizes: Mapping[str, int], g: Generator) -> dict[str, Tensor]:
        """Random positions, as many in each weight as its share."""
        return {name: draw({name: n}, share(self.density, n, down=True), g)[name] for name, n in sizes.items()}

    def schedule(self, handle: SparseHandle) -> tuple[Hook, ...]:
        """The hook that drops and grows."""
        return (Reselect(handle, self.grow, self.listens, self.part),)

    def listens(self, step: int) -> bool:
        """Whether the gradients of step `step` (from 0) count for a selection."""
        return step % self.every < self.accumulate

    def part(self, step: int, steps: int) -> float | None:
        """Share of positions to drop after step `step` (from 0) of `steps`; None unless a selection ends there."""
        done = step + 1
        if step % self.every != self.accumulate - 1:
            return None
        return 1.0 if done == self.accumulate else self.rate * (1 - done / steps)
