"""What `luthier preview` shows: a recipe's data, encoded as training would encode it. No weights are loaded."""

from __future__ import annotations

from typing import Any

from luthier.models.loading import load_config, load_tokenizer
from luthier.recipes.build import build_objective, fit_kind, model_source, select
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import load_splits
from luthier.recipes.text import encode_training


def encode_for_preview(recipe: Recipe) -> tuple[Any, Any, str]:
    """(encoded data, tokenizer, how the data was read)."""
    splits = load_splits(recipe.data, recipe.seed)
    kind = "group" if recipe.loop is not None else fit_kind(build_objective(recipe.objective), splits.train, recipe.data.steps)
    source = model_source(recipe)
    config, tokenizer = load_config(source), load_tokenizer(recipe.tokenizer or source)
    told = select(recipe, splits.train, tokenizer)
    encoded = encode_training(splits.train, kind, tokenizer, recipe.data, config)
    return encoded, tokenizer, " ".join([splits.train.statement, *(f"{t}." for t in (*splits.train.notes, *told))])
