"""A low-rank change of a denoiser whose rank falls with the noise, because at high noise a single image is memorised first.

Paper: arXiv 2507.05964, eq. 3 (rank by time) and 5 (orthogonal start).
Formula: dW(t) = P diag(l m_t) Q - P0 diag(l0 m_t) Q0, m_t keeps the first r(t) = floor((1 - t)^power (rank - least)) + least of `rank`
components, t the share of the noise path; P0, l0, Q0 are singular triplets of a random matrix.
Takes: linear weights of a denoiser.   Gives: an adapter that follows the time of each image; it never becomes plain weights.
Choose it when: one or a few images of a subject are learned.   Rather not when: there are many images (lora), or the network is no
denoiser.   Relatives: lora, dco (a loss for the same job).

>>> import torch
>>> active(torch.tensor([0.0, 0.5, 1.0]), 8, 2, 1.0).tolist()
[8, 5, 2]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Gt
from torch import Generator, Tensor
from torch.nn import functional as F

from luthier.adapt._delta import Delta
from luthier.core import Card, Needs, component
from luthier.core.errors import ConfigError, Refused, sentence
from luthier.core.moment import moment
from luthier.core.protocols import NEVER, Merge

CARD = Card(
    name="T-LoRA",
    source="arXiv 2507.05964",
    papers=(73,),
    equations=("3", "5"),
    needs=Needs(batch=("image", "image_preference", "image_prompts")),
    cost="two thin products beside each site, and one frozen copy of the factors",
    limits=(
        "at the start dW(t) = 0 for every t, bit for bit",
        "components above r(t) get no gradient at t",
        "r(0) = rank and r(1) = least",
        "P has orthonormal columns and Q orthonormal rows at the start",
    ),
    differs=(
        "rank by time and masking were checked against the authors' code; there P, Q and l are taken from different ends of the full "
        "decomposition of a random matrix, here they are triplets that belong together",
        "a weight thinner than rank has as many components as it can; the authors' code refuses it",
        "every image of a batch has its own rank; the authors' code trains one image at a time",
        "time is the share of the noise path instead of the network's step number over 1000; outside a denoiser's pass (a caption "
        "encoded on its own) all components are active",
        "a network that recomputes its own blocks in the backward pass would find no time there; recompute around the whole network",
    ),
    use_when="one or a few images of a subject are learned",
    avoid_when="there are many images",
    relatives=("adapt.lowrank.lora", "diffusion.personalise.dco"),
    mechanism="additive deltas",
    tags=("starts_at_base",),
)


def active(share: Tensor, rank: int, least: int, power: float) -> Tensor:
    """How many components are active, of the shape of the shares of the noise path in [0, 1]."""
    return ((1 - share.clamp(0, 1)) ** power * (rank - least) + 1e-6).floor().long() + least


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class TLoRA(Delta):
    """rank, least: active components on clean images and on noise; power: how fast they fall; triplets: which of the random matrix."""

    rank: Annotated[int, Gt(0)] = 8
    least: Annotated[int, Gt(0)] = 4
    power: Annotated[float, Gt(0)] = 1.0
    triplets: Literal["last", "first"] = "last"
    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    reads_weight: ClassVar[bool] = False
    merge: ClassVar[Merge] = NEVER("its rank depends on the noise level")

    def __post_init__(self) -> None:
        if self.least > self.rank:
            raise ConfigError(sentence("tlora", "least <= rank", f"{self.least} and {self.rank}", "Lower least"))

    @property
    def trainable(self) -> tuple[str, ...]:
        """Parts that train."""
        return "p", "l", "q"

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """Singular triplets of a random matrix of deviation 1 / rank, and a frozen copy."""
        out, inputs = w.shape
        rank = min(self.rank, out, inputs)
        left, values, right = torch.linalg.svd(torch.randn(out, inputs, generator=g) / self.rank, full_matrices=False)
        at = slice(-rank, None) if self.triplets == "last" else slice(rank)
        made = {"p": left[:, at], "l": values[at], "q": right[at]}
        made |= {f"{k}0": v.clone() for k, v in made.items()}
        return {k: v.to(w.dtype).contiguous() for k, v in made.items()}

    def delta(self, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """dW with all components active, (out, in)."""
        return (p["p"] * p["l"]) @ p["q"] - (p["p0"] * p["l0"]) @ p["q0"]

    def forward(self, x: Tensor, w: Tensor, p: Mapping[str, Tensor]) -> Tensor:
        """x (..., in) -> (..., out), each row at its own rank."""
        kept = self.mask(x, len(p["l"]))
        return F.linear(F.linear(x, p["q"]) * (p["l"] * kept), p["p"]) - F.linear(
            F.linear(x, p["q0"]) * (p["l0"] * kept), p["p0"]
        )

    def mask(self, x: Tensor, rank: int) -> Tensor:
        """1 for active components, ready to multiply (B, ..., rank). Raises Refused where rows of x are no rows of the batch."""
        share = moment()
        if share is None:
            return torch.ones(rank, dtype=x.dtype, device=x.device)
        if len(share) != x.shape[0]:
            came = f"{x.shape[0]} rows for {len(share)} images"
            raise Refused(sentence("tlora", "a site that keeps one row for each image", came, "Leave the site out"))
        count = active(share.to(x.device), self.rank, self.least, self.power)
        kept = torch.arange(rank, device=x.device) < count[:, None]
        return kept.to(x.dtype).view(len(share), *(1,) * (x.ndim - 2), rank)
