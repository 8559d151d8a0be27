"""LoHa: the entrywise product of two low-rank matrices, whose rank can be the product of theirs.

Paper: arXiv 2309.14859 (LyCORIS); the product is that of FedPara, 2108.06098.
Formula: dW = s (B1 A1) * (B2 A2) entrywise, s = alpha / r; B1, B2 (out, r), A1, A2 (r, in).
Takes: linear or convolution weights, a kernel flattened into the inputs.   Gives: a delta that merges exactly; as it
is also a product of factors of rank r^2, it exports as a PEFT LoRA of that rank.
Choose it when: the change has a high rank and the file must stay small.   Rather not when: rank is not what is short:
with the same number of parameters LoRA spends them on freer factors.
Relatives: lora (one product), lokr (a Kronecker product).

>>> b, a = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0, 3.0]])
>>> hadamard(b, a, b, a).tolist()
[[1.0, 9.0], [4.0, 36.0]]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Generator, Tensor
from torch.nn import functional as F

from luthier.adapt._delta import LowRank, thin
from luthier.core import Card, Sites, component

CARD = Card(
    name="LoHa",
    source="arXiv 2309.14859",
    papers=(28,),
    cost="2 r (in + out) parameters a site; runs as a LoRA of rank r^2, or by the full dW where that is cheaper",
    limits=(
        "B2 = 0 at the start: the model is the base bit for bit",
        "rank(dW) <= r^2, and r^2 where the factors are drawn at random and the weight is large enough",
        "B1 A1 all ones, s = 1: dW is LoRA's B2 A2",
    ),
    differs=(
        "the Tucker form for convolutions is not offered: a kernel is flattened into the inputs, as in the authors' "
        "library and in peft by default",
        "starting values are those of the authors' library (normal: B1 with deviation 0.1, A1 and A2 with 1, B2 zero); "
        "peft draws them uniformly and starts A2 at zero",
        "formula compared with the authors' library by reading, with peft by numbers",
    ),
    use_when="a high-rank change must fit into few parameters",
    avoid_when="the change is of low rank: LoRA needs half the parameters",
    relatives=("adapt.lowrank.lora", "adapt.lowrank.lokr", "adapt.lowrank.locon"),
    mechanism="additive deltas",
    tags=("starts_at_base", "exact_merge", "low_rank"),
)


def hadamard(b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> Tensor:
    """(b1 a1) * (b2 a2): b (out, r), a (r, in) -> (out, in)."""
    return (b1 @ a1) * (b2 @ a2)


def as_factors(b1: Tensor, a1: Tensor, b2: Tensor, a2: Tensor) -> tuple[Tensor, Tensor]:
    """left (out, r * r), right (r * r, in) with left @ right = (b1 a1) * (b2 a2): products of columns and of rows."""
    left = (b1[:, :, None] * b2[:, None, :]).flatten(1)
    return left, (a1[:, None, :] * a2[None, :, :]).flatten(0, 1)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LoHa(LowRank):
    """rank: of each of the two products. alpha: the change is scaled by alpha / rank."""

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 8.0
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
    sites: ClassVar[Sites] = Sites("*", ("linear", "conv"))

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """Normal factors, B2 = 0."""
        out, inputs = w.shape
        draw = {"b1": (0.1, out, self.rank), "a1": (1.0, self.rank, inputs), "a2": (1.0, self.rank, inputs)}
        made = {name: size * torch.randn(*shape, generator=g) for name, (size, *shape) in draw.items()}
        return {**made, "b2": torch.zeros(out, self.rank)}

    def factors(self, w: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Factors of rank r^2."""
        left, right = as_factors(p["b1"], p["a1"], p["b2"], p["a2"])
        return self.alpha / self.rank * left, right

    def delta(self, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """s (B1 A1) * (B2 A2)."""
        return self.alpha / self.rank * hadamard(p["b1"], p["a1"], p["b2"], p["a2"])

    def forward(self, x: Tensor, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """Through the factors while they are thin."""
        if thin(self.rank**2, p["b1"].shape[0], p["a1"].shape[1]):
            return super().forward(x, w, p)
        return F.linear(x, self.delta(w, p))
