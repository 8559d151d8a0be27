"""Vectors of rows for selectors that compare them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from luthier.core.errors import DataError, sentence
from luthier.core.protocols import DataContext, Row
from luthier.data.select._text import instruction_of, response_of

Text = Literal["both", "prompt", "response"]


def text_of(row: Row, number: int, who: str, text: Text) -> str:
    """Prompt, response, or both of a row as one text; a plain text is both. Raises DataError naming the row."""
    if text == "prompt":
        return instruction_of(row, number, who)
    answer = response_of(row, number, who)
    asked = instruction_of(row, number, who) if text == "both" and (row.get("messages") or "prompt" in row) else ""
    return f"{asked}\n{answer}" if asked else answer


def vectors_of(rows: Sequence[Row], ctx: DataContext, who: str, text: Text = "both") -> Tensor:
    """One finite vector per row by the recipe's embedder, (n, d), in float32 or wider.

    Raises DataError where there is no embedder, a row has no such text, or the embedder gives something else.
    """
    if ctx.embed is None:
        raise DataError(sentence(who, "an embedder of texts", "none", "Set `embedder:` in the recipe"))
    vectors = ctx.embed([text_of(row, i + 1, who, text) for i, row in enumerate(rows)])
    if vectors.ndim != 2 or len(vectors) != len(rows) or not bool(torch.isfinite(vectors).all()):
        required, came = f"one finite vector for each of {len(rows)} rows", f"{tuple(vectors.shape)}"
        raise DataError(sentence(who, required, came, "Check the embedder"))
    kept = vectors.dtype in (torch.float32, torch.float64)
    return vectors.detach().to("cpu", vectors.dtype if kept else torch.float32)
