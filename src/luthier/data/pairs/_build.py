"""From rows with several answers to pairs: reading them, writing a pair, counting why a row gave none."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from luthier.core import Built, Row
from luthier.core.errors import DataError, counted, sentence


class Answers(NamedTuple):
    """A row's answers with one score each, higher is better."""

    responses: list[str]
    scores: list[float]


def answers_of(row: Row, number: int, who: str, column: str = "scores") -> Answers:
    """Answers and the scores in a column of a row. Raises DataError naming row and column."""
    responses, scores = row.get("responses"), row.get(column)
    if not isinstance(responses, list) or not isinstance(scores, list) or len(responses) != len(scores):
        came = f"row {number} with {', '.join(map(str, row)) or 'no columns'}"
        if isinstance(responses, list) and isinstance(scores, list):
            came = f"{len(responses)} responses and {len(scores)} {column} in row {number}"
        raise DataError(
            sentence(who, f"`responses` and as many `{column}`", came, "Sample several answers and score them")
        )
    if not all(isinstance(s, int | float) and math.isfinite(s) for s in scores):
        raise DataError(
            sentence(who, f"finite numbers in `{column}`", f"{scores} in row {number}", "Correct the scores")
        )
    return Answers([str(r) for r in responses], [float(s) for s in scores])


def paired(row: Row, answers: Answers, best: int, worst: int, **columns: float) -> dict[str, Any] | str:
    """The preference row of two answers, or why it is none. `gap` is the difference of their scores; columns are added."""
    chosen, rejected = answers.responses[best], answers.responses[worst]
    if chosen == rejected:
        return "chosen and rejected are the same text"
    kept = {k: v for k, v in row.items() if k not in ("responses", "scores", "scores_before", "diversity")}
    gap = answers.scores[best] - answers.scores[worst]
    return {**kept, "chosen": chosen, "rejected": rejected, "gap": gap, **columns}


def gather(rows: Sequence[Row], make: Callable[[Row, int], dict[str, Any] | str], who: str) -> Built:
    """All pairs that `make(row, number)` gives, and how many rows gave none for which reason.

    Raises DataError when no row gives a pair.
    """
    made, source, lost = list[Row](), list[int](), defaultdict[str, list[int]](list)
    for i, row in enumerate(rows):
        one = make(row, i + 1)
        if isinstance(one, str):
            lost[one].append(i + 1)
        else:
            made.append(one)
            source.append(i)
    told = [f"{counted(len(at), 'row')} gave no pair: {why} (first: row {at[0]})" for why, at in lost.items()]
    if not made:
        came = "; ".join(told) or "no rows"
        raise DataError(
            sentence(who, "at least one row that gives a pair", came, "Sample more answers, or loosen the step")
        )
    return Built(made, source, (f"{who} made {counted(len(made), 'pair')} of {counted(len(rows), 'row')}", *told))
