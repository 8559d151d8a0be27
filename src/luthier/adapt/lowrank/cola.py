"""Chain of LoRA: train a low-rank update, keep it, start a fresh one on top, and so on, so that the sum has a higher rank.

Paper: arXiv 2401.04151 (COLA).   Formula: dW = s (B_1 A_1 + ... + B_n A_n); link k trains A_k, B_k on the weights that the
links before it left, from B_k = 0 and a random A_k, with fresh optimiser state.
Takes: linear, convolution or embedding weights.   Gives: an update of rank up to n r that merges exactly and exports as LoRA.
Choose it when: rank r is too low and optimiser state for rank n r too much.   Rather not when: lora of rank n r fits.
Relatives: lora (one link), full (no rank limit).

>>> [Cola(links=4).ends(step, steps=10) for step in range(10)]
[None, None, 0, None, None, 1, None, None, 2, None]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Generator, Tensor

from luthier.adapt._delta import DeltaHandle, LowRank
from luthier.adapt._surgery import parts
from luthier.adapt.lowrank._factors import uniform
from luthier.core import Card, Context, Hook, component, stream
from luthier.core.errors import Refused, sentence

CARD = Card(
    name="COLA",
    source="arXiv 2401.04151",
    papers=(52,),
    cost="optimiser state and gradients of rank r; memory and forward pass of n r factors, of which r train",
    limits=(
        "B = 0 at the start: the model is the base bit for bit",
        "keeping a link and starting the next leaves the output unchanged to rounding",
        "links = 1: LoRA of the same rank",
        "the rank of the whole change is at most links * rank, and can exceed rank",
    ),
    differs=(
        "finished links are kept as frozen factors beside the weight instead of being added into it: the sum is the same, the base "
        "stays as it was for references and for detaching, at the price of a forward pass of rank links * rank",
        "all links have equally many steps and one rank; the paper also tries ranks that fall",
        "the learning-rate schedule is that of the recipe and goes on over the links; only the optimiser's state starts anew",
        "written from the abstract and summaries of the paper; no code of the authors was found to compare with",
    ),
    use_when="the optimiser's state limits the rank, and the task needs more of it",
    avoid_when="lora of rank links * rank fits in memory, or links would be a few steps long",
    relatives=("adapt.lowrank.lora", "adapt.full"),
    mechanism="additive deltas",
    tags=("starts_at_base", "exact_merge", "low_rank"),
)


def kept(p: Mapping[str, Tensor], link: int) -> dict[str, Tensor]:
    """`kept_a` and `kept_b` after link `link` (from 0) was put into its place among the finished ones."""
    a, b, r = p["kept_a"].clone(), p["kept_b"].clone(), len(p["a"])
    a[link * r : (link + 1) * r], b[:, link * r : (link + 1) * r] = p["a"], p["b"]
    return {"kept_a": a, "kept_b": b}


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Cola(LowRank):
    """rank: of each link. alpha, dropout: as in lora. links: how many, of equal length in steps."""

    rank: Annotated[int, Gt(0)] = 8
    alpha: Annotated[float, Gt(0)] = 16.0
    links: Annotated[int, Ge(1)] = 3
    dropout: Annotated[float, Ge(0), Lt(1)] = 0.0

    @property
    def trainable(self) -> tuple[str, ...]:
        """The factors of the present link."""
        return ("a", "b")

    def init(self, w: Tensor, g: Generator) -> dict[str, Tensor]:
        """A of the first link random; B and room for the finished links 0."""
        (out, inputs), room = w.shape, (self.links - 1) * self.rank
        made = {"a": uniform(self.rank, inputs, g), "b": torch.zeros(out, self.rank)}
        return made | ({"kept_a": torch.zeros(room, inputs), "kept_b": torch.zeros(out, room)} if room else {})

    def factors(self, w: Tensor, p: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """s (B_1 ... B_n) and the A_k under each other."""
        s = self.alpha / self.rank
        if "kept_a" not in p:
            return s * p["b"], p["a"]
        return s * torch.cat([p["b"], p["kept_b"]], 1), torch.cat([p["a"], p["kept_a"]])

    def ends(self, step: int, steps: int) -> int | None:
        """The link (from 0) that is finished and followed by another after step `step` (from 0) of `steps`, or None."""
        length = -(-steps // self.links)
        done = step + 1
        return done // length - 1 if done % length == 0 and done < steps else None

    def schedule(self, handle: DeltaHandle) -> tuple[Hook, ...]:
        """The hook that goes on to the next link."""
        return (NextLink(self, handle),) if self.links > 1 else ()


class NextLink(Hook):
    """Keeps a finished link and starts the next; part of the adaptation. What it changes is in the adaptation's state."""

    id = "adapt.lowrank.cola.next_link"
    may_idle = True
    points = ("start", "stepped")

    def __init__(self, cola: Cola, handle: DeltaHandle) -> None:
        self.cola, self.handle = cola, handle

    def start(self, ctx: Context) -> None:
        """Refuse runs with fewer steps than links, and sharded factors."""
        if ctx.steps < self.cola.links:
            required = f"at least as many steps as links = {self.cola.links}"
            raise Refused(sentence("cola", required, f"{ctx.steps} steps", "Lower links"))
        if any(hasattr(t, "full_tensor") for _, t in self.handle.tensors()):
            raise Refused(sentence("cola", "factors that are whole on each process", "sharded ones", "Do not shard"))

    @torch.no_grad()
    def stepped(self, named: Any, ctx: Context) -> None:
        """At the end of a link: keep its factors, draw A anew, set B to 0 and forget the optimiser's state of both."""
        link = self.cola.ends(ctx.step, ctx.steps)
        if link is None:
            return
        for site, module in self.handle.modules.items():
            p: Any = parts(module)
            rank, inputs = p["a"].shape
            for name, t in kept(p, link).items():
                p[name].copy_(t)
            p["a"].copy_(uniform(rank, inputs, stream(ctx.seed, f"{self.cola.id}.{site}", ctx.step)))
            p["b"].zero_()
            if ctx.optimiser is not None:
                for name in self.cola.trainable:
                    ctx.optimiser.state.pop(p[name], None)
        ctx.note(len(self.handle.modules))
