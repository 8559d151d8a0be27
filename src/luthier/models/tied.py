"""One matrix for tokens read and tokens written: one gradient for both uses, with no second matrix beside it.

Left alone, autograd makes the gradient of the head and then a matrix of the same size for the embedding, zero but for the
rows of the batch's tokens, and adds the two: with 128,000 words that matrix is a fifth of all that small models hold. Here
both uses come from one node of the graph, which adds the rows to the head's gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class _Uses(torch.autograd.Function):
    """A weight (V, H) as (what the embedding reads, what the head multiplies by)."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> tuple[Tensor, Tensor]:
        ctx.set_materialize_grads(False)
        return weight.view_as(weight), weight.view_as(weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, rows: Tensor | None, head: Tensor | None) -> Tensor | None:  # type: ignore[override]
        if rows is None or head is None:
            return head if rows is None else rows.to_dense()
        if not rows.is_sparse:  # the model reads the weight in another way beside the embedding
            return head.add_(rows)
        return head.index_add_(0, rows._indices()[0], rows._values())


def _shares(embedding: Any, head: Any) -> bool:
    """Whether both read one plain parameter that trains, and the embedding's gradient can be rows alone."""
    return (
        isinstance(embedding, nn.Embedding)
        and not (embedding.sparse or embedding.scale_grad_by_freq or embedding.max_norm)
        and embedding._parameters.get("weight") is not None
        and embedding.weight is head.weight
        and embedding.weight.requires_grad
    )


@contextmanager
def tied_weight(model: Any) -> Iterator[Tensor]:
    """The weight (V, H) that the head multiplies by in the forward passes of this block.

    Where the embedding reads the same parameter and gradients are recorded, it is an alias of it, and its gradient, which
    the head's use must make afresh, becomes that of both uses. Differentiable once.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not torch.is_grad_enabled() or not _shares(embedding, head):
        yield head.weight
        return
    weight = embedding.weight
    read, written = _Uses.apply(weight)  # type: ignore[misc]
    embedding._parameters["weight"], embedding.sparse = read, True
    try:
        yield written
    finally:
        embedding._parameters["weight"], embedding.sparse = weight, False
