"""DiaBlo: each layer trains the blocks on the diagonal of its weight and nothing else.

Paper: arXiv 2506.03230.   Formula: y = W x + blockdiag(D_1 .. D_N) x, every D_i a full matrix that starts at zero.
Takes: linear weights of any shape; widths that N does not divide are padded with zeros.   Gives: blocks (N, out / N,
in / N), merged exactly.
Choose it when: LoRA is sensitive to its learning rate or start: there is no product of factors here.   Rather not when:
outputs must learn from inputs of other blocks; a block sees its own inputs only.
Relatives: lora (low rank instead of sparse), neuroada (single weights of every row), lokr (one block for all).

>>> block_diagonal(torch.tensor([[[1.0, 2.0]], [[3.0, 4.0]]]), 2, 4).tolist()
[[1.0, 2.0, 0.0, 0.0], [0.0, 0.0, 3.0, 4.0]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Generator, Tensor
from torch.nn import functional as F

from luthier.adapt._delta import Delta
from luthier.core import Card, component

CARD = Card(
    name="DiaBlo",
    source="arXiv 2506.03230",
    papers=(341,),
    cost="in out / N trained parameters a site; one batched product beside it",
    limits=(
        "zero blocks at the start: the model is the base bit for bit",
        "the gradient of a block is that block of the dense weight gradient",
        "N = 1: full fine-tuning of the weight under SGD or Adam without weight decay",
        "entries outside the blocks never change",
    ),
    differs=(
        "blocks are stored (out, in) as weights are; the released code stores them transposed",
        "as in the released code, a width that N does not divide gives blocks of the next larger size and perhaps fewer of "
        "them, the last one padded; entries in the padding have no effect",
        "formula and padding compared with the released code by reading and by a loop",
    ),
    use_when="a LoRA-sized budget without factors, special starts or a delicate learning rate",
    avoid_when="the change has low rank across the whole layer",
    relatives=("adapt.lowrank.lora", "adapt.sparse.neuroada", "adapt.lowrank.lokr"),
    mechanism="additive deltas",
    tags=("starts_at_base", "exact_merge"),
)


def block_shape(out: int, inputs: int, blocks: int) -> tuple[int, int, int]:
    """(number, rows, columns) of the blocks of a weight (out, inputs): as many as it takes to cover both widths.

    >>> block_shape(8, 8, 4), block_shape(10, 100, 6)
    ((4, 2, 2), (6, 2, 17))
    """
    rows, columns = -(-out // blocks), -(-inputs // blocks)
    return max(-(-out // rows), -(-inputs // columns)), rows, columns


def block_diagonal(blocks: Tensor, out: int, inputs: int) -> Tensor:
    """blocks (N, rows, columns) -> (out, inputs), zero off the diagonal; what reaches beyond the edges is cut."""
    return torch.block_diag(*blocks)[:out, :inputs]


def block_map(x: Tensor, blocks: Tensor, out: int) -> Tensor:
    """x (..., in) -> (..., out): each block maps its own share of the inputs to its own share of the outputs."""
    number, _, columns = blocks.shape
    x = F.pad(x, (0, number * columns - x.shape[-1])).unflatten(-1, (number, columns))
    return torch.einsum("...nc,nrc->...nr", x, blocks).flatten(-2)[..., :out]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DiaBlo(Delta):
    """blocks: N, the number of blocks; a layer trains 1 / N of its weights. dropout on the input of the blocks."""

    blocks: Annotated[int, Gt(0)] = 64
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    reads_weight: ClassVar[bool] = True

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """Zero blocks."""
        return {"blocks": torch.zeros(block_shape(w.shape[0], w.shape[1], self.blocks))}

    def delta(self, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """The blocks on the diagonal."""
        return block_diagonal(p["blocks"], w.shape[0], w.shape[1])

    def forward(self, x: Tensor, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """What the blocks add to the output."""
        return block_map(x, p["blocks"], w.shape[0])
