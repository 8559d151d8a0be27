"""Old rows at a hook's hand: what replay, anchors and Fisher estimates learn from, never what is measured."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from luthier.core.batch import Batch
from luthier.core.signals import Signals
from luthier.train.feed import RowFeed
from luthier.train.policy import Policy


@dataclass
class Retained:
    """The rows of `data.retain`, handed to hooks as the handle "retain".

    Their passes count as "retain" in the cost, those of the frozen reference as "reference".
    """

    policy: Policy
    feed: RowFeed
    _step: int = -1
    _live: dict[tuple[int, ...], Batch] = field(default_factory=dict[tuple[int, ...], Batch], repr=False)

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.feed)

    def batch(self, rows: Sequence[int], step: int) -> Batch:
        """The batch of these rows on the model's device; the same rows of a step are the same object."""
        if step != self._step:
            self._step, self._live = step, {}
        key = tuple(rows)
        if key not in self._live:
            device = next(self.policy.view.module.parameters()).device
            self._live[key] = self.feed.collate(key).to(device)
        return self._live[key]

    def signals(self, batch: Batch, names: Iterable[str]) -> Signals:
        """Signals of such a batch under the policy, and under its frozen reference for names with ref_."""
        return self.policy.signals(batch, names, "retain")
