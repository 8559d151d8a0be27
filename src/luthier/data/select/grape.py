"""GRAPE: of several answers to a prompt keep the one that the model to be tuned finds most probable.

Paper: arXiv 2502.04194.   Formula: per prompt x keep argmax over answers y of 1 / |y| sum_t log p(y_t | x, y_<t).
Takes: rows of which several share a prompt, each with an answer of its own; scores by the model.   Gives: the best of each.
Choose it when: answers of several sources are at hand and all are right.   Rather not when: sources differ in
correctness; the likely answer is not the right one.
Relatives: longest, random (other picks of as many answers), qdit (a score and coverage).

>>> best_of_each(torch.tensor([-0.2, -0.1, -3.0]), ["a", "a", "b"], 1).tolist()
[1, 2]
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Card, Choice, DataContext, Needs, Row, Select, component
from luthier.core.errors import DataError, sentence

CARD = Card(
    name="GRAPE",
    source="arXiv 2502.04194",
    papers=(165,),
    needs=Needs(batch=("text",), handles=("score",)),
    cost="one forward pass of the model to be tuned over every row",
    limits=(
        "the row kept is the one of the lowest perplexity of its prompt",
        "one answer for each prompt: all rows are kept",
        "the order of answers decides between ties only",
    ),
    differs=(
        "the mean runs over the answer's tokens with its end token, as they are trained",
        "candidates are rows that share all before their last answer; a prompt with fewer than `per_prompt` keeps all",
        "whether answers are right is left to the caller, as in the paper, whose sources are filtered before",
    ),
    use_when="prompts have answers by several models or people and the tuned model should stay close to itself",
    avoid_when="likely answers are wrong more often than unlikely ones",
    relatives=("data.select.longest", "data.select.random", "data.select.qdit"),
    mechanism="data filter",
)


def best_of_each(score: Tensor, group: Sequence[Hashable], k: int) -> Tensor:
    """Rows with one of the k highest scores (n,) of their group, ascending; of equal scores the earlier rows."""
    kept: dict[Hashable, int] = {}
    chosen = []
    for i in score.argsort(descending=True, stable=True).tolist():
        kept[group[i]] = kept.get(group[i], 0) + 1
        if kept[group[i]] <= k:
            chosen.append(i)
    return torch.tensor(sorted(chosen), dtype=torch.long)


def prompt_of(row: Row, number: int) -> str:
    """All of a row before its last answer, as one text. Raises DataError naming a row without a prompt."""
    if row.get("messages"):
        turns = list(row["messages"])
        last = max((i for i, m in enumerate(turns) if m.get("role") == "assistant"), default=len(turns))
        return json.dumps(turns[:last], sort_keys=True, ensure_ascii=False)
    if row.get("prompt"):
        return json.dumps(row["prompt"], sort_keys=True, ensure_ascii=False)
    came = f"row {number} with {', '.join(map(str, row)) or 'no columns'}"
    raise DataError(sentence("grape", "rows with a prompt and an answer", came, "Map them with data.fields"))


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Grape(Select):
    """per_prompt: answers kept of each prompt; score: column that holds mean log-probs (None: the model gives them)."""

    per_prompt: Annotated[int, Ge(1)] = 1
    score: str | None = None

    def __call__(self, rows: Sequence[Row], ctx: DataContext) -> Choice:
        if not rows:
            raise DataError(sentence("grape", "at least one row to choose from", "none", "Check the data"))
        group = [prompt_of(row, i + 1) for i, row in enumerate(rows)]
        score = self._scores(rows, ctx)
        index = best_of_each(score, group, self.per_prompt)
        reason = f"the likeliest {self.per_prompt} of each of {len(set(group))} prompts, mean log-prob "
        return Choice(index, score, f"{reason}{float(score[index].mean()):.4g} against {float(score.mean()):.4g}")

    def _scores(self, rows: Sequence[Row], ctx: DataContext) -> Tensor:
        if self.score is None and ctx.score is None:
            do = "Name a column of mean log-probs with `score`, or run it in a recipe"
            raise DataError(sentence("grape", "a model that scores answers", "none", do))
        if self.score is None:
            made = ctx.score(rows).detach().to("cpu", torch.float64)  # type: ignore[misc]
        else:
            given = [row.get(self.score) for row in rows]
            numbers = [float(v) if isinstance(v, int | float) and not isinstance(v, bool) else torch.nan for v in given]
            made = torch.tensor(numbers, dtype=torch.float64)
        if made.shape != (len(rows),) or not bool(torch.isfinite(made).all()):
            bad = int((~torch.isfinite(made)).nonzero()[0]) if made.shape == (len(rows),) else 0
            came = f"{rows[bad].get(self.score)!r} in row {bad + 1}" if self.score else f"others, row {bad + 1} first"
            raise DataError(sentence("grape", "one finite score per row", came, "Check what scores the rows"))
        return made
