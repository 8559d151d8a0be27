"""What losses over nested vectors share: the inner objective on shorter or earlier vectors, summed term by term."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from luthier.core import Batch, Objective, Signals, Terms
from luthier.core.errors import ConfigError, Refused, sentence
from luthier.core.terms import as_terms

Parts = tuple[Tensor, ...]


def on(inner: Objective, batch: Batch, s: Signals, embedding: Parts) -> tuple[Terms, ...]:
    """The inner objective's terms on these vectors."""
    return as_terms(inner(batch, s.replaced(embedding=embedding)))


def added(each: Sequence[tuple[Terms, ...]], weights: Sequence[float]) -> tuple[Terms, ...]:
    """Terms of several sizes as one set: values summed with their weights, names and masks those of the first."""
    return tuple(
        replace(column[0], values=sum((w * t.values for w, t in zip(weights[1:], column[1:], strict=True)),
                                      weights[0] * column[0].values))
        for column in zip(*each, strict=True)
    )  # fmt: skip


def head(parts: Parts, dim: int, who: str) -> Parts:
    """The first `dim` coordinates of each part. Raises Refused where vectors are shorter."""
    width = parts[0].shape[-1]
    if dim > width:
        raise Refused(sentence(who, f"vectors of at least {dim} coordinates", f"{width}", "Lower its dims"))
    return tuple(p[..., :dim] for p in parts)


def check_inner(inner: Objective, who: str) -> None:
    """Raise ConfigError unless the inner objective reads the vectors of pairs."""
    if "embedding" not in inner.needs.signals:
        raise ConfigError(sentence(who, "an inner objective that reads embeddings", inner.name, "Use info_nce or gist"))
