"""One training step on shapes alone: how many bytes live at its peak, and which forward passes it makes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

from luthier.core.batch import Batch
from luthier.core.protocols import Context
from luthier.core.terms import Terms, as_terms
from luthier.recipes.recipe import Recipe
from luthier.train.memory import PeakMemory, bytes_of, fake_mode
from luthier.train.policy import Policy


@dataclass(frozen=True)
class Walk:
    """What one step without numbers showed, in bytes.

    terms: number of loss terms. first, later: forward passes by kind of a step's first micro-batch, and of each further one.
    """

    peak: int
    weights: int
    optimiser: int
    parameters: int
    trained: int
    terms: int
    first: dict[str, int]
    later: dict[str, int]

    def forwards(self, steps: int, micros: int) -> dict[str, int]:
        """Passes of a run of so many steps, each of so many micro-batches."""
        kinds = {**self.first, **self.later}
        return {k: steps * (self.first.get(k, 0) + (micros - 1) * self.later.get(k, 0)) for k in kinds}


class _Ordinary(TorchDispatchMode):
    """What tensors without numbers cannot say is taken as the ordinary case: all hold, there is not any exception."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket
        if name in (torch.ops.aten.all, torch.ops.aten.any) and isinstance(args[0], FakeTensor) and len(args) == 1:
            return torch.tensor(name is torch.ops.aten.all)
        return func(*args, **(kwargs or {}))


Make = Callable[[], tuple[Policy, Sequence[nn.Module]]]


def walk(
    recipe: Recipe, parts: Any, make: Make, batch: Batch, several: bool, shapes_only: bool = True, fake: Any = None
) -> Walk:
    """Forward, backward and optimiser step of one micro-batch, counting live bytes.

    make: builds, of tensors without numbers, the policy and what stays in memory beside it. several: whether a step has more
    micro-batches. shapes_only: nothing at all has numbers; objectives that look at tokens, times or random numbers need these.
    fake: the mode in which models were built before, if any.
    """
    fake = fake or fake_mode()
    with fake:
        policy, beside = make()
        held = [p for m in (policy.view.module, *beside) for p in m.parameters()]
        trained = [p for _, p in policy.attached.named_parameters()]
        state, grads = _state_bytes(parts.optimiser, trained), sum(p.numel() * p.element_size() for p in trained)
        columns = {k: fake.from_tensor(v) if shapes_only or v.ndim > 2 else v for k, v in batch.columns.items()}
        inputs = {
            k: fake.from_tensor(v) if shapes_only or v.is_floating_point() else v for k, v in batch.inputs.items()
        }
        shaped = Batch(batch.kind, inputs, batch.parts, columns, batch.rows, batch.meta)
    with fake if shapes_only else _Ordinary():
        with PeakMemory() as memory:
            memory.track(held)
            base = memory.live
            terms = _terms(recipe, parts, policy, shaped)
            sum((t.scale * t.sums()[0] for t in terms), start=torch.zeros(())).backward()
        first = dict(policy.forwards)
        later = _later(recipe, parts, policy, shaped) if several and len(terms) > 1 else first
    copies = (getattr(parts.adapt[0][0], "role", "") == "choose") + any(hasattr(h, "average") for h in parts.hooks)
    kept = state + copies * grads
    peak = max(memory.peak + (grads if several else 0), base + 2 * grads) + kept
    return Walk(peak, bytes_of(held), state, sum(p.numel() for p in policy.view.module.parameters()),
                sum(p.numel() for p in trained), len(terms), first, later)  # fmt: skip


def _later(recipe: Recipe, parts: Any, policy: Policy, batch: Batch) -> dict[str, int]:
    """Passes of a micro-batch that is not the first, where its counts are found beforehand."""
    policy.forwards.clear()
    policy.held.clear()
    with torch.no_grad():
        for kind in ("count", "policy"):
            _terms(recipe, parts, policy, batch, kind)
    return dict(policy.forwards)


@dataclass(frozen=True)
class _AsNew:
    """Old rows for hooks: as many and as long as the new ones of a step, which is the most that they can be."""

    policy: Policy
    new: Batch

    def __len__(self) -> int:
        return len(self.new)

    def batch(self, rows: Sequence[int], step: int) -> Batch:
        """The new rows."""
        return self.new

    def signals(self, batch: Batch, names: Sequence[str]) -> Any:
        """Signals under the policy."""
        return self.policy.signals(batch, names, "retain")


def _terms(recipe: Recipe, parts: Any, policy: Policy, batch: Batch, kind: str = "policy") -> tuple[Terms, ...]:
    """All terms of a micro-batch, as the engine collects them."""
    handles = {**policy.handles, **({"retain": _AsNew(policy, batch)} if recipe.data.retain else {})}
    context = Context(0, 1, recipe.seed, policy.view.module, policy.attached, handles)
    with torch.autocast("cpu", torch.bfloat16, enabled=recipe.train.precision == "bf16"):
        s = policy.signals(batch, parts.objective.needs.signals, kind)
        terms = as_terms(parts.objective(batch, s))
        for hook in parts.hooks:
            if "terms" in hook.points:
                terms += as_terms(hook.terms(batch, s, context) or ())
    penalty = getattr(policy.attached, "penalty", lambda: None)()
    return terms if penalty is None else (*terms, Terms("adaptation_penalty", penalty.reshape(1)))


def _state_bytes(optimiser: Any, trained: Sequence[torch.Tensor]) -> int:
    """Bytes that the optimiser keeps per trained parameter, read from a step on one small tensor."""
    with unset_fake_temporarily():
        probe = nn.Parameter(torch.zeros(8, 8))
        probe.grad = torch.zeros(8, 8)
        made = optimiser.build([("probe.weight", probe)], 0.0)
        made.step()
        kept = sum(
            v.numel() for s in made.state.values() for v in s.values() if isinstance(v, torch.Tensor) and v.numel() > 1
        )
    return int(sum(p.numel() * p.element_size() for p in trained) * kept / 64)
