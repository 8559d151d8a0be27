"""What a merge rule sees: the base's tensor, the models' deltas made on access, and, before the first tensor, the whole
plan."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor

from luthier.core.errors import Refused, sentence
from luthier.core.protocols import MergeRule
from luthier.core.sites import Site


@dataclass(frozen=True)
class Given:
    """One model at one site: its own weights (`full`), or what it adds to the base's; read when asked."""

    read: Callable[[], Tensor]
    full: bool = True

    def weights(self, base: Tensor) -> Tensor:
        """The model's weights; exactly those stored where it is full."""
        return self.read() if self.full else base + self.read()

    def delta(self, base: Tensor) -> Tensor:
        """The model's weights minus the base's; exactly what was stored where it is not full."""
        return self.read() - base if self.full else self.read()


class Deltas(Sequence[Tensor]):
    """Deltas of several models, in the recipe's order, each made anew on access so that one is in memory at a time.

    `weights(i)` gives model i itself: rules that average take it, because base + (model - base) is rounded.
    """

    def __init__(self, base: Tensor, models: Sequence[Given]) -> None:
        self.base, self._models = base, tuple(models)

    def __len__(self) -> int:
        return len(self._models)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Tensor]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return Deltas(self.base, self._models[index])
        return self._models[index].delta(self.base)

    def weights(self, index: int) -> Tensor:
        """Weights of model `index` at this site."""
        return self._models[index].weights(self.base)

    def whole(self, index: int) -> bool:
        """Whether model `index` gives weights of its own here; an adapter gives what it adds to the base."""
        return self._models[index].full


def weights_of(base: Tensor, deltas: Sequence[Tensor]) -> Iterator[Tensor]:
    """The models' weights one after another: exact from `Deltas`, else base + delta."""
    for i in range(len(deltas)):
        yield deltas.weights(i) if isinstance(deltas, Deltas) else base + deltas[i]


def wide(*dtypes: torch.dtype) -> torch.dtype:
    """The dtype to add in: one step above the widest input, so that averages of copies round back to the copy.

    float32 for half precisions, float64 for float32 and float64.
    """
    return torch.float64 if any(d in (torch.float32, torch.float64) for d in dtypes) else torch.float32


@dataclass(frozen=True)
class MergeView:
    """The plan of a merge before its first tensor: all sites in order, how many models, and a pass over all tensors."""

    sites: tuple[Site, ...]
    models: int
    tensors: Callable[[], Iterator[tuple[Tensor, Deltas, Site]]]


class Rule(MergeRule):
    """A merge rule of this room. `prepare` sees the plan once, before the first tensor; it checks, or fits what is
    global."""

    def prepare(self, view: MergeView) -> Rule:
        """The rule to apply to every tensor. Raises Refused where the plan does not fit."""
        return self

    def by_entries(self) -> bool:
        """Whether each entry of the result is made from that entry of the base and the models alone, by the site at most."""
        return False


def by_entries(rule: MergeRule) -> bool:
    """Whether a rule may be given a tensor in pieces, flat."""
    return isinstance(rule, Rule) and rule.by_entries()


def finite(tensor: Tensor) -> bool:
    """Whether there is neither NaN nor infinity, in one pass without a tensor of answers."""
    return tensor.numel() == 0 or all(math.isfinite(end.item()) for end in torch.aminmax(tensor))


def prepared(rule: MergeRule, view: MergeView) -> MergeRule:
    """`rule` after it has seen the plan; rules without `prepare` stay as they are."""
    prepare = getattr(rule, "prepare", None)
    return rule if prepare is None else prepare(view)


def need_models(who: str, want: int, got: int, do: str) -> None:
    """Raise Refused unless exactly `want` models are given."""
    if got != want:
        raise Refused(sentence(who, f"{want} model{'s' * (want != 1)} beside the base", str(got), do))


def shares(who: str, weights: Sequence[float] | None, models: int) -> tuple[float, ...]:
    """One weight per model; None is one each. Raises Refused when their number differs or there is no model."""
    if models == 0:
        raise Refused(sentence(who, "at least one model beside the base", "none", "List them under `models`"))
    if weights is None:
        return (1.0,) * models
    if len(weights) != models:
        raise Refused(
            sentence(
                who, f"one weight for each of the {models} models", f"{len(weights)} weights", "Match the two lists"
            )
        )
    return tuple(weights)
