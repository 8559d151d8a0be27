"""Multistep consistency sampling: jump to clean data, add all noise afresh, repeat.

Paper: arXiv 2303.01469, algorithm 1; arXiv 2310.04378 (latent consistency models).
Formula: x_s = alpha_s x0 + sigma_s z.
Takes: one evaluation a step, noise.   Gives: x at the next time.
Choose it when: the model was trained to jump to clean data, in 1 to 4 steps.   Rather not when: detail must grow with the number of
steps; tcd keeps part of the noise.   Relatives: tcd (gamma < 1), ddim (keeps the estimated noise).

>>> import torch
>>> from luthier.diffusion.schedules.flow import Flow
>>> move = Consistency().move(Flow(), torch.tensor(1.0), torch.tensor(0.25)); float(move.keep), float(move.clean), float(move.noise)
(0.0, 0.75, 0.25)
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from luthier.core import Card, NoisePath, component
from luthier.diffusion.samplers._affine import Affine, Move, keeping, levels, zero

CARD = Card(
    name="multistep consistency sampling",
    source="arXiv 2303.01469",
    equations=("algorithm 1",),
    cost="one evaluation a step, and noise",
    limits=(
        "tcd with gamma = 1",
        "one step gives the clean estimate",
        "x at the next time depends on x only through x0",
    ),
    differs=(
        "the noise of a step is that of the path at its time; the paper subtracts the square of its least time, which is "
        "the same where t_min is small",
        "the boundary condition (c_skip, c_out) belongs to the consistency function, not to the sampler",
    ),
    use_when="a consistency model is sampled in a few steps",
    avoid_when="the model is a plain denoiser: its estimates are blurred averages",
    relatives=("diffusion.samplers.tcd", "diffusion.samplers.ddim"),
    mechanism="affine step",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Consistency(Affine):
    """Has no parameters."""

    def move(self, path: NoisePath, t: Tensor, s: Tensor) -> Move:
        at, to = levels(path, t, s)
        return keeping(at, to, zero(to))
