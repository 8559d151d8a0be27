"""A small job with old rows at the hooks' hands."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from luthier.train.feed import RowFeed
from luthier.train.loop import Loop
from luthier.train.retain import Retained
from tests.train.parts import Everything, job, rows


class Swapping(Everything):
    """All parameters train; the start comes back by exchanging storage, so that a live graph stays whole."""

    @contextmanager
    def disabled(self):
        now = {k: p.data for k, p in self.model.named_parameters()}
        for k, p in self.model.named_parameters():
            p.data = self.first[k]
        yield
        for k, p in self.model.named_parameters():
            p.data = now[k]


def loop_with(*hooks, old=9, moved=0.0, objective=None, **how):
    """A loop whose hooks find `old` rows; moved: how far the weights are from their start."""
    made = job(objective, hooks=hooks, **how)
    made.policy.attached = Swapping(made.policy.view.module.model)
    made.handles = {"retain": Retained(made.policy, RowFeed(rows(old, seed=7), "text", ("text",), 0, 4, seed=0))}
    if moved:
        g = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for _, p in made.policy.attached.named_parameters():
                p.add_(moved * torch.randn(p.shape, generator=g, dtype=p.dtype))
    return Loop(made)


def gradients(loop, step=0):
    """(loss, gradient by name) of one step, hooks at `gradients` included."""
    loop._point("start", loop.context(step))
    result = loop.stepper(loop.job.feed.micros(step), loop.context(step))
    loop._point("gradients", loop.context(step), loop.named)
    return result.loss, {k: p.grad.clone() for k, p in loop.named}
