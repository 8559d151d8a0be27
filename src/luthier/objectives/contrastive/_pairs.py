"""What in-batch contrastive losses share: the vectors of each part, cosine similarities, and the share of the right one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from luthier.core import Batch, Signals
from luthier.core.errors import Refused, sentence


def vectors(s: Signals, who: str) -> tuple[Tensor, Tensor, Tensor | None]:
    """(query, positive, negative or None), each (B, d). Raises Refused for batches of fewer than two rows."""
    query, positive, *more = s.tensors("embedding")
    if len(query) < 2:
        raise Refused(sentence(who, "at least two rows in a batch, since the others are the negatives", f"{len(query)}",
                               "Raise train.batch"))  # fmt: skip
    return query, positive, more[0] if more else None


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarities of all pairs: (n, d), (m, d) -> (n, m)."""
    return functional.normalize(a, dim=-1) @ functional.normalize(b, dim=-1).T


def text_numbers(batch: Batch) -> Tensor | None:
    """A number for each text of a batch, (parts * B,), equal where two texts have the same tokens; None without texts."""
    ids = batch.inputs.get("input_ids")
    if ids is None:
        return None
    there = batch.inputs["attention_mask"]
    return torch.unique(torch.where(there != 0, ids, -1), dim=0, return_inverse=True)[1]


def copies(own: Tensor, other: Tensor) -> Tensor:
    """Candidates that are no negatives because a row holds the same text: (k, B), (m, B) numbers -> (B, m * B) of bool.

    own: the texts of each row; other: those of the candidates, one block of B for each part.
    """
    return (own[:, :, None] == other.reshape(-1)[None, None]).any(0)


def missed(scores: Tensor) -> Tensor:
    """-log of the share that row i gives to column i: (B, K) with K >= B -> (B,). Columns at -inf take no part."""
    return torch.logsumexp(scores, -1) - scores.diagonal()
