"""Classifier-free guidance: exaggerate what the condition changes, where it helps.

Paper: arXiv 2207.12598, eq. 6; arXiv 2305.08891, eq. 15-16 (rescale); arXiv 2404.07724 (interval).
Formula: out = none + scale (conditional - none); rescaled: out std(conditional) / std(out), mixed in by `rescale`.
Takes: a denoiser with and without condition.   Gives: a denoiser.
Choose it when: samples should follow their condition more closely.   Rather not when: diversity counts; lower the scale or narrow the
interval.   Relatives: rlg, reward_guidance (the same mix of other pairs).

>>> import torch
>>> cfg(torch.zeros(1, 2), torch.tensor([[1.0, 2.0]]), 3.0)
tensor([[3., 6.]])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Le
from torch import Tensor

from luthier.core import Card, Denoiser, Guidance, component
from luthier.diffusion.schedules._path import Condition, Predictor, like, noise_share

CARD = Card(
    name="classifier-free guidance",
    source="arXiv 2207.12598",
    equations=("6",),
    cost="two evaluations instead of one inside the interval",
    limits=(
        "scale = 1 is the conditional prediction and scale = 0 the unconditional one, bit for bit",
        "outside the interval it is the conditional prediction, bit for bit, at one evaluation if no row is inside",
        "rescale = 1: every sample has the deviation of its conditional prediction",
        "the mix is the same in every prediction kind (rescale = 0)",
    ),
    differs=(
        "scale 1 is no guidance, as in diffusers; the paper's w is scale - 1",
        "the interval is in sigma / (alpha + sigma), so that it means the same on every path; the paper's is in sigma",
    ),
    use_when="samples should follow their condition more closely",
    avoid_when="diversity counts more than fidelity",
    relatives=("diffusion.guidance.rlg", "diffusion.guidance.reward_guidance"),
    mechanism="guidance",
)


def cfg(unconditional: Tensor, conditional: Tensor, scale: float | Tensor, rescale: float = 0.0) -> Tensor:
    """Guided predictions (B, ...) from two of them; scale a number or ready to multiply."""
    out = unconditional + scale * (conditional - unconditional)
    if not rescale:
        return out
    axes = tuple(range(1, out.ndim))
    level = conditional.std(axes, keepdim=True) / out.std(axes, keepdim=True)
    return out * (rescale * level + 1 - rescale)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class CFG(Guidance):
    """scale: 1 is none; rescale: how far deviations go back to those of the conditional prediction; low, high: the interval of
    sigma / (alpha + sigma) in which it acts."""

    scale: Annotated[float, Ge(0)] = 4.0
    rescale: Annotated[float, Ge(0), Le(1)] = 0.0
    low: Annotated[float, Ge(0), Le(1)] = 0.0
    high: Annotated[float, Ge(0), Le(1)] = 1.0

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError(f"cfg requires low <= high; got {self.low} and {self.high}")

    def guide(self, denoiser: Denoiser, handles: Mapping[str, Any]) -> Denoiser:
        def guided(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            share = noise_share(denoiser.path, t)
            inside = (share >= self.low) & (share <= self.high)
            if condition is None or self.scale == 1 or not bool(inside.any()):
                return denoiser(x, t, condition)
            none = denoiser(x, t, None)
            if self.scale == 0 and bool(inside.all()):
                return none
            conditional = denoiser(x, t, condition)
            mixed = cfg(none, conditional, self.scale, self.rescale) if self.scale else none
            return mixed.where(like(inside, x).bool(), conditional)

        return Predictor(guided, denoiser.path, denoiser.kind)
