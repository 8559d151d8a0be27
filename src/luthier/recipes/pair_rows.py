"""Rows of pairs for embedding recipes: whether a recipe reads them, and pairs made of labelled texts. Without torch."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from luthier.core.algebra import Sum, Weighted
from luthier.core.component import Component
from luthier.core.errors import DataError, UnknownComponent, sentence
from luthier.core.registry import find
from luthier.core.streams import numpy_stream
from luthier.recipes.recipe import Data
from luthier.recipes.rows import Row, Rows, is_world

FORMAT = "query/positive"


def is_pairs(objective: Any) -> bool:
    """Whether an objective, as a recipe writes it or as built, reads pairs of texts; by its card alone."""
    spec = objective.members[0] if isinstance(objective, Sum) else objective
    spec = spec[0] if isinstance(spec, list | tuple) and spec else spec
    spec = spec.inner if isinstance(spec, Weighted) else spec
    name = spec.id if isinstance(spec, Component) else next(iter(spec)) if isinstance(spec, Mapping) and spec else spec
    try:
        return isinstance(name, str) and "pairs" in find(name).card.needs.batch
    except UnknownComponent:
        return False


def reading_pairs(data: Data) -> Data:
    """The data section with its files read as pairs. Raises DataError for a world, which has none."""
    for source in (data.train if isinstance(data.train, str) else None, data.test):
        if source is not None and (is_world(source) or source.startswith("lab:")):
            raise DataError(
                sentence(f"data {source}", "files with pairs of texts for this objective", "a lab world", "Name a file")
            )
    return replace(data, format=data.format or FORMAT)


def paired(rows: Rows, seed: int, split: str) -> list[str]:
    """Make each labelled text a query whose positive is another text of its label, drawn once; says what was left out.

    Rows that are pairs already stay as they are.
    """
    if not rows.rows or "query" in rows.rows[0]:
        return []
    groups: dict[Any, list[int]] = defaultdict(list)
    for i, row in enumerate(rows.rows):
        groups[row["label"]].append(i)
    draw, made, source = numpy_stream(seed, f"data.pairs.{split}"), list[Row](), list[int]()
    for i, row in enumerate(rows.rows):
        others = groups[row["label"]]
        if len(others) > 1:
            at = int(draw.integers(len(others) - 1))
            other = others[at + (at >= others.index(i))]
            made.append({**row, "query": row["text"], "positive": rows.rows[other]["text"]})
            source.append(i)
    if not made:
        raise DataError(
            sentence(f"data {rows.path}", "labels that at least two texts share", "none", "Give pairs of texts")
        )
    lost = len(rows.rows) - len(made)
    rows.become(made, source, "pairs")
    told = f"{len(made)} {split} texts are paired with another one of their label"
    return [f"{told}; {lost} that are alone with theirs are left out" if lost else told]
