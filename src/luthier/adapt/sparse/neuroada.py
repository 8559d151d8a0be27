"""NeuroAda: every output neuron trains k of its input weights, added on top of the frozen ones.

Paper: arXiv 2510.18940.   Formula: y_i = sum_j W_ij x_j + sum_{j in S_i} d_ij x_j, S_i the k largest |W_ij|.
Takes: linear weights.   Gives: values and indices of shape (out, k), merged exactly by scatter.
Choose it when: few parameters must reach every neuron.   Rather not when: the layer's change is of low rank.
Relatives: lora (low-rank instead of sparse), half_finetune (whole tensors instead of single weights).

>>> w = torch.tensor([[1.0, -3.0, 2.0]])
>>> choose_rows(w, 2, "magnitude", torch.Generator()).tolist()
[[1, 2]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Generator, Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from luthier.adapt._delta import Delta
from luthier.core import Card, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="NeuroAda",
    source="arXiv 2510.18940",
    papers=(250,),
    cost="a sum of k inputs for each output beside the layer; k out trained values a site and their 4-byte indices; no dense mask",
    limits=(
        "zero values at the start: the model is the base bit for bit",
        "the gradient of a value is the dense weight gradient at its index",
        "k = in: full fine-tuning of the weight under SGD or Adam without weight decay",
        "exactly k entries of each row can change",
    ),
    differs=(
        "choice by gradient, an ablation of the paper, is not offered: it needs a pass over data before attaching",
        "k above the width of a layer is refused; the released code lowers it silently",
    ),
    use_when="a very small budget must reach every neuron, and the merged weights must stay sparse changes",
    avoid_when="k is a large share of the layer's width: train the layer in full",
    relatives=("adapt.lowrank.lora", "adapt.sparse.half_finetune"),
    mechanism="sparse updates",
    tags=("starts_at_base", "exact_merge"),
)


def choose_rows(w: Tensor, k: int, how: str, g: Generator) -> Tensor:
    """Input indices (out, k), ascending in each row: of the largest or smallest |w|, or drawn without replacement.

    Equal magnitudes go to the smaller index.
    """
    if how == "random":
        score = torch.rand(w.shape, generator=g).to(w.device)
    else:
        score = w.abs() if how == "reverse" else -w.abs()
    return score.argsort(dim=1, stable=True)[:, :k].sort(dim=1).values


def dense(value: Tensor, index: Tensor, width: int) -> Tensor:
    """value, index (out, k) -> (out, width), zero elsewhere. Indices of a row are distinct."""
    return value.new_zeros(value.shape[0], width).scatter(1, index.long(), value)


def _bags(x: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """Each output sums the k inputs that it reads: bags of rows of the transposed input."""
    table = x.reshape(-1, x.shape[-1]).t().contiguous()
    sums = F.embedding_bag(index, table, per_sample_weights=value.to(x.dtype), mode="sum")
    return sums.t().reshape(*x.shape[:-1], len(index))


class _RowSparse(torch.autograd.Function):
    """As `_bags`, keeping only x, value and index for the backward pass: sites that read one x share it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, value: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(x, value, index)
        return _bags(x, value, index)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        x, value, index = ctx.saved_tensors
        with torch.enable_grad():
            inputs = [t.detach().requires_grad_(n) for t, n in zip((x, value), ctx.needs_input_grad, strict=False)]
            out = _bags(*inputs, index)
        found = iter(torch.autograd.grad(out, [t for t in inputs if t.requires_grad], grads))
        return (*(next(found) if t.requires_grad else None for t in inputs), None)


def row_sparse(x: Tensor, value: Tensor, index: Tensor) -> Tensor:
    """Output (..., out) that a row-sparse matrix adds: x (..., in), value and index (out, k).

    Never builds the dense matrix, unless k is more than a quarter of the width, where the dense product is cheaper.
    """
    if 4 * value.shape[1] > x.shape[-1]:
        return F.linear(x, dense(value, index, x.shape[-1]))
    return _RowSparse.apply(x, value, index)  # type: ignore[no-any-return]


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class NeuroAda(Delta):
    """k: weights that each output neuron trains. choose: by largest magnitude (the method), smallest, or at random."""

    k: Annotated[int, Gt(0)] = 1
    choose: Literal["magnitude", "reverse", "random"] = "magnitude"
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    reads_weight: ClassVar[bool] = False

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """Zero values and their indices, 32 bits each (data-parallel backends move no 16-bit integers)."""
        if self.k > w.shape[1]:
            required = f"k <= {w.shape[1]} at a weight {w.shape[0]} x {w.shape[1]}"
            raise Refused(sentence("neuroada", required, f"k = {self.k}", "Lower k or leave this site out"))
        index = choose_rows(w, self.k, self.choose, g)
        return {"value": torch.zeros(w.shape[0], self.k), "index": index.int()}

    def delta(self, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """The values scattered to their indices."""
        return dense(p["value"], p["index"], w.shape[1])

    def forward(self, x: Tensor, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """What the values add to the output."""
        return row_sparse(x, p["value"], p["index"])
