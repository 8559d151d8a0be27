"""Times of a grid, each equally often: what consistency training and table models use.

Paper: arXiv 2006.11239.   Formula: t = grid[floor(u n)] over the n times of the grid but its last, 0.
Takes: uniform numbers (B,) and a path.   Gives: times (B,).
Choose it when: the network knows whole steps only, or times must come from a grid.   Rather not when: it takes any time.
Relatives: uniform_time (the limit of many steps).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> GridTime(steps=4)(torch.tensor([0.0, 0.3, 0.99]), Flow())
tensor([1.0000, 0.7500, 0.2500])
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, NoisePath, Times, component
from luthier.diffusion.schedules._grid import make_grid

CARD = Card(
    name="times of a grid",
    source="arXiv 2006.11239",
    cost="none",
    limits=(
        "every time of the grid but 0 has the same probability",
        "on vp_table with its own steps: whole time steps",
    ),
    use_when="the network was trained on a table of steps",
    relatives=("diffusion.schedules.times.uniform_time",),
    mechanism="training times",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class GridTime(Times):
    """steps: of the grid; spacing: how they are spread."""

    steps: Annotated[int, Ge(1)] = 1000
    spacing: Literal["uniform", "karras", "log_snr"] = "uniform"

    def __call__(self, uniform: Tensor, path: NoisePath) -> Tensor:
        grid = make_grid(path, self.steps, self.spacing).to(uniform)
        return grid[(uniform * self.steps).floor().clamp(0, self.steps - 1).long()]
