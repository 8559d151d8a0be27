"""Meaningful diversity: during denoising, push each sample's clean estimate away from its nearest neighbour in the batch.

Paper: arXiv 2310.16047, section 5.
Formula: x0_i <- x0_i + eta (t / T) (x0_i - x0_nn(i)) [|x0_i - x0_nn(i)| / size <= distance].
Takes: a denoiser and a batch of samples of one prompt or restoration.   Gives: a denoiser.
Choose it when: a few samples should show what is possible, not what is most likely.   Rather not when: samples must follow the
distribution.   Relatives: subset_select (afterwards, from many samples), contrastive_noise (before, on the starting noise).

>>> import torch
>>> repel(torch.tensor([[0.0], [1.0], [5.0]]), torch.tensor([0.5, 0.5, 0.5]))
tensor([[-0.5000],
        [ 1.5000],
        [ 7.0000]])
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt
from torch import Tensor

from luthier.core import Card, Denoiser, Guidance, component
from luthier.core.errors import Refused, sentence
from luthier.diffusion.guidance._groups import grouped
from luthier.diffusion.schedules._kinds import from_x0, kind_of, to_x0
from luthier.diffusion.schedules._path import Condition, Predictor, level

CARD = Card(
    name="nearest-neighbour repulsion",
    source="arXiv 2310.16047",
    papers=(333,),
    cost="all distances within a group of samples at every step",
    limits=(
        "eta = 0 or distance = 0 leaves every prediction, and so the samples, bit for bit",
        "the push is eta t / T times the difference to the nearest neighbour, in every prediction kind",
        "samples in different groups do not see each other",
        "permuting the batch permutes the result",
    ),
    differs=(
        "the push, its threshold (Euclidean distance by the number of values) and the new noise estimate were checked "
        "against the authors' sampler; there t is the time of the next step and the last step is left alone, here t is "
        "the step's own time, which no later stage can change",
        "t / T is the share of the path's time; the paper knows variance-preserving paths only",
        "distances are between clean estimates; other features are not offered",
    ),
    use_when="few samples should cover rare answers",
    avoid_when="samples must follow the distribution",
    relatives=("diffusion.guidance.subset_select", "diffusion.guidance.contrastive_noise"),
    mechanism="diversity layer",
)


def repel(x0: Tensor, step: Tensor, distance: float | None = None, group: int | None = None) -> Tensor:
    """Clean estimates (B, ...) moved by step (B,) times the difference to the nearest other of their group.

    distance: pairs farther apart than this (Euclidean, by the number of values of a row) stay; None moves all.
    """
    rows = grouped(x0, group, "nn_repulsion")
    far = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    far = far + torch.diag(torch.full((rows.shape[1],), torch.inf, dtype=far.dtype, device=far.device))
    near, index = far.min(-1)
    off = rows - rows.gather(1, index[..., None].expand_as(rows))
    close = torch.ones_like(near) if distance is None else (near / rows.shape[-1] <= distance).to(near.dtype)
    moved = rows + (step.view(near.shape).to(rows.dtype) * close)[..., None] * off
    return moved.reshape(x0.shape)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class NNRepulsion(Guidance):
    """eta: strength; distance: beyond it neighbours are far enough (None: never); group: samples that belong together, in
    order (None: the whole batch)."""

    eta: Annotated[float, Ge(0)] = 0.2
    distance: Annotated[float, Ge(0)] | None = None
    group: Annotated[int, Gt(0)] | None = None

    def guide(self, denoiser: Denoiser, handles: Mapping[str, Any]) -> Denoiser:
        path, kind = denoiser.path, kind_of(denoiser.kind)

        def guided(x: Tensor, t: Tensor, condition: Condition) -> Tensor:
            out = denoiser(x, t, condition)
            if not self.eta:
                return out
            if (self.group or len(x)) < 2:
                raise Refused(sentence("nn_repulsion", "two samples of a group", f"{len(x)} rows", "Draw more at once"))
            at = level(path, t, x)
            x0 = to_x0(x, out, at, kind)
            moved = repel(x0, self.eta * t / path.t_max, self.distance, self.group)
            same = (moved == x0).flatten(1).all(1).view(-1, *(1,) * (x.ndim - 1))
            return out.where(same, from_x0(x, moved, at, kind))

        return Predictor(guided, path, denoiser.kind)
