"""What selectors may ask of the model to be tuned: how likely it finds an answer, and what a row would teach it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from torch import Tensor

from luthier.core.device import fastest
from luthier.recipes.recipe import Recipe
from luthier.recipes.rows import measured

PROJECTED = 1024


class Untuned:
    """The recipe's model as it is before tuning; it is loaded when something is asked of it."""

    def __init__(self, recipe: Recipe, tokenizer: Any) -> None:
        self.recipe, self.tokenizer = recipe, tokenizer

    @cached_property
    def subject(self) -> Any:
        """The model as measures see it, with rows rendered as the recipe renders them."""
        from luthier.models.language import LanguageModule
        from luthier.models.loading import load_causal_lm
        from luthier.models.subject import LanguageSubject
        from luthier.recipes.places import model_source
        from luthier.recipes.text import renderer

        model = load_causal_lm(model_source(self.recipe.model), self.recipe.dtype)
        model.to(fastest())  # type: ignore[arg-type]
        text = renderer(self.tokenizer, self.recipe.data, model.config)
        return LanguageSubject(LanguageModule(model), self.tokenizer, text.renders, text.pairs, text.stop)

    def _sides(self, rows: Sequence[Mapping[str, Any]]) -> tuple[list[Any], list[str]]:
        plain = measured(rows)
        return [r["prompt"] for r in plain], [str(r["response"]) for r in plain]

    def score(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Mean log-prob per token of each row's last answer, end token included, (n,) float64 in nats."""
        sums, counts = self.subject.logp(*self._sides(rows))
        return sums / counts

    def gradients(self, rows: Sequence[Mapping[str, Any]]) -> Tensor:
        """Gradient of each row's mean negative log-prob in all weights, projected to 1024 numbers, (n, 1024)."""
        return self.subject.gradients(*self._sides(rows), dim=PROJECTED, seed=0)
