"""LoKr: the Kronecker product of a small matrix and a larger one, which may itself be of low rank.

Paper: arXiv 2309.14859 (LyCORIS).   Formula: dW = s C kron (B A), s = alpha / r; C (o, i), B (out / o, r), A (r, in / i).
C and the other factor stay whole matrices where the rank is no saving; where both are whole, s = 1.
Takes: linear or convolution weights; channels are split, the kernel stays with the larger factor.   Gives: a delta that
merges exactly and exports as a PEFT LoRA.
Choose it when: the smallest file is wanted, or the change repeats a pattern over blocks of the weight.   Rather not when:
a few directions of the whole layer must move: that is LoRA.
Relatives: lora (one product), loha (an entrywise product), diablo (blocks that differ, on the diagonal only).

>>> split(128), split(128, 4), split(127, 4)
((8, 16), (4, 32), (1, 127))
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt, prod
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Generator, Tensor
from torch.nn import functional as F

from luthier.adapt._delta import LowRank
from luthier.adapt.lowrank._factors import uniform
from luthier.core import Card, Sites, component

CARD = Card(
    name="LoKr",
    source="arXiv 2309.14859",
    papers=(28,),
    cost="o i + r (out / o + in / i) parameters a site; two thin products beside a linear layer",
    limits=(
        "B, or the whole factor, = 0 at the start: the model is the base bit for bit",
        "rank(C kron M) = rank(C) rank(M)",
        "(C kron M) vec(X) = vec(M X C^T)",
        "factor 1: dW is LoRA's, up to the number C",
    ),
    differs=(
        "the Tucker form for convolutions is not offered: a kernel is flattened into the inputs of the larger factor, as in "
        "the authors' library by default",
        "starting values are those of the authors' library: C random, the larger factor zero; peft starts with C zero unless "
        "asked for them",
        "a factor that divides a width gives the smaller part to C, as in the authors' library; peft keeps the order",
        "where both factors are whole the scale is 1, as in the authors' library; peft keeps alpha / rank",
        "formula compared with the authors' library by reading, with peft by numbers",
    ),
    use_when="the adapter must be as small as possible, at a rank that a LoRA of that size cannot have",
    avoid_when="the change is of low rank",
    relatives=("adapt.lowrank.lora", "adapt.lowrank.loha", "adapt.sparse.diablo"),
    mechanism="additive deltas",
    tags=("starts_at_base", "exact_merge", "low_rank"),
)


def split(width: int, factor: int | None = None) -> tuple[int, int]:
    """(m, n) with m n = width and m <= n: m is `factor` or its partner if it divides, else the largest divisor below it.

    factor None: as near to the square root as possible.
    """
    if factor is not None and width % factor == 0:
        return min(factor, width // factor), max(factor, width // factor)
    top = min(isqrt(width), factor or width)
    m = next(d for d in range(top, 0, -1) if width % d == 0)
    return m, width // m


def kronecker_map(x: Tensor, c: Tensor, *chain: Tensor) -> Tensor:
    """x (..., in) -> (c kron M) x (..., out), where M = chain[-1] ... chain[0], without the Kronecker product."""
    h = x.unflatten(-1, (c.shape[1], -1))
    for m in chain:
        h = F.linear(h, m)
    return torch.einsum("...mk,lm->...lk", h, c).flatten(-2)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LoKr(LowRank):
    """rank and alpha of the larger factor. factor: size of C's sides; None: as near to the square root as possible.

    both: C is factored too, where rank is below half its larger side. whole: the larger factor is never factored.
    """

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 8.0
    factor: Annotated[int, Gt(0)] | None = None
    both: bool = False
    whole: bool = False
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
    sites: ClassVar[Sites] = Sites("*", ("linear", "conv"))

    def __post_init__(self) -> None:
        if self.both and self.whole:
            raise ValueError("both requires factors of low rank, whole forbids them. Leave one out.")

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """Parts for a plain matrix."""
        return self.start(w, g, ())

    def start(self, w: Tensor, g: Generator, kernel: tuple[int, ...]) -> dict[str, Tensor]:
        """c, or ca and cb; m (zero), or ma and mb (zero). Channels are split, not the kernel."""
        size = prod(kernel)
        (o, out), (i, inputs) = split(w.shape[0], self.factor), split(w.shape[1] // size, self.factor)
        made: dict[str, Tensor] = {}
        if self.both and self.rank < max(o, i) / 2:
            made |= {"ca": uniform(o, self.rank, g), "cb": uniform(self.rank, i, g)}
        else:
            made["c"] = uniform(o, i, g)
        if self.whole or self.rank >= max(out, inputs) / 2:
            return {**made, "m": torch.zeros(out, inputs * size)}
        return {**made, "ma": uniform(out, self.rank, g), "mb": torch.zeros(self.rank, inputs * size)}

    def scale(self, p: Mapping[str, Tensor]) -> float:
        """alpha / rank, or 1 where nothing is factored."""
        return 1.0 if "c" in p and "m" in p else self.alpha / self.rank

    def delta(self, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """s C kron M."""
        return self.scale(p) * torch.kron(_small(p), p["m"] if "m" in p else p["ma"] @ p["mb"])

    def forward(self, x: Tensor, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """The factors one after the other."""
        chain = (p["m"],) if "m" in p else (p["mb"], p["ma"])
        return self.scale(p) * kronecker_map(x, _small(p), *chain)

    def factors(self, w: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Two factors of rank min(o, i) r: an identity beside one factor of M, C beside the other."""
        c = _small(p)
        if "m" in p:
            m, wide = p["m"], p["m"].shape[0] <= p["m"].shape[1]
            unit = torch.eye(min(m.shape), dtype=m.dtype, device=m.device)
            b, a = (unit, m) if wide else (m, unit)
        else:
            b, a = p["ma"], p["mb"]
        unit = torch.eye(min(c.shape), dtype=c.dtype, device=c.device)
        left, right = (unit, c) if c.shape[0] <= c.shape[1] else (c, unit)
        return self.scale(p) * torch.kron(left, b), torch.kron(right, a)


def _small(p: Mapping[str, Tensor]) -> Tensor:
    return p["c"] if "c" in p else p["ca"] @ p["cb"]
