"""Loss terms on old rows beside those on new ones: one old row for each new one, or a share of that.

The old rows are the handle "retain" (`data.retain` of a recipe). Which old row stands beside which new one depends on seed,
step and row only, so that a step's loss does not depend on how its batch is split. A member names its signals and writes
`values(s)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from luthier.core import Batch, Context, Hook, Signals, Terms
from luthier.core.errors import Refused, sentence
from luthier.core.streams import python_stream


class Old(Protocol):
    """What the engine hands in as "retain"."""

    def __len__(self) -> int: ...
    def batch(self, rows: Sequence[int], step: int) -> Batch: ...
    def signals(self, batch: Batch, names: Iterable[str]) -> Signals: ...


def old_rows(handles: Any, who: str) -> Old:
    """The handle "retain". Raises Refused where the recipe declares no old rows."""
    found = handles.get("retain")
    if found is None:
        raise Refused(sentence(who, "old rows to retain", "none", "Name them in the recipe: data.retain"))
    return found


def companions(batch: Batch, ctx: Context, n: int, share: float) -> list[int]:
    """Old row numbers below n beside the rows of a batch: a new permutation each step, a share of the rows in turn.

    Several samples of one prompt count as one row.
    """
    order = python_stream(ctx.seed, "regularise.forgetting.rows", ctx.step).sample(range(n), n)
    rows = batch.rows or range(len(batch))
    rows = dict.fromkeys(rows) if batch.kind == "group" else rows
    return [order[r % n] for r in rows if int((r + ctx.step + 1) * share) > int((r + ctx.step) * share)]


class OnOld(Hook):
    """Base of the family. strength: factor of the term; share: old rows per new row, at most 1."""

    points: ClassVar[tuple[str, ...]] = ("terms",)
    wants: ClassVar[tuple[str, ...]] = ()
    strength: float
    share: float

    def values(self, s: Signals) -> Tensor:
        """Values (B, T) of the old rows, one per token."""
        raise NotImplementedError

    def terms(self, batch: Batch, s: Signals, ctx: Context) -> Terms | tuple[Terms, ...]:
        """The term on the old rows beside this batch, a mean over their trained tokens."""
        if not self.strength:
            return ()
        old = old_rows(ctx.handles, self.name)
        rows = companions(batch, ctx, len(old), self.share)
        if not rows:
            return Terms(self.name, torch.zeros(1), torch.zeros(1), self.strength)
        own = old.signals(old.batch(rows, ctx.step), self.wants)
        return Terms(self.name, self.values(own), own["token_mask"], self.strength)
