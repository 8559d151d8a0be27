"""What every selector must hold: it chooses rows, loses none of their scores, and follows the rows rather than their
order."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from luthier.core import Choice, DataContext, Select
from luthier.core.registry import entries

WORDS = ("amber", "basil", "cedar", "delta", "ember", "flint", "grove", "hazel", "ivory", "jade", "kelp", "lemon",
         "maple", "north", "olive", "pearl")  # fmt: skip


def pool(n: int = 12) -> list[dict[str, Any]]:
    """Rows of different length, topic and score; no two agree in any of them."""
    return [{"prompt": f"{WORDS[i % 16]} {WORDS[(3 * i) % 16]} {i}", "response": "word " * (2 * i + 1) + WORDS[i % 16],
             "score": ((7 * i) % n) / n} for i in range(n)]  # fmt: skip


def embed(texts: Sequence[str]) -> Tensor:
    """A fixed vector for every text, whatever stands beside it."""

    def one(text: str) -> list[float]:
        digest = hashlib.sha256(text.encode()).digest()
        return [b / 255 for b in digest[:6]]

    return torch.tensor([one(t) for t in texts], dtype=torch.float64)


def context(seed: int = 0) -> DataContext:
    """A context with everything a selector may ask for."""
    return DataContext(seed=seed, embed=embed, count_tokens=lambda t: len(t.split()),
                       score=lambda rows: torch.tensor([float(r["score"]) for r in rows]),
                       gradients=lambda rows: embed([r["prompt"] for r in rows]) - 0.5)  # fmt: skip


def selectors() -> dict[str, Callable[[int | float], Select]]:
    """Every selector of the registry as a function of how much it keeps; those without `keep` ignore the number."""

    def maker(cls: type[Any], keeps: bool) -> Callable[[int | float], Select]:
        return lambda keep: cls(keep=keep) if keeps else cls()

    found = {k: e for k, e in entries().items() if k.startswith("data.select.")}
    return {k: maker(e.load(), any(p.name == "keep" for p in e.parameters)) for k, e in found.items()}


def check_form(choice: Choice, n: int, keep: int | None) -> None:
    """Indices ascend, are unique and in range; every row has a finite score; the reason is said."""
    index = choice.index.tolist()
    assert choice.index.dtype == torch.long
    assert index == sorted(set(index))
    assert all(0 <= i < n for i in index)
    assert keep is None or len(index) == keep
    assert choice.score.shape == (n,)
    assert bool(torch.isfinite(choice.score).all())
    assert choice.reason.strip()


def check_permutation(make: Select, rows: list[dict[str, Any]], order: Sequence[int]) -> None:
    """Permuting the rows permutes choice and scores."""
    one, other = make(rows, context()), make([rows[i] for i in order], context())
    assert {order[i] for i in other.index.tolist()} == set(one.index.tolist())
    torch.testing.assert_close(other.score, one.score[list(order)])


def check_rows_untouched(make: Select) -> None:
    """Rows are neither copied nor changed."""
    rows = pool()
    before = [dict(r) for r in rows]
    make(rows, context())
    assert rows == before
