"""Random vectors of pairs, and the loss of an objective on them."""

from __future__ import annotations

import torch

from luthier.core import Batch, Signals
from luthier.core.terms import as_terms

F64 = torch.float64


def vectors(parts=2, rows=5, width=8, seed=0):
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(rows, width, dtype=F64, generator=g) for _ in range(parts))


def terms(objective, embedding=(), **more):
    """Terms on these vectors; further signals by name, a tensor or one for each part."""
    names = ("query", "positive", "negative")[: len(embedding or next(iter(more.values())))]
    given = {k: v if isinstance(v, tuple) else (v,) for k, v in more.items()}
    s = Signals({**given, **({"embedding": tuple(embedding)} if embedding else {})}, names)
    return as_terms(objective(Batch("pairs", {}, names), s))


def loss(objective, embedding=(), **more):
    """What the engine makes of the terms."""
    return sum(t.scale * t.sums()[0] / t.sums()[1] for t in terms(objective, embedding, **more))
