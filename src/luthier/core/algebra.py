"""Sums and multiples of objectives are objectives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from luthier.core.batch import Batch
from luthier.core.card import Needs
from luthier.core.protocols import Objective
from luthier.core.signals import Signals
from luthier.core.terms import Terms, as_terms

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Weighted(Objective):
    """An objective times a number: every term's scale is multiplied."""

    inner: Objective
    weight: float

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.inner.needs

    @property
    def name(self) -> str:
        return self.inner.name

    def brings(self, shape: tuple[int, ...], seed: int) -> Mapping[str, nn.Module]:
        return self.inner.brings(shape, seed)

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        return tuple(t.scaled(self.weight) for t in as_terms(self.inner(batch, s)))


@dataclass(frozen=True)
class Sum(Objective):
    """Objectives added; each keeps its own terms and counts."""

    members: tuple[Objective, ...]

    @classmethod
    def of(cls, *objectives: Objective) -> Sum:
        """A flat sum: nested sums are opened."""
        flat: list[Objective] = []
        for one in objectives:
            flat.extend(one.members if isinstance(one, Sum) else (one,))
        return cls(tuple(flat))

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        batch = [set(o.needs.batch) for o in self.members if o.needs.batch]
        common = batch[0].intersection(*batch[1:]) if batch else set[str]()
        return Needs(
            batch=tuple(sorted(common)),
            signals=tuple(sorted({x for o in self.members for x in o.needs.signals})),
            handles=tuple(sorted({x for o in self.members for x in o.needs.handles})),
        )

    @property
    def name(self) -> str:
        return " + ".join(o.name for o in self.members)

    def brings(self, shape: tuple[int, ...], seed: int) -> Mapping[str, nn.Module]:
        return {k: v for o in self.members for k, v in o.brings(shape, seed).items()}

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        return tuple(t for o in self.members for t in as_terms(o(batch, s)))
