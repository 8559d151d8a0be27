"""Denoising error: how well the model predicts held-out images from noised ones, at fixed noise levels.

Paper: arXiv 2006.11239, eq. 14.
Formula: mean over test images and levels of |out - target|^2 per pixel, the same noise for every model.
Takes: test images with their conditions, a subject with a denoiser.   Gives: denoising_error.
Choose it when: likelihood-like quality on held-out images is asked for.   Rather not when: few-step models are compared: they
predict something else.   Relatives: attribute_accuracy (what is drawn in the end).

>>> DenoisingError(levels=2).levels
2
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, cast

import torch
from annotated_types import Ge

from luthier.core import Card, Measure, MeasureContext, Needs, Reading, Row, Subject, component, stream
from luthier.measure.images._image import ImageSubject, held_out, rows_of

CARD = Card(
    name="denoising error",
    source="arXiv 2006.11239",
    needs=Needs(batch=("image",)),
    cost="levels forward passes per test image",
    limits=("a network that knows the target: 0",),
    use_when="there are held-out images and a diffusion or flow model",
    avoid_when="few-step models are compared",
    relatives=("measure.images.attribute_accuracy",),
    mechanism="held-out loss",
)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class DenoisingError(Measure):
    """levels: equally spaced times; batch: images at a time."""

    levels: Annotated[int, Ge(1)] = 5
    batch: Annotated[int, Ge(1)] = 64

    def __call__(self, subject: Subject, rows: Sequence[Row], ctx: MeasureContext) -> Iterable[Reading]:
        model, x0 = cast(ImageSubject, subject), held_out(ctx, self.name).float()
        runner, raw = model.runner(), model.tokens(rows_of(rows, self.name))
        path, device = runner.path, runner.device
        noise = torch.randn(x0.shape, generator=stream(ctx.seed, "measure.denoising_error"))
        items = torch.zeros(len(x0), dtype=torch.float64)
        for k in range(self.levels):
            t = path.t_min + (path.t_max - path.t_min) * (k + 0.5) / self.levels
            for at in torch.arange(len(x0)).split(self.batch):
                times = torch.full((len(at),), t, device=device)
                a, s, da, ds = (part.to(x0.dtype).view(-1, 1, 1, 1) for part in path.level(times))
                clean, eps = x0[at].to(device), noise[at].to(device)
                out = runner(a * clean + s * eps, times, {n: v[at].to(device) for n, v in raw.items()} or None)
                target = {"x0": clean, "eps": eps, "v": a * eps - s * clean, "velocity": da * clean + ds * eps}[
                    runner.kind
                ]
                items[at] += (out - target).square().flatten(1).mean(1).double().cpu() / self.levels
        yield Reading("denoising_error", float(items.mean()), tuple(items.tolist()), -1, "", "quality")
