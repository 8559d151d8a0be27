"""From weights to passes: what is left of each source after reading, choosing and encoding, and how a pass draws from it."""

from __future__ import annotations

from typing import Any

from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import Rows
from luthier.recipes.sources import counts_of, pass_sentence
from luthier.train.mixture import Mixture


def mixture_of(recipe: Recipe, train: Rows, encoded: Any, kind: str) -> tuple[Mixture | None, list[str]]:
    """(the passes over weighted sources, sentences on what they hold and on what this run never sees of them).

    encoded: the examples made of these rows; where one row gave several, each counts. (None, []) without weights.
    Raises DataError for a source of which nothing is left.
    """
    if not train.weighted:
        return None, []
    groups: list[list[int]] = [[] for _ in train.sources]
    for i, example in enumerate(encoded.examples):
        groups[train.origin(example[0].row)].append(i)
    sizes = [len(group) for group in groups]
    made = Mixture(groups, counts_of(train.sources, sizes, recipe.data.mix))
    told = [pass_sentence(train.sources, sizes, made.counts)]
    drawn, roll = (steps := recipe.train.total_steps(len(made))) * recipe.train.batch, recipe.rollout
    if kind == "group":
        drawn = -(-steps // roll.reuse) * max(1, recipe.train.batch // roll.group)
    for source, size, seen in zip(train.sources, sizes, made.seen(recipe.seed, drawn), strict=True):
        if seen < size:
            come = "comes" if size - seen == 1 else "come"
            told.append(f"{size - seen} of the {size} rows of {source.path} never {come} in this run")
    return made, told
