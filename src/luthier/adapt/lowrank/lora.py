"""Low-rank adaptation: W + s * B A with two thin matrices; either may stay frozen.

Paper: arXiv 2106.09685 (LoRA); 2402.16842 (asymmetry: train B only); 2312.03732 (rank-stabilised scale).
Formula: dW = s B A, s = alpha / r, or alpha / sqrt(r) when rank-stabilised; A (r, in), B (out, r).
Takes: linear, convolution or embedding weights.   Gives: factors that merge exactly and export as a PEFT checkpoint.
Choose it when: memory is short or many variants share a base.   Rather not when: there is much data and memory.
Relatives: full (no rank limit), neuroada (sparse instead of low-rank).

>>> w, g = torch.zeros(3, 4), torch.Generator().manual_seed(0)
>>> lora = LoRA(rank=2, mode="b_only"); p = lora.init(w, g)
>>> lora.delta(w, p).abs().max().item(), torch.allclose(p["a"] @ p["a"].T, torch.eye(2), atol=1e-6)
(0.0, True)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Generator, Tensor

from luthier.adapt._delta import LowRank
from luthier.adapt.lowrank._factors import orthonormal, scale, uniform
from luthier.core import Card, component
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="LoRA",
    source="arXiv 2106.09685 and 2402.16842 (frozen A or B), 2312.03732 (rank-stabilised scale)",
    papers=(117,),
    equations=("2106.09685 eq. 3",),
    cost="one thin forward and backward beside each site; r (in + out) parameters a site, r out when A is frozen",
    limits=(
        "B = 0 at the start: the model is the base bit for bit",
        "b_only with squared loss: the optimal B is the least-squares solution on the features A x",
        "rank >= min(in, out), mode both: any dW can be reached",
    ),
    differs=(
        "a_only and b_only freeze a matrix with orthonormal rows (A) or columns (B); 2402.16842 also starts from "
        "singular vectors of W, which is another initialisation and not offered here",
        "a frozen uniform matrix is drawn with bound 1 / sqrt(fan in), as the trained A is",
        "dropout acts on the input of A where the delta is added to the output; it is refused where it cannot act",
    ),
    use_when="memory is short, or many variants share one base; b_only halves the trained parameters at the same rank",
    avoid_when="data and memory allow full fine-tuning",
    relatives=("adapt.full", "adapt.sparse.neuroada", "adapt.peft"),
    mechanism="additive deltas",
    tags=("starts_at_base", "exact_merge", "low_rank", "factor_pair"),
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LoRA(LowRank):
    """rank and alpha as in the paper; rank_stabilised: scale alpha / sqrt(r); dropout on the input of A.

    mode: which factors train. frozen: how the factor that does not train is drawn, for modes b_only and a_only.
    """

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    rank_stabilised: bool = False
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    mode: Literal["both", "b_only", "a_only"] = "both"
    frozen: Literal["orthonormal", "uniform"] = "orthonormal"

    def __post_init__(self) -> None:
        if self.mode == "both" and self.frozen != "orthonormal":
            raise ValueError("frozen requires mode b_only or a_only; in mode both nothing is frozen. Leave it out.")

    @property
    def trainable(self) -> tuple[str, ...]:
        """Parts that train."""
        return {"both": ("a", "b"), "b_only": ("b",), "a_only": ("a",)}[self.mode]

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """A random and B = 0; in mode a_only B random and A = 0."""
        out, inputs = w.shape
        draw = uniform if self.mode == "both" or self.frozen == "uniform" else orthonormal
        width = out if self.mode == "a_only" else inputs
        if draw is orthonormal and self.rank > width:
            required = f"rank <= {width} at a weight {out} x {inputs}"
            do = "Lower the rank, or set frozen to uniform"
            raise Refused(sentence("lora with an orthonormal frozen factor", required, f"rank {self.rank}", do))
        if self.mode == "a_only":
            b = orthonormal(self.rank, out, g).T if draw is orthonormal else uniform(out, self.rank, g)
            return {"a": torch.zeros(self.rank, inputs, dtype=w.dtype), "b": b.to(w.dtype).contiguous()}
        return {"a": draw(self.rank, inputs, g).to(w.dtype), "b": torch.zeros(out, self.rank, dtype=w.dtype)}

    def factors(self, w: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(s B, A)."""
        return scale(self.rank, self.alpha, self.rank_stabilised) * p["b"], p["a"]

    def pair(self, p: Mapping[str, Tensor]) -> tuple[str, str, float]:
        """A, B and the scale."""
        return "a", "b", scale(self.rank, self.alpha, self.rank_stabilised)
