"""Exponential moving average: a second set of weights that follows the trained ones slowly, and is kept at the end.

Paper: arXiv 2006.11239, appendix B (decay 0.9999); the warm-up is that of 2206.00364's successors in common use.
Formula: after each step, average <- d * average + (1 - d) * weights, d = min(decay, (1 + n) / (10 + n)) at step n with warm-up.
Takes: what trains.   Gives: the handle "ema" for objectives that teach themselves by it, and the averaged weights at the end.
Choose it when: an image model trains for long, or a consistency target is wanted.   Rather not when: memory is short (one more
copy of what trains).   Relatives: soup, lcsc (averages of saved checkpoints).

>>> round(decay_at(0, 0.99, True), 2), decay_at(10_000, 0.99, True)
(0.1, 0.99)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Ge, Lt
from torch import Tensor, nn

from luthier.core import Card, Context, Hook, component

CARD = Card(
    name="EMA",
    source="arXiv 2006.11239",
    cost="one more copy of what trains, and one pass over it per step",
    limits=(
        "decay = 0: the average is the trained weights",
        "constant weights: the average equals them",
        "keep = False leaves the weights",
    ),
    use_when="an image model trains for more than a few hundred steps",
    avoid_when="memory is short",
    relatives=("merge.average.soup",),
    mechanism="weight averaging",
    tags=("stateful",),
)


def decay_at(step: int, decay: float, warmup: bool) -> float:
    """The decay at a step counted from 0."""
    return min(decay, (1 + step) / (10 + step)) if warmup else decay


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class EMA(Hook):
    """decay: share of the old average; warmup: begin with a smaller one; keep: put the average in place of the weights at the
    end."""

    decay: Annotated[float, Ge(0), Lt(1)] = 0.999
    warmup: bool = True
    keep: bool = True
    points: ClassVar[tuple[str, ...]] = ("start", "stepped", "end")
    may_idle: ClassVar[bool] = True

    @cached_property
    def _average(self) -> dict[str, Tensor]:
        return {}

    def start(self, ctx: Context) -> None:
        """Forget an earlier run."""
        self._average.clear()

    @torch.no_grad()
    def stepped(self, named: Sequence[tuple[str, nn.Parameter]], ctx: Context) -> None:
        """Move the average towards the weights."""
        d = decay_at(ctx.step, self.decay, self.warmup)
        for name, p in named:
            if name in self._average:
                self._average[name].lerp_(p.detach(), 1 - d)
            else:
                self._average[name] = p.detach().clone()
        ctx.note(len(named))

    @torch.no_grad()
    def end(self, ctx: Context) -> None:
        """Put the average in place of the weights."""
        if self.keep and ctx.attached is not None:
            for name, p in ctx.attached.named_parameters():
                p.copy_(self._average[name])
        ctx.note(len(self._average))

    def average(self, named: Sequence[tuple[str, nn.Parameter]]) -> dict[str, Tensor]:
        """The averaged tensors by name; the weights themselves before the first step."""
        return {name: self._average.get(name, p.detach()) for name, p in named}

    def state(self) -> dict[str, Any]:
        return {"average": dict(self._average)}

    def load(self, state: Mapping[str, Any]) -> None:
        self._average.clear()
        self._average.update({k: v.clone() for k, v in state["average"].items()})
