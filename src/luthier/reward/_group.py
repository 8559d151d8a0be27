"""Completions of one prompt, for rewards that compare them: groups, likeness, and classes of like ones."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from luthier.core import Reward, Row
from luthier.core.errors import DataError, sentence
from luthier.models.embedder import Embed, load_embedder
from luthier.reward._answers import inside, plain, require_pairs

By = Literal["exact", "ngram", "embed"]


@functools.cache
def embedder(name: str) -> Embed:
    """Texts -> unit vectors (n, d) by a sentence-transformers model, loaded once."""
    return load_embedder(name)


def scores_of(reward: Reward, rows: Sequence[Row], completions: Sequence[str], who: str) -> Tensor:
    """The inner reward's scores (n,), one per completion. Raises DataError for another shape."""
    require_pairs(rows, completions, who)
    scores = reward(rows, completions)
    if scores.shape != (len(completions),):
        came = f"shape {tuple(scores.shape)} from {reward.id} for {len(completions)} completions"
        raise DataError(sentence(who, "one score per completion", came, "Correct that reward"))
    return scores


def groups_of(rows: Sequence[Row]) -> Tensor:
    """Number of the prompt of each row (n,), counted as they come: rows of the same prompt, or the same row, share one."""
    known: dict[str, int] = {}
    asked = [row.get("prompt", row.get("messages")) for row in rows]
    keys = [f"row {id(row)}" if a is None else repr(a) for row, a in zip(rows, asked, strict=True)]
    return torch.tensor([known.setdefault(k, len(known)) for k in keys], dtype=torch.long)


def same_group(group: Tensor) -> Tensor:
    """(n, n), True where two completions share a prompt, each with itself."""
    return group[:, None] == group[None, :]


def cosines(vectors: Tensor) -> Tensor:
    """Cosine of every two of n vectors, (n, d) -> (n, n); 0 where one is zero."""
    unit = torch.nn.functional.normalize(vectors, dim=-1)
    return unit @ unit.T


def ngrams(text: str, n: int) -> set[tuple[str, ...]]:
    """The different runs of n words; of a shorter text its words as one run."""
    words = plain(text).split()
    return {tuple(words[i : i + n]) for i in range(max(1, len(words) - n + 1))} if words else set()


def overlaps(texts: Sequence[str], n: int) -> Tensor:
    """Share of n-grams that two texts have in common, |A and B| / |A or B|, (n, n); 1 for two texts without any."""
    sets = [ngrams(t, n) for t in texts]
    return torch.tensor([[len(a & b) / len(a | b) if a | b else 1.0 for b in sets] for a in sets], dtype=torch.float64)


def classes(like: Tensor) -> Tensor:
    """Number of the class of each item (n,): items are in one where a chain of like ones (n, n) joins them."""
    joined, reach = torch.zeros_like(like), like | like.T | torch.eye(len(like), dtype=torch.bool)
    while not torch.equal(joined, reach):
        joined, reach = reach, (reach.to(torch.float32) @ reach.to(torch.float32)) > 0
    return reach.to(torch.uint8).argmax(1)


def alike(texts: Sequence[str], by: By, *, tag: str | None, threshold: float, model: str) -> Tensor:
    """(n, n), True where two texts count as the same: equal in plain form, enough common 3-grams, or a close embedding.

    tag: only what the last <tag> holds is compared; texts without it are like each other.
    """
    shown = [inside(t, tag) or "" for t in texts]
    if by == "exact":
        forms = [plain(t) for t in shown]
        return torch.tensor([[a == b for b in forms] for a in forms])
    return (overlaps(shown, 3) if by == "ngram" else cosines(embedder(model)(shown))) >= threshold
