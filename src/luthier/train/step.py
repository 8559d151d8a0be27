"""One optimiser step: terms of all micro-batches, divided once by their counts over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from luthier.core.batch import Batch
from luthier.core.errors import LuthierError
from luthier.core.protocols import Context, Hook, Objective
from luthier.core.signals import Signals
from luthier.core.terms import Terms, as_terms
from luthier.train.policy import Policy

Reduce = Callable[[Tensor], Tensor]


@dataclass
class StepResult:
    """What one step gave: loss, value and count of each term, tokens seen and trained."""

    loss: float
    terms: dict[str, tuple[float, float]]
    tokens: int
    trained: int


@dataclass
class Stepper:
    """Computes gradients of one step.

    reduce: sums a tensor over ranks (identity in one process); world: number of ranks, undoing the gradient mean of
    data-parallel wrappers. backward: the accelerator's backward. no_sync: context maker for all but the last micro-batch.
    kind: under which its passes are counted.
    """

    policy: Policy
    objective: Objective
    hooks: Sequence[Hook]
    reduce: Reduce
    backward: Callable[[Tensor], None]
    no_sync: Callable[[], object]
    world: int = 1
    kind: str = "policy"

    def terms(self, batch: Batch, ctx: Context, kind: str = "") -> tuple[Terms, ...]:
        """All terms of a micro-batch: the objective's, then the hooks'."""
        s = self.policy.signals(batch, self.objective.needs.signals, kind or self.kind)
        out = as_terms(self.objective(batch, s))
        for hook in self.hooks:
            if "terms" in hook.points:
                out += as_terms(_hook_terms(hook, batch, s, ctx))
        penalty = getattr(self.policy.attached, "penalty", lambda: None)()
        if penalty is not None:
            out += (Terms("adaptation_penalty", penalty.reshape(1)),)
        if not out:
            raise LuthierError(f"{self.objective.name} requires at least one loss term; it gave none for this batch.")
        return out

    def count_pass(self, micros: Sequence[Batch], ctx: Context) -> list[list[Tensor]]:
        """Counts of each term by micro-batch, by forward passes without gradient and with the same dropout."""
        with torch.no_grad(), torch.random.fork_rng(enabled=True):
            return [[t.sums()[1] for t in self.terms(b, ctx, "count")] for b in micros]

    def __call__(
        self, micros: Sequence[Batch], ctx: Context, parameters: Sequence[nn.Parameter] | None = None
    ) -> StepResult:
        """Accumulate the gradient of one step; exact for any split into micro-batches and ranks.

        parameters: what gathers gradients, where it is not what the adaptation trains.

        One term: its division waits until all counts are known. Several terms over several micro-batches: their counts are
        found first, which costs a forward pass without gradient for all micro-batches but the first.
        """
        self.policy.held.clear()
        terms = self.terms(micros[0], ctx)
        counts = [t.sums()[1].detach() for t in terms]
        deferred = len(micros) > 1 and len(terms) == 1
        if len(micros) > 1 and not deferred:
            rest = self.count_pass(micros[1:], ctx)
            counts = [torch.stack(column).sum() for column in zip(counts, *rest, strict=True)]
        known = [self.reduce(c).clamp_min(1e-30) * (len(micros) if deferred else 1) for c in counts]
        sums: dict[str, list[Tensor]] = {}
        for at, batch in enumerate(micros):
            terms = terms if at == 0 else self.terms(batch, ctx)
            total = torch.zeros((), device=known[0].device)
            for name, term, divide in zip(_names(terms), terms, known, strict=True):
                value, count = term.sums()
                total = total + term.scale * self.world * value / divide
                zero = value.detach().new_zeros(())
                entry = sums.setdefault(name, [zero, zero, zero + term.scale])
                entry[0], entry[1] = entry[0] + value.detach(), entry[1] + count.detach()
            self._backward(total, at == len(micros) - 1)
        return self._finish(micros, sums, known[0] if deferred else None, parameters)

    def _backward(self, loss: Tensor, last: bool) -> None:
        if not loss.requires_grad:
            raise LuthierError(f"{self.objective.name} requires a loss that depends on what trains; got one that does not. "
                               "Check `adapt` and the objective's signals.")  # fmt: skip
        if last or self.world == 1:
            self.backward(loss)
        else:
            with self.no_sync():  # type: ignore[attr-defined]
                self.backward(loss)

    def _finish(self, micros: Sequence[Batch], sums: dict[str, list[Tensor]], guess: Tensor | None,
                parameters: Sequence[nn.Parameter] | None) -> StepResult:  # fmt: skip
        totals = {k: (self.reduce(v[0]), self.reduce(v[1])) for k, v in sums.items()}
        if guess is not None:
            ((_, count),) = totals.values()
            factor = guess / count.clamp_min(1e-30)
            for p in [p for _, p in self.policy.attached.named_parameters()] if parameters is None else parameters:
                if p.grad is not None:
                    p.grad.mul_(factor.to(p.grad.dtype))
        values = {k: (float(n / c.clamp_min(1e-30)), float(c)) for k, (n, c) in totals.items()}
        loss = sum(values[k][0] * float(v[2]) for k, v in sums.items())
        seen = sum(int((b.inputs["attention_mask"] != 0).sum()) for b in micros if "attention_mask" in b.inputs)
        trained = sum(int(b.inputs["loss_mask"].sum()) for b in micros if "loss_mask" in b.inputs)
        images = sum(len(b.inputs["image"]) for b in micros if "image" in b.inputs)
        seen, trained = seen + images, trained + images
        if self.world > 1:
            device = next(iter(totals.values()))[0].device
            seen, trained = self.reduce(torch.tensor([seen, trained], device=device)).tolist()
        return StepResult(loss, values, seen, trained)


def _names(terms: Sequence[Terms]) -> list[str]:
    """Names for the log, numbered where two terms have the same."""
    out: list[str] = []
    for term in terms:
        repeats = sum(name == term.name or name.startswith(f"{term.name}#") for name in out)
        out.append(term.name if not repeats else f"{term.name}#{repeats + 1}")
    return out


def _hook_terms(hook: Hook, batch: Batch, s: Signals, ctx: Context) -> tuple[Terms, ...]:
    out: tuple[Terms, ...] | Terms | None = hook.terms(batch, s, ctx)  # type: ignore[attr-defined]
    return () if out is None else as_terms(out)
