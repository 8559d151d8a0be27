"""LoCon: LoRA for convolutions too, by a thin k x k convolution followed by a 1 x 1 one, with a rank of their own.

Paper: arXiv 2309.14859 (LyCORIS).   Formula: dW = s B A with the kernel flattened into the inputs; Tucker form: dW[o, c] =
s sum_ij B[o, i] T[i, j] A[j, c] at every place of the kernel, so that the kernel costs r^2 k^2 and not r in k^2.
Takes: linear and convolution weights.   Gives: a delta that merges exactly and exports as a PEFT LoRA, the Tucker form too.
Choose it when: an image model must learn textures and shapes, which sit in its convolutions.   Rather not when: the model
has no convolutions: this is lora then.
Relatives: lora (linear layers by default), loha, lokr (other forms for the same sites).

>>> core, a = torch.ones(2, 2, 3, 3), torch.tensor([[1.0], [2.0]])
>>> unfolded(core, a).shape, unfolded(core, a).unique().tolist()
(torch.Size([2, 9]), [3.0])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Gt, Lt
from torch import Generator, Tensor

from luthier.adapt._delta import LowRank
from luthier.adapt.lowrank._factors import scale, uniform
from luthier.core import Card, Sites, component

CARD = Card(
    name="LoCon",
    source="arXiv 2309.14859",
    papers=(28,),
    cost="a thin layer beside each site; r (out + in k^2) parameters at a convolution, r (out + in + r k^2) in Tucker form",
    limits=(
        "B = 0 at the start: the model is the base bit for bit",
        "conv_rank = rank, conv_alpha = alpha, no Tucker form: lora on the same sites",
        "rank(dW) <= r, the kernel flattened into the inputs, in Tucker form too",
    ),
    differs=(
        "1 x 1 convolutions count as linear layers, as in the authors' library",
        "the Tucker form runs as one k x k convolution with the kernel that its first two factors make: the same map",
        "dropout acts on the input of A; it is refused at grouped convolutions, where the delta acts through the weight",
        "formula compared with the authors' library by reading, with peft (which has no Tucker form for LoRA) by numbers",
    ),
    use_when="the model has convolutions that must change as well",
    avoid_when="only attention has to learn: lora with sites: attention is smaller",
    relatives=("adapt.lowrank.lora", "adapt.lowrank.loha", "adapt.lowrank.lokr"),
    mechanism="additive deltas",
    tags=("starts_at_base", "exact_merge", "low_rank", "factor_pair"),
)


def unfolded(core: Tensor, a: Tensor) -> Tensor:
    """core (r, r, *kernel), a (r, channels) -> (r, channels * places): the kernel that both make when one follows the other."""
    return torch.einsum("ijk,jc->ick", core.flatten(2), a).flatten(1)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class LoCon(LowRank):
    """rank and alpha at linear layers; conv_rank and conv_alpha at kernels larger than 1, None: the same.

    tucker: the Tucker form at these kernels. rank_stabilised: scale alpha / sqrt(r). dropout on the input of A.
    """

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 8.0
    conv_rank: Annotated[int, Gt(0)] | None = None
    conv_alpha: Annotated[float, Gt(0)] | None = None
    tucker: bool = False
    rank_stabilised: bool = False
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0
    kinds: ClassVar[tuple[str, ...]] = ("linear", "conv")
    sites: ClassVar[Sites] = Sites("*", ("linear", "conv"))

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """Parts for a plain matrix: a, and b = 0."""
        return {"a": uniform(self.rank, w.shape[1], g), "b": torch.zeros(w.shape[0], self.rank)}

    def start(self, w: Tensor, g: Generator, kernel: tuple[int, ...]) -> dict[str, Tensor]:
        """At kernels larger than 1: conv_a, perhaps core, and conv_b = 0."""
        places, r = prod(kernel), self.conv_rank or self.rank
        if places == 1:
            return self.init(w, g)
        made = {"conv_b": torch.zeros(w.shape[0], r)}
        if not self.tucker:
            return {"conv_a": uniform(r, w.shape[1], g), **made}
        core = uniform(r, r * places, g).view(r, r, *kernel)
        return {"conv_a": uniform(r, w.shape[1] // places, g), "core": core, **made}

    def factors(self, w: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(s B, A), A made of core and conv_a in Tucker form."""
        if "core" in p:
            return self._scale(p) * p["conv_b"], unfolded(p["core"], p["conv_a"])
        a, b = ("conv_a", "conv_b") if "conv_b" in p else ("a", "b")
        return self._scale(p) * p[b], p[a]

    def pair(self, p: Mapping[str, Tensor]) -> tuple[str, str, float] | None:
        """A, B and the scale; none in Tucker form."""
        if "core" in p:
            return None
        return (*(("conv_a", "conv_b") if "conv_b" in p else ("a", "b")), self._scale(p))

    def _scale(self, p: Mapping[str, Tensor]) -> float:
        if "conv_b" in p:
            return scale(self.conv_rank or self.rank, self.conv_alpha or self.alpha, self.rank_stabilised)
        return scale(self.rank, self.alpha, self.rank_stabilised)
