"""Merges that search for their weights: rows of `judge.data.train` judge what is tried, those of its `test` the winner."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from luthier.core.device import fastest
from luthier.core.errors import Refused, counted, sentence
from luthier.core.protocols import MeasureContext
from luthier.merge._rule import wide
from luthier.merge._search import Found, MergeSearch, Weights
from luthier.merge._sources import AdapterDelta
from luthier.merge.executor import merge_tensors, open_all
from luthier.models.collate import pad
from luthier.models.language import LanguageModule
from luthier.models.loading import load_causal_lm, load_tokenizer
from luthier.models.pipelines import is_pipeline
from luthier.models.subject import LanguageSubject
from luthier.recipes.build import build_measures, embedder
from luthier.recipes.merging import judge_recipe
from luthier.recipes.recipe import parse
from luthier.recipes.rows import load_splits, measured
from luthier.recipes.text import renderer

BATCH = 16
"""Rows of a forward pass of the loss."""


class Tuned(Mapping[str, Tensor]):
    """The weights of an adapter on its base, each made when asked for."""

    def __init__(self, base: Mapping[str, Tensor], adapter: AdapterDelta) -> None:
        self.base, self.adapter = base, adapter

    def __getitem__(self, name: str) -> Tensor:
        base, part = self.base[name], self.adapter.parts.get(name)
        return base if part is None else part.weights(base.to(wide(base.dtype))).to(base.dtype)

    def __iter__(self) -> Iterator[str]:
        return iter(self.base)

    def __len__(self) -> int:
        return len(self.base)


class Judge:
    """How good weights of one language model are: a measure's first figure, or a loss with a gradient.

    judge: the recipe's section. Its model holds the weights that are judged, one set at a time.
    """

    def __init__(self, base: Path, judge: Mapping[str, Any]) -> None:
        """Raises Refused where the rows cannot judge, and every error of a recipe's data."""
        self.recipe = parse(judge_recipe(str(base), judge))
        seed = self.recipe.seed
        self.splits = load_splits(self.recipe.data, seed)
        self.rows, self.unseen = measured(self.splits.train.rows), measured(self.splits.test)
        if not self.rows or not self.unseen:
            came = f"{len(self.rows)} and {len(self.unseen)}"
            raise Refused(sentence("judge.data", "rows to search by and others to report on", came, "Give more rows, or `test`"))
        self.model: Any = load_causal_lm(str(base), self.recipe.dtype)
        self.device = fastest()
        self.model.to(self.device)
        tokenizer = load_tokenizer(str(base))
        text = renderer(tokenizer, self.recipe.data, self.model.config)
        self.subject = LanguageSubject(LanguageModule(self.model), tokenizer, text.renders, text.pairs, text.stop, seed)
        self.measure = build_measures(self.recipe.measure)[0]
        self.name, self.sign = "", 1

    def score(self, weights: Weights) -> float:
        """The figure on the rows of the search, higher is better."""
        return self._read(weights, self.rows)

    def unseen_score(self, weights: Weights) -> float:
        """The same on rows that the search does not see."""
        return self._read(weights, self.unseen)

    def _read(self, weights: Weights, rows: Sequence[Any]) -> float:
        fitted = self.model.load_state_dict(dict(weights), strict=False)
        if fitted.unexpected_keys:
            raise Refused(sentence("a merge that searches", "weights named as the model names them",
                                   fitted.unexpected_keys[0], "Use a merge without a search"))  # fmt: skip
        self.subject.forget()
        ctx = MeasureContext(self.recipe.seed, embedder(self.recipe), self.splits.verify, truth=self.splits.truth)
        found = next((r for r in self.measure(self.subject, rows, ctx) if r.better), None)
        if found is None:
            came = f"{self.measure.name}, none of whose figures is better high or low"
            raise Refused(sentence("judge.measure", "a measure with a direction", came, "Use likelihood"))
        self.name, self.sign = found.name, found.better
        return found.better * found.value

    @cached_property
    def _batches(self) -> list[dict[str, Tensor]]:
        """The rows of the search, encoded and padded."""
        pairs = self.subject.pairs([r["prompt"] for r in self.rows], [str(r["response"]) for r in self.rows])
        made = (pad(pairs[at : at + BATCH], self.subject.tokenizer.pad_token_id or 0) for at in range(0, len(pairs), BATCH))
        return [{k: v.to(self.device) for k, v in batch.items()} for batch in made]

    def loss(self, weights: Weights, scale: Tensor | float = 1.0) -> Tensor:
        """Mean negative log-prob per answer token over the rows of the search, nats; scale: a factor of the logits."""
        moved = {k: v.to(self.device) for k, v in weights.items()}
        total, tokens = torch.zeros((), device=self.device), 0
        for batch in self._batches:
            inputs = {k: batch[k] for k in ("input_ids", "attention_mask")}
            logits = functional_call(self.model, moved, kwargs={**inputs, "use_cache": False}).logits
            row, column = batch["trained"]
            total = total + F.cross_entropy(logits[row, column - 1].float() * scale, inputs["input_ids"][row, column],
                                            reduction="sum")  # fmt: skip
            tokens += len(row)
        return total / tokens


def search(component: MergeSearch, judge: Mapping[str, Any], base: Path, models: Sequence[Path]) -> tuple[Found, dict[str, Any]]:
    """What the search finds, and what the manifest says of it. Raises Refused for pipelines."""
    if is_pipeline(str(base)):
        raise Refused(sentence(component.name, "language models", f"the pipeline {base}", "Call it from Python with a score of "
                               "your own"))  # fmt: skip
    with ExitStack() as stack:
        first, opened = open_all(base, models, "same", stack)
        given: list[Weights] = [Tuned(first, m) if isinstance(m, AdapterDelta) else m for m in opened]
        judges = Judge(base, judge)
        known: Any = component
        handles = {"score": judges.score, "loss": judges.loss, "base": first}
        found: Found = known(models=given, **{h: handles[h] for h in component.card.needs.handles})
        merged, *single = (judges.sign * judges.unseen_score(w) for w in (merge_tensors(found.rule, first, opened), *given))
    reached = found.score * (judges.sign if "score" in component.card.needs.handles else 1)
    told = {"search": component.id, "weights": list(found.weights), "trials": len(found.trials), "reached": reached,
            "rows": len(judges.rows), "unseen_rows": len(judges.unseen), "measure": judges.name,
            "unseen_merged": merged, "unseen_models": single}  # fmt: skip
    return found, told


def in_words(told: Mapping[str, Any]) -> str:
    """What a search found, in a sentence."""
    weights = ", ".join(f"{w:.3g}" for w in told["weights"])
    return (f"weights {weights}; {told['measure']} on {counted(told['unseen_rows'], 'row')} that the search did not see: "
            f"{told['unseen_merged']:.4g}, of the models {', '.join(f'{s:.4g}' for s in told['unseen_models'])}")  # fmt: skip
