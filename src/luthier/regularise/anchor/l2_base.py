"""L2 pull to the starting point: weight decay towards the weights that training began with, instead of towards zero.

Paper: arXiv 1802.01483 (L2-SP).   Formula: the gradient of strength / 2 * |w - w0|^2 is added, strength * (w - w0).
Takes: gradients of what trains.   Gives: gradients with the pull; one extra copy of the trained weights is kept.
Choose it when: full fine-tuning must not drift from the base.   Rather not when: memory is short; lower the rate
instead.

>>> import torch
>>> pull(torch.tensor([3.0]), torch.tensor([1.0]), 0.5).item()
1.0
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from annotated_types import Gt
from torch import Tensor, nn

from luthier.core import Card, Context, Hook, component
from luthier.core.errors import CheckpointError, sentence

CARD = Card(
    name="L2-SP",
    source="arXiv 1802.01483",
    cost="a copy of the trained weights; no forward",
    limits=(
        "at the starting point the gradient is unchanged",
        "the added gradient is that of strength / 2 * |w - w0|^2",
    ),
    differs=(
        "all trained weights are anchored; the paper decays new layers, which have no start, to zero",
        "added to the gradient, so Adam rescales it as it does the loss's; it is not in the logged loss",
        "an adapter is anchored to its own start: for LoRA that is the base model only as far as B stays small",
    ),
    use_when="all weights train and must stay near the base model",
    avoid_when="an adapter already limits the change, or memory for a copy is missing",
    mechanism="anchor penalty",
    tags=("stateful",),
)


def pull(weight: Tensor, start: Tensor, strength: float) -> Tensor:
    """strength * (w - w0), of the weight's shape."""
    return strength * (weight - start)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class L2Base(Hook):
    """strength: factor of half the squared distance."""

    points: ClassVar[tuple[str, ...]] = ("start", "gradients")
    strength: Annotated[float, Gt(0)] = 0.01

    def start(self, ctx: Context) -> None:
        """Remember where training starts."""
        found = () if ctx.attached is None else ctx.attached.named_parameters()
        self._keep({name: p.detach().clone() for name, p in found})
        ctx.note(len(self._start))

    def gradients(self, named: Sequence[tuple[str, nn.Parameter]], ctx: Context) -> None:
        """Add the pull to every gradient."""
        if missing := [name for name, p in named if p.grad is not None and name not in self._start]:
            raise CheckpointError(sentence(self.id, "the start of every trained weight", f"none of {missing[0]}",
                                           "Start the run anew, or resume from a whole checkpoint"))  # fmt: skip
        for name, p in named:
            if p.grad is not None:
                p.grad.add_(pull(p.detach(), self._start[name].to(p.device, p.dtype), self.strength).to(p.grad.dtype))
                ctx.note(1)

    def state(self) -> dict[str, Any]:
        """The starting weights."""
        return {"start": dict(self._start)}

    def load(self, state: Mapping[str, Any]) -> None:
        """Restore the starting weights."""
        self._keep(dict(state["start"]))

    @property
    def _start(self) -> dict[str, Tensor]:
        return self.__dict__.get("_kept", {})

    def _keep(self, start: dict[str, Tensor]) -> None:
        object.__setattr__(self, "_kept", start)
