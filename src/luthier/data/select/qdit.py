"""QDIT: choose rows that together represent all prompts and are good by themselves.

Paper: arXiv 2311.14736, eq. 1 and section 3.2.   Formula: greedily add a with the largest (1 - alpha) d(a | A) + alpha
q(a), d(A) = sum over rows v of max over a in A of cos(v, a).
Takes: rows, an embedder of texts, a quality score per row.   Gives: k of them.
Choose it when: the pool is large and uneven and answers must stay good on rare prompts.   Rather not when: rows are
few.
Relatives: longest (quality by length alone), random, full.

>>> x, q = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), torch.tensor([0.0, 1.0, 0.0])
>>> qdit(x, q, k=2, alpha=0.5).index.tolist()
[1, 2]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Generator, Tensor

from luthier.core import Card, Choice, DataContext, Needs, Row, Select, component, stream
from luthier.core.errors import DataError, sentence
from luthier.data.select._keep import count
from luthier.data.select._text import instruction_of
from luthier.ops.submodular import Columns, cosine_columns, facility_location_greedy
from luthier.ops.submodular_sampled import facility_location_sampled, values_alone, witness_rows

CARD = Card(
    name="QDIT",
    source="arXiv 2311.14736",
    papers=(289,),
    equations=("1",),
    needs=Needs(handles=("embed", "score")),
    cost="one embedding per row; up to `witnesses` rows n^2 similarities once (made in blocks), then few per chosen row; beyond, "
    "n times 2.3 times `witnesses` similarities, whatever is kept",
    limits=(
        "alpha = 1 is the top k by quality",
        "alpha = 0 is greedy facility location, at least (1 - 1/e) of the best coverage",
        "lazy greedy chooses what plain greedy chooses",
    ),
    differs=(
        "the paper leaves open how coverage and quality share a scale; by default their means do: (1 - alpha) d(A) "
        "/ n +"
        "alpha mean q, q scaled to [0, 1]; `scale: none` is the formula as printed",
        "similarities below 0 count as 0, so that the bound of greedy choice holds",
        "a pool of more than `witnesses` rows is chosen approximately, as the reason of the choice says: coverage is estimated "
        "from that many rows drawn by lot, and each step looks at n / k ln 10 random rows",
    ),
    use_when=(
        "you need a small subset of a large pool that keeps rare kinds of prompts; alpha 0.5 to 0.9 did best in the "
        "paper"
    ),
    avoid_when="you have no quality score you trust and coverage alone is not the aim",
    relatives=("data.select.longest", "data.select.random"),
    mechanism="diversity layer",
)
Scale = Literal["mean", "none"]


@dataclass(frozen=True)
class Chosen:
    """Rows in the order of choice (k,), the objective's gain of each (k,), and every row's value by itself (n,)."""

    index: Tensor
    gain: Tensor
    alone: Tensor


def unit_interval(quality: Tensor) -> Tensor:
    """Scores (n,) moved to [0, 1]; all zeros where they do not differ."""
    low, high = quality.min(), quality.max()
    return torch.zeros_like(quality) if low == high else (quality - low) / (high - low)


def qdit(
    vectors: Tensor | None, quality: Tensor | None, k: int, alpha: float = 0.7, scale: Scale = "mean", lazy: bool = True,
    witnesses: int | None = None, g: Generator | None = None,
) -> Chosen:  # fmt: skip
    """Choose k of n rows; vectors (n, d) of their prompts, quality (n,), higher is better.

    vectors may be None at alpha = 1 and quality at alpha = 0. Equal values go to the earlier row. More rows than `witnesses`
    (None: no bound) are chosen as in `facility_location_sampled`, by draws from g.
    """
    if vectors is None and quality is None:
        raise ValueError(
            sentence("qdit", "vectors or quality", "neither", "Give both, or alpha = 0 or 1 with one of them")
        )
    n = len(vectors) if vectors is not None else len(quality)  # type: ignore[arg-type]
    own = torch.zeros(n, dtype=torch.float64) if quality is None else quality.double()
    own = alpha * (unit_interval(own) if scale == "mean" else own)
    weight = (1 - alpha) * (k / n if scale == "mean" else 1.0)
    if weight and vectors is not None and witnesses is not None and n > witnesses:
        g = g or Generator()
        state = g.get_state()
        picks = facility_location_sampled(vectors, k, g, witnesses=witnesses, modular=own, weight=weight)
        g.set_state(state)  # the same witnesses again
        alone = own + weight * values_alone(vectors, witness_rows(vectors, witnesses, g))
        return Chosen(picks.index, picks.gain, alone)
    columns: Columns = (lambda index: torch.zeros(n, len(index))) if vectors is None else cosine_columns(vectors)
    picks = facility_location_greedy(columns, n, k, modular=own, weight=weight, lazy=lazy)
    alone = own.clone()
    if weight and vectors is not None:
        parts = torch.arange(n).split(max(1, (1 << 24) // n))
        alone += weight * torch.cat([columns(p).clamp_min(0).sum(0, dtype=torch.float64) for p in parts])
    return Chosen(picks.index, picks.gain, alone)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Qdit(Select):
    """keep: number of rows (int) or share of them (float up to 1.0); alpha: weight of quality against coverage;
    score: column of each row's quality (if a row lacks it, all are scored by the model that the recipe hands in);
    scale: mean puts both terms on [0, 1], none adds them as they are; witnesses: larger pools are chosen approximately,
    their coverage seen by that many rows."""

    keep: Annotated[int | float, Gt(0)]
    alpha: Annotated[float, Ge(0), Le(1)] = 0.7
    score: str = "score"
    scale: Literal["mean", "none"] = "mean"
    witnesses: Annotated[int, Ge(1)] = 8192

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Choice:
        k = count(self.keep, len(rows), "qdit")
        quality = self._quality(rows, ctx) if self.alpha > 0 else None
        vectors = self._vectors(rows, ctx) if self.alpha < 1 else None
        g = stream(ctx.seed, "data.select.qdit.witnesses")
        chosen = qdit(vectors, quality, k, self.alpha, self.scale, witnesses=self.witnesses, g=g)
        reached = f"objective {float(chosen.gain.sum()):.4g}"
        rough = vectors is not None and len(rows) > self.witnesses
        seen = f", approximately, as {self.witnesses} rows drawn by lot see it" if rough else ""
        reason = f"{k} of {len(rows)} rows by coverage and quality, alpha {self.alpha:g}, {reached}{seen}"
        return Choice(chosen.index.sort().values, chosen.alone, reason)

    def _vectors(self, rows: Sequence[Row], ctx: DataContext) -> Tensor:
        if ctx.embed is None:
            raise DataError(
                sentence("qdit", "an embedder of texts", "none", "Set `embedder:` in the recipe, or alpha = 1")
            )
        vectors = ctx.embed([instruction_of(row, i + 1, "qdit") for i, row in enumerate(rows)])
        if vectors.ndim != 2 or len(vectors) != len(rows):
            raise DataError(
                sentence(
                    "qdit", f"one vector for each of {len(rows)} rows", f"{tuple(vectors.shape)}", "Check the embedder"
                )
            )
        return vectors

    def _quality(self, rows: Sequence[Row], ctx: DataContext) -> Tensor:
        missing = [i for i, row in enumerate(rows) if not _is_number(row.get(self.score))]
        if missing and ctx.score is None:
            came = f"row {missing[0] + 1} with {rows[missing[0]].get(self.score)!r} ({len(missing)} such rows)"
            do = "Score the rows first, name another column with `score`, or set alpha = 0"
            raise DataError(sentence("qdit", f"a finite number in the column {self.score!r} of every row", came, do))
        if not missing:
            return torch.tensor([float(row[self.score]) for row in rows], dtype=torch.float64)
        made = ctx.score(rows).double()  # type: ignore[misc]
        if len(made) != len(rows) or not bool(torch.isfinite(made).all()):
            raise DataError(
                sentence(
                    "qdit", "one finite score per row", "others from the scoring model", "Check what scores the rows"
                )
            )
        return made


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
