"""Passes over several sources: so many rows of each, drawn in turn, so that no row waits while another comes twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from luthier.core.streams import stream
from luthier.train.feed import order, window


@dataclass
class Mixture:
    """Which rows a pass has.

    groups: row numbers of each source. counts: how many rows of each source a pass has; a source goes through its rows in an
    endless chain of permutations of its own, from pass to pass, so any two of its rows were seen equally often, or one of them
    once more. Everything is a function of seed and step, so resuming needs nothing else.
    """

    groups: Sequence[Sequence[int]]
    counts: Sequence[int]
    _last: tuple[tuple[int, int], Tensor] | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return sum(self.counts)

    def rows(self, seed: int, step: int, batch: int) -> list[int]:
        """Row numbers of one step: the step's window in the chain of passes; a batch may span two."""
        return window(step, batch, len(self), partial(self._pass, seed))

    def seen(self, seed: int, drawn: int) -> list[int]:
        """How many different rows of each source the first `drawn` rows of the chain hold."""
        passes, inside = divmod(drawn, len(self))
        rest = set(self._pass(seed, passes)[:inside].tolist())
        out = []
        for at, (group, n) in enumerate(zip(self.groups, self.counts, strict=True)):
            whole = min(passes * n, len(group))
            fresh = self._drawn(seed, passes, at)[: len(group) - whole]
            out.append(whole + len(rest.intersection(fresh)))
        return out

    def _pass(self, seed: int, turn: int) -> Tensor:
        """All row numbers of a pass, shuffled."""
        if self._last is None or self._last[0] != (seed, turn):
            drawn = [row for at in range(len(self.groups)) for row in self._drawn(seed, turn, at)]
            shuffle = torch.randperm(len(drawn), generator=stream(seed, "data.shuffle", turn))
            self._last = (seed, turn), torch.tensor(drawn)[shuffle]
        return self._last[1]

    def _drawn(self, seed: int, turn: int, at: int) -> list[int]:
        """What a pass has of source number `at`, in the order of its own chain."""
        group = self.groups[at]
        return [group[i] for i in order(seed, turn, self.counts[at], len(group), f"data.mix.{at}")]
