"""Batches as a pure function of (seed, step): resuming needs a step number and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from luthier.core.batch import Batch
from luthier.core.streams import stream
from luthier.models.collate import Tokens, bins, pack, pad

if TYPE_CHECKING:
    from luthier.train.mixture import Mixture


class Feed(Protocol):
    """Where batches come from; feeds derive from it."""

    def micros(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """This rank's micro-batches of optimiser step `step`."""
        ...

    def __len__(self) -> int:
        """Rows in one pass."""
        ...

    def phase(self, step: int, steps: int) -> tuple[int, int]:
        """(step, steps) as schedule and optimiser count them: those of the run, but where a feed begins anew its own."""
        return step, steps


def order(seed: int, step: int, batch: int, rows: int, role: str = "data.shuffle") -> list[int]:
    """Row numbers of one step: the step's window in an endless chain of permutations, a new one each pass.

    Every row comes exactly once per pass; a batch may span two passes.
    """
    return window(step, batch, rows, lambda turn: torch.randperm(rows, generator=stream(seed, role, turn)))


def window(step: int, batch: int, rows: int, one_pass: Callable[[int], Tensor]) -> list[int]:
    """Row numbers of one step in an endless chain of passes: one_pass(turn) gives the `rows` row numbers of one of them."""
    out: list[int] = []
    at = step * batch
    while len(out) < batch:
        turn, inside = divmod(at, rows)
        take = min(batch - len(out), rows - inside)
        out.extend(one_pass(turn)[inside : inside + take].tolist())
        at += take
    return out


def packing_width(lengths: Sequence[int], hidden: int = 0, worth: float = 5 / 6) -> int:
    """Twice the longest sequence where packing into such rows leaves at most `worth` of the padded work, else 0 (pad).

    hidden: width of the model. A layer's matrices take about 24 hidden^2 operations a token and attention 4 hidden for each
    token that it may look at: all of a packed row, as the mask that keeps sequences apart is applied afterwards, and half a
    padded one, as nothing looks ahead. 0 leaves attention out.

    >>> packing_width([10, 3, 3, 3, 3]), packing_width([10, 9, 10])
    (20, 0)
    >>> packing_width([1000, 400, 400, 400, 400, 400], hidden=4096), packing_width([1000, 400, 400, 400, 400, 400], hidden=128)
    (2000, 0)
    """
    longest = max(lengths)
    rows = bins(lengths, 2 * longest)
    width = max(sum(lengths[i] for i in row) for row in rows)
    seen = 1 / (6 * hidden) if hidden else 0.0
    packed, padded = len(rows) * width * (1 + seen * width), len(lengths) * longest * (1 + seen * longest / 2)
    return 2 * longest if packed <= worth * padded else 0


@dataclass
class RowFeed(Feed):
    """Encoded rows as batches of one kind.

    examples: per row one token sequence per part. columns: per-row values, (rows, ...). width: packing width, 0 pads,
    None packs into rows of twice the longest sequence where that saves a sixth of the work, see `packing_width`; hidden: the
    model's width, for that.
    reference: cached reference log-probs, per row and part a 1-D tensor over trained tokens. tables: columns with a vector
    for each trained token of the first part, per row (trained tokens, k); a batch has them as (B, T, k), 0 elsewhere.
    mixture: which rows a pass has; None: every row once.
    """

    examples: Sequence[tuple[Tokens, ...]]
    kind: str
    parts: tuple[str, ...]
    pad_id: int
    batch: int
    seed: int
    micro: int | None = None
    width: int | None = 0
    columns: Mapping[str, Tensor] = field(default_factory=dict)
    meta: Sequence[Mapping[str, Any]] = ()
    reference: Sequence[tuple[Tensor, ...]] | None = None
    tables: Mapping[str, Sequence[Tensor]] = field(default_factory=dict)
    mixture: Mixture | None = None
    hidden: int = 0

    def __len__(self) -> int:
        return len(self.examples) if self.mixture is None else len(self.mixture)

    def micros(self, step: int, rank: int = 0, world: int = 1) -> list[Batch]:
        """Micro-batches of this rank: its share of the global batch, neighbours in length together (less padding)."""
        if self.mixture is None:
            rows = order(self.seed, step, self.batch, len(self.examples))[rank::world]
        else:
            rows = self.mixture.rows(self.seed, step, self.batch)[rank::world]
        size = self.micro or len(rows)
        if len(rows) > size:
            rows = sorted(rows, key=lambda r: sum(len(p.ids) for p in self.examples[r]))
        return [self.collate(rows[at : at + size]) for at in range(0, len(rows), size)]

    def collate(self, rows: Sequence[int]) -> Batch:
        """The batch of these rows."""
        sequences = [self.examples[r][p] for p in range(len(self.parts)) for r in rows]
        width = packing_width([len(s.ids) for s in sequences], self.hidden) if self.width is None else self.width
        inputs = pack(sequences, self.pad_id, width) if width else pad(sequences, self.pad_id)
        if self.reference is not None:
            inputs["ref_token_logp"] = self._cached(rows, sequences, inputs)
        index = torch.tensor(list(rows), dtype=torch.long)
        columns = {k: v[index] for k, v in self.columns.items()}
        width = inputs["home" if "home" in inputs else "input_ids"].shape[1]
        columns |= {
            k: torch.stack([_spread(self.examples[r][0], v[r], width) for r in rows]) for k, v in self.tables.items()
        }
        meta = [self.meta[r] for r in rows] if self.meta else ()
        return Batch(self.kind, inputs, self.parts, columns, tuple(rows), meta)

    def _cached(self, rows: Sequence[int], sequences: Sequence[Tokens], inputs: Mapping[str, Tensor]) -> Tensor:
        assert self.reference is not None
        flat = [self.reference[r][p] for p in range(len(self.parts)) for r in rows]
        width = inputs["home" if "home" in inputs else "input_ids"].shape[1]
        out = torch.zeros(len(sequences), width, dtype=flat[0].dtype)
        for i, (s, values) in enumerate(zip(sequences, flat, strict=True)):
            trained = torch.tensor(s.mask, dtype=torch.bool)
            trained[0] = False
            out[i, : len(s.ids)][trained] = values
        return out


def _spread(tokens: Tokens, values: Tensor, width: int) -> Tensor:
    """Vectors (trained tokens, k) at their places, (width, k)."""
    trained = torch.tensor(tokens.mask, dtype=torch.bool)
    trained[0] = False
    out = torch.zeros(width, *values.shape[1:], dtype=values.dtype)
    out[: len(trained)][trained] = values
    return out
