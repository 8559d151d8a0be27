"""Drop and grow: move the positions of a sparse change during training, and what the optimiser knows of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from luthier.adapt._sparse import SparseHandle
from luthier.core import Batch, Context, Hook
from luthier.core.errors import Refused, sentence


def exchange(value: Tensor, index: Tensor, candidate: Tensor, score: Tensor, part: float) -> tuple[Tensor, Tensor]:
    """(places (m,) in `index` that change, their new positions (m,)): int(part * k) smallest |value| go, the best come.

    value, index (k,): what is active; candidate, score (c,): distinct positions and how good they are. A dropped position
    that is among the best stays with its value; too few candidates drop fewer. Equal ones go by order.

    >>> value, index = torch.tensor([0.5, 0.0, 2.0]), torch.tensor([4, 7, 9])
    >>> exchange(value, index, torch.tensor([1, 9, 3]), torch.tensor([0.2, 9.0, 0.4]), 0.67)
    (tensor([1, 0]), tensor([3, 1]))
    """
    drop = int(part * len(value))
    out = value.abs().argsort(stable=True)[:drop]
    leaving = index[out]
    stays = torch.ones(len(index), dtype=torch.bool, device=index.device)
    stays[out] = False
    free = ~torch.isin(candidate, index[stays])
    candidate, score = candidate[free], score[free]
    best = candidate[score.argsort(descending=True, stable=True)[:drop]]
    places, new = out[~torch.isin(leaving, best)], best[~torch.isin(best, leaving)]
    return places[: len(new)], new


def sm3(row: Tensor, column: Tensor, index: Tensor, gradient: Tensor) -> None:
    """SM3's accumulators row (m,) and column (n,), in place, after gradients (k,) at flat positions (k,) of (m, n)."""
    i, j = index.long() // len(column), index.long() % len(column)
    seen = torch.minimum(row[i], column[j]) + gradient.square()
    row.scatter_reduce_(0, i, seen, "amax")
    column.scatter_reduce_(0, j, seen, "amax")


def remap(optimiser: Any, p: nn.Parameter, at: Tensor, first: Tensor | None, second: Tensor | None) -> None:
    """Give the places `at` of a parameter the optimiser state of newcomers.

    first, second: Adam's corrected moments there (m,); None: 0, and the mean of the other places. All else becomes 0.
    """
    state = optimiser.state.get(p, {})
    betas = next((g.get("betas") for g in optimiser.param_groups if any(q is p for q in g["params"])), None) or (
        0.0,
        0.0,
    )
    step = float(state.get("step", 0.0))
    others = torch.ones(len(p), dtype=torch.bool, device=p.device)
    others[at] = False
    for key, t in state.items():
        if not isinstance(t, Tensor) or t.shape != p.shape:
            continue
        made = torch.zeros(len(at), dtype=t.dtype, device=t.device)
        if key == "exp_avg" and first is not None:
            made = (first * (1 - betas[0] ** step)).to(t)
        elif key == "exp_avg_sq" and second is not None:
            made = (second * (1 - betas[1] ** step)).to(t)
        elif key == "exp_avg_sq" and bool(others.any()):
            made = made + t[others].mean()
        t[at] = made


@dataclass
class Candidates:
    """Of one weight: candidate positions, sums of their gradients and squares over steps, and this step's sums."""

    index: Tensor
    now: Tensor
    first: Tensor
    second: Tensor
    active: Tensor = field(default_factory=lambda: torch.empty(0))


class Reselect(Hook):
    """Watches gradients during selections and moves positions at their end; part of the adaptation."""

    id = "adapt.sparse.spiel.reselect"
    may_idle = True
    points = ("start", "batch", "gradients", "stepped", "end")

    def __init__(self, handle: SparseHandle, grow: str, listens: Callable[[int], bool],
                 part: Callable[[int, int], float | None]) -> None:  # fmt: skip
        """grow: "ag" or "ma". listens: whether a step belongs to a selection. part: share to drop at the end of one."""
        self.handle, self.grow, self.listens, self.part = handle, grow, listens, part
        self.seen: dict[str, Candidates] = {}
        self.sums: dict[str, tuple[Tensor, Tensor]] = {}
        self.steps = 0
        self.tapped = False

    def start(self, ctx: Context) -> None:
        """Refuse what would choose other positions in each process."""
        distributed = torch.distributed
        world = distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1
        if self.grow == "ag" and world > 1:
            raise Refused(sentence("spiel", "one process for grow: ag", str(world), "Set grow to ma"))

    def batch(self, batch: Batch, ctx: Context) -> Batch:
        """Listen to dense gradients in the steps of a selection, and only then."""
        listen = self.grow == "ag" and self.listens(ctx.step)
        if listen != self.tapped:
            taps = {name: _Tap(self, name) for name in self.handle.weights()}
            self.handle.taps(taps if listen else None)
            self.tapped = listen
        return batch

    def end(self, ctx: Context) -> None:
        """Listen no more."""
        self.handle.taps(None)
        self.tapped = False

    def listen(self, name: str, flat: Tensor, index: Tensor) -> None:
        """Add one backward pass's dense gradient (entries of the weight,) to the candidates of this selection."""
        if name not in self.seen:
            at = flat.abs().topk(len(index)).indices
            zero = torch.zeros(len(at), dtype=torch.promote_types(flat.dtype, torch.float32), device=flat.device)
            self.seen[name] = Candidates(at, zero, zero.clone(), zero.clone())
        own = self.seen[name]
        if not len(own.active):
            own.active = torch.zeros_like(own.now)
        own.now = own.now + flat[own.index]
        own.active = own.active + flat[index.long()]

    @torch.no_grad()
    def gradients(self, named: Any, ctx: Context) -> None:
        """Close this step's sums: candidates by the scale that the engine gave the step, or SM3's accumulators."""
        if self.grow == "ma":
            for name, (value, index) in self.handle.entries().items():
                if value.grad is not None:
                    shape = self.handle.weights()[name].flatten(1).shape
                    wide = value.grad.to(torch.promote_types(value.dtype, torch.float32))
                    if name not in self.sums:
                        self.sums[name] = wide.new_zeros(shape[0]), wide.new_zeros(shape[1])
                    sm3(*self.sums[name], index, wide)
            return
        scale = self._scale()
        for own in self.seen.values():
            own.first = own.first + scale * own.now
            own.second = own.second + (scale * own.now).square()
            own.now, own.active = torch.zeros_like(own.now), torch.empty(0)
        self.steps += bool(self.seen)

    def _scale(self) -> float:
        """What the engine multiplied this step's gradients by after the backward passes."""
        best = 0.0, 1.0
        for name, own in self.seen.items():
            value = self.handle.entries()[name][0]
            if len(own.active) and value.grad is not None:
                at = own.active.abs().argmax()
                raw = float(own.active[at])
                if abs(raw) > best[0]:
                    best = abs(raw), float(value.grad[at]) / raw
        return best[1]

    @torch.no_grad()
    def stepped(self, named: Any, ctx: Context) -> None:
        """At the end of a selection, drop and grow."""
        part = self.part(ctx.step, ctx.steps)
        if part is not None:
            ctx.note(sum(self._reselect(name, part, ctx.optimiser) for name in self.handle.weights()))
            self.seen, self.steps = {}, 0

    def _reselect(self, name: str, part: float, optimiser: Any) -> int:
        value, index = self.handle.entries()[name]
        first = second = None
        if self.grow == "ag":
            if name not in self.seen:
                return 0
            own = self.seen[name]
            candidate, score = own.index, own.first.abs()
        else:
            if name not in self.sums:
                return 0
            momentum = torch.outer(*self.sums[name]).flatten()
            momentum[index.long()] = -1.0
            score, candidate = momentum.topk(min(int(part * len(value)), len(momentum) - len(value)))
        at, new = exchange(value.detach(), index.long(), candidate, score, part)
        if self.grow == "ag":
            ascending, order = candidate.sort()
            found = order[torch.searchsorted(ascending, new)]
            first, second = own.first[found] / self.steps, own.second[found] / self.steps  # type: ignore[possibly-undefined]
        if len(at):
            value.data[at] = 0
            index[at] = new.to(index.dtype)
            if optimiser is not None:
                remap(optimiser, value, at, first, second)
        return len(at)

    def state(self) -> dict[str, Any]:
        """Open sums of a selection and SM3's accumulators."""
        seen = {n: [c.index, c.first, c.second] for n, c in self.seen.items()}
        return {"seen": seen, "sums": {n: list(s) for n, s in self.sums.items()}, "steps": self.steps}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore from `state`."""
        at = {n: w.device for n, w in self.handle.weights().items()}
        self.steps = int(state["steps"])
        self.sums = {n: (s[0].to(at[n]), s[1].to(at[n])) for n, s in state["sums"].items()}
        self.seen = {}
        for name, (index, first, second) in state["seen"].items():
            first = first.to(at[name])
            self.seen[name] = Candidates(index.to(at[name]), torch.zeros_like(first), first, second.to(at[name]))


@dataclass
class _Tap:
    """Hands one weight's dense gradients to the schedule."""

    hook: Reselect
    name: str

    def __call__(self, flat: Tensor, index: Tensor) -> None:
        self.hook.listen(self.name, flat.detach(), index)
