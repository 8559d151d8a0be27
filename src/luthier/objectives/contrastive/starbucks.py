"""Nested models: train a fixed ladder of (layer, dim) pairs at once, each smaller one aligned with the full model.

Paper: arXiv 2410.13230.   Formula: L(e_N) + sum over pairs (l, d) of L(e_l[:d]) + w KL(softmax(e_N[:d]) || softmax(e_l[:d])),
with e_l the pooled vector of layer l and N the last layer; the KL is the mean over all texts of the batch.
Takes: an inner objective on embeddings, the vectors of all layers.   Gives: its values, summed over the ladder.
Choose it when: one encoder should also serve as smaller, faster ones.   Rather not when: only the size of vectors matters; then
matryoshka.   Relatives: matryoshka.

`{starbucks: {inner: info_nce, layers: [2, 4, 6], dims: [64, 128, 384]}}`
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
from annotated_types import Ge
from torch import Tensor

from luthier.core import Batch, Card, Needs, Objective, Signals, Terms, component
from luthier.core.errors import ConfigError, Refused, sentence
from luthier.objectives.contrastive._nested import added, check_inner, head, on
from luthier.objectives.contrastive.info_nce import InfoNCE

CARD = Card(
    name="Starbucks",
    source="arXiv 2410.13230",
    papers=(151,),
    needs=Needs(batch=("pairs",), signals=("layer_embedding",)),
    cost="one forward pass; the vectors of all layers, the inner loss once for each pair of the ladder",
    limits=(
        "the last layer at full dim alone: the inner objective itself, whatever the weight of the KL",
        "a layer whose first coordinates are the full model's: its KL is 0",
    ),
    differs=(
        "kl is the whole factor; the authors' code multiplies a weight (1) by what it calls a temperature (0.3)",
        "the KL's direction is that of the authors' code, not of its docstring; gradients reach both sides, as there",
        "the authors' code for retrieval takes the KL of scores against a fixed target; here it is the one on vectors",
        "the KL reads vectors as the encoder gives them: on normalised ones it is small",
        "the paper's pre-training by masked auto-encoding at the same sizes is not here",
    ),
    use_when="one encoder should also serve as smaller, faster ones",
    avoid_when="only the size of the vectors matters",
    relatives=("objectives.contrastive.matryoshka", "objectives.contrastive.info_nce"),
    mechanism="nested dimensions",
)


def alignment(full: Tensor, part: Tensor) -> Tensor:
    """KL(softmax(full) || softmax(part)) of vectors as distributions over their coordinates; (B, d), (B, d) -> (B,).

    >>> alignment(torch.zeros(1, 2), torch.zeros(1, 2)).item()
    0.0
    """
    p, q = full.log_softmax(-1), part.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


@component(CARD)
@dataclass(frozen=True, kw_only=True)
class Starbucks(Objective):
    """inner: the loss on each size; layers, dims: the ladder, layer k with dim k, layers counted from 1; kl: weight of the KL."""

    inner: Objective = field(default_factory=InfoNCE)
    layers: tuple[int, ...] = (2, 4, 6, 8, 10, 12)
    dims: tuple[int, ...] = (32, 64, 128, 256, 512, 768)
    kl: Annotated[float, Ge(0)] = 0.3

    def __post_init__(self) -> None:
        """Raises ConfigError for a ladder whose two sides do not fit each other."""
        check_inner(self.inner, "starbucks")
        if not self.layers or len(self.layers) != len(self.dims) or min(*self.layers, *self.dims) < 1:
            raise ConfigError(sentence("starbucks", "as many layers as dims, all at least 1",
                                       f"layers {list(self.layers)}, dims {list(self.dims)}", "Correct them"))  # fmt: skip

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        """Those of the inner objective, and the vectors of all layers."""
        return replace(
            self.inner.needs, batch=("pairs",), signals=tuple(sorted({*self.inner.needs.signals, "layer_embedding"}))
        )

    def __call__(self, batch: Batch, s: Signals) -> tuple[Terms, ...]:
        deep = s.tensors("layer_embedding")
        last, width = deep[0].shape[1] - 1, deep[0].shape[2]
        if max(self.layers) > last:
            raise Refused(
                sentence(
                    "starbucks", f"an encoder of at least {max(self.layers)} layers", f"{last}", "Lower its layers"
                )
            )
        full = tuple(p[:, last] for p in deep)
        each, pull = [on(self.inner, batch, s, full)], []
        for layer, dim in zip(self.layers, self.dims, strict=True):
            if (layer, dim) == (last, width):
                continue
            small, target = head(tuple(p[:, layer] for p in deep), dim, "starbucks"), head(full, dim, "starbucks")
            each.append(on(self.inner, batch, s, small))
            pull.append(torch.stack([alignment(a, b) for a, b in zip(target, small, strict=True)]).mean(0))
        terms = added(each, (1.0,) * len(each))
        return (*terms, Terms("starbucks_kl", torch.stack(pull).sum(0), scale=self.kl)) if pull and self.kl else terms
