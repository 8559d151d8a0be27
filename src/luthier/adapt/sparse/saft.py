"""SAFT: trains only the few weights of the whole model whose gradient on the task is largest at the start.

Paper: arXiv 2407.03036.   Formula: theta <- theta + M * delta, M = 1 on the ceil(density * N) largest |mean gradient|.
Takes: linear weights and biases (others by `sites`), first batches of the task.   Gives: positions and values, merged
exactly.   Choose it when: the tuned model must stay good on data unlike the tuning data.
Rather not when: the task needs changes everywhere, or no gradient of all weights fits in memory even once.
Relatives: neuroada (k per neuron by size), lt_sft (by how far full tuning moves them), spiel (moves them during training).

>>> strongest({"w": torch.tensor([0.1, -3.0, 0.2]), "b": torch.tensor([2.0])}, 0.5)["w"].tolist()
[1]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from luthier.adapt._sparse import Sparse, SparseHandle, base_gradients, share, top
from luthier.core import Calibration, Card, component

CARD = Card(
    name="SAFT",
    source="arXiv 2407.03036",
    papers=(115,),
    cost="`batches` forward and backward passes with dense gradients before the first step; then values and their 4-byte "
    "positions, and the dense gradient of one weight at a time",
    limits=(
        "exactly ceil(density * N) entries can change; all others stay bit-identical, under weight decay too",
        "density = 1: full fine-tuning of the sites' weights and biases under SGD or Adam without weight decay",
        "zero values at the start: the model is the base bit for bit",
    ),
    differs=(
        "the authors' code was not found: one ranking over all weights, by the size of the mean gradient, is read from "
        "an independent implementation, which scores with dropout on; here dropout is off",
        "N counts the weights and biases of the sites, linear layers by default; the paper's N is the whole model",
        "the gradient is that of the first batches of the run, the paper's that of the downstream set",
        "what trains is the change: weight decay pulls towards the base",
        "attached outside of a run the positions are random until `handle.choose(strongest(gradients, density))`",
    ),
    use_when="a small task, and data unlike it must not suffer",
    avoid_when="the weights are quantised, or their dense gradient never fits in memory",
    relatives=("adapt.sparse.neuroada", "adapt.sparse.lt_sft", "adapt.sparse.spiel"),
    mechanism="sparse updates",
    tags=("starts_at_base", "exact_merge"),
)


def strongest(gradients: Mapping[str, Tensor], density: float) -> dict[str, Tensor]:
    """Flat positions, ascending, of the ceil(density * N) largest |gradient| over all tensors; equal ones by order."""
    scores = {name: g.abs() for name, g in gradients.items()}
    return top(scores, share(density, sum(s.numel() for s in scores.values())))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class SAFT(Sparse):
    """density: share of the entries that train. batches: steps of rows whose gradients choose them; 0: at random."""

    density: Annotated[float, Gt(0), Le(1)] = 0.001
    batches: Annotated[int, Ge(0)] = 8

    @property
    def calibration(self) -> int:
        """Batches to look at before the first step."""
        return self.batches

    def chosen(self, handle: SparseHandle, calibration: Calibration) -> dict[str, Tensor] | None:
        """The strongest entries of the summed gradient at the base."""
        total: dict[str, Tensor] = {}
        for gradients in base_gradients(handle, calibration):
            for name, g in gradients.items():
                wide = g.to(torch.promote_types(g.dtype, torch.float32))
                total[name] = wide.clone() if name not in total else total[name].add_(wide)
        return strongest(total, self.density)
