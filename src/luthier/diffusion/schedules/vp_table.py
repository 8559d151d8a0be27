"""Variance-preserving path of a model that was trained on a table of noise levels, as diffusers' schedulers hold it.

Paper: arXiv 2006.11239, section 2 (betas), arXiv 2305.08891, algorithm 1 (zero_snr).
Formula: alpha_k^2 = prod over j <= k of (1 - beta_j); time t = (k + 1) / T for step k = 0 .. T - 1, and t = 0 is clean;
between two steps the angle atan(sigma / alpha) is linear in t.
Takes: times in [0, 1].   Gives: alpha, sigma, their derivatives, and network_time = T t - 1.
Choose it when: a model of diffusers (Stable Diffusion, DDPM) is tuned or sampled.   Rather not when: the model is of the flow
family.   Relatives: vp (continuous).

>>> import torch
>>> table = VPTable(); round(float(table.level(torch.tensor(1.0)).alpha ** 2), 7), float(table.network_time(torch.tensor(1.0)))
(4.04e-05, 999.0)
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from luthier.core import Card, Level, NoisePath, component
from luthier.diffusion.schedules._path import wide

CARD = Card(
    name="variance-preserving path by a table",
    source="arXiv 2006.11239",
    cost="one look-up",
    limits=(
        "at t = (k + 1) / T: alpha^2 is the product of 1 - beta up to step k",
        "alpha^2 + sigma^2 = 1 at every time",
        "zero_snr: alpha = 0 at t = 1, and step 0 keeps its level",
    ),
    differs=(
        "times between two steps are interpolated by angle; diffusers interpolates sigma / alpha or its logarithm",
    ),
    use_when="the model comes from diffusers with a table of betas",
    relatives=("diffusion.schedules.vp",),
    mechanism="noise path",
)


def beta_table(schedule: str, steps: int, beta_start: float, beta_end: float) -> Tensor:
    """Betas (steps,) in float64: "linear", "scaled_linear" (linear in sqrt beta) or "squaredcos_cap_v2" (cosine, capped)."""
    match schedule:
        case "linear":
            return torch.linspace(beta_start, beta_end, steps, dtype=torch.float64)
        case "scaled_linear":
            return torch.linspace(beta_start**0.5, beta_end**0.5, steps, dtype=torch.float64).square()
        case "squaredcos_cap_v2":
            at = torch.arange(steps + 1, dtype=torch.float64) / steps
            bar = torch.cos((at + 0.008) / 1.008 * math.pi / 2).square()
            return (1 - bar[1:] / bar[:-1]).clamp_max(0.999)
        case other:
            raise ValueError(f"vp_table requires linear, scaled_linear or squaredcos_cap_v2; got {other!r}")


def zero_terminal(alpha: Tensor) -> Tensor:
    """Alphas (T,) moved and stretched so that the last is 0 and the first stays. arXiv 2305.08891, algorithm 1."""
    return (alpha - alpha[-1]) * alpha[0] / (alpha[0] - alpha[-1])


@functools.lru_cache(maxsize=32)
def _angles(table: VPTable) -> Tensor:
    betas = torch.tensor(table.betas, dtype=torch.float64) if table.betas else beta_table(
        table.schedule, table.steps, table.beta_start, table.beta_end)  # fmt: skip
    alpha = (1 - betas).cumprod(0).sqrt()
    alpha = zero_terminal(alpha) if table.zero_snr else alpha
    return torch.cat((alpha.new_zeros(1), torch.atan2((1 - alpha.square()).sqrt(), alpha)))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class VPTable(NoisePath):
    """schedule, steps, beta_start, beta_end: the table, as diffusers names it; betas: the table itself instead; zero_snr: move
    it so that the last level is pure noise."""

    schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2"] = "linear"
    steps: Annotated[int, Ge(2)] = 1000
    beta_start: Annotated[float, Gt(0), Lt(1)] = 1e-4
    beta_end: Annotated[float, Gt(0), Lt(1)] = 0.02
    betas: tuple[float, ...] | None = None
    zero_snr: bool = False

    def __post_init__(self) -> None:
        if self.betas is not None and (len(self.betas) != self.steps or not all(0 < b <= 1 for b in self.betas)):
            raise ValueError(
                f"vp_table requires as many betas in (0, 1] as steps ({self.steps}); got {len(self.betas)}"
            )

    @property
    def t_min(self) -> float:  # type: ignore[override]
        """The time of step 0."""
        return 1 / self.steps

    @property
    def t_max(self) -> float:  # type: ignore[override]
        """The time of the last step."""
        return 1.0

    def level(self, t: Tensor) -> Level:
        t = wide(t)
        angles = _angles(self).to(t)
        place = t * self.steps
        below = place.detach().floor().clamp(0, self.steps - 1).long()
        rise = angles[below + 1] - angles[below]
        angle = angles[below] + (place - below) * rise
        end = angle >= math.pi / 2
        alpha, sigma, pace = angle.cos().masked_fill(end, 0.0), angle.sin(), rise * self.steps
        return Level(alpha, sigma, -sigma * pace, alpha * pace)

    def time_of(self, log_snr: Tensor) -> Tensor:
        angle = torch.atan(torch.exp(-wide(log_snr) / 2))
        angles = _angles(self).to(angle)
        below = (torch.searchsorted(angles, angle.contiguous()) - 1).clamp(0, self.steps - 1)
        inside = (angle - angles[below]) / (angles[below + 1] - angles[below])
        return ((below + inside) / self.steps).clamp(0, 1)

    def network_time(self, t: Tensor) -> Tensor:
        """The step number T t - 1, whole where t is a step's time up to rounding."""
        place = t * self.steps - 1
        return torch.where((place - place.round()).abs() < 1e-3, place.round(), place)

    def index_time(self, index: Tensor) -> Tensor:
        """The time of step numbers k, of any shape: (k + 1) / T."""
        return (index + 1) / self.steps
