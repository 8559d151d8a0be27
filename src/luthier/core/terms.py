"""Unreduced loss terms: numerator and count travel apart, so that any split of the batch gives the same gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Terms:
    """Values of one loss term, one per row or per token, never reduced.

    values: (B,) or (B, T). mask: same shape, 0/1 or weights of counting; None counts every value.
    scale: factor of the whole term in the loss (set by the algebra). The loss of a step is
    sum over terms of scale * sum(values * mask) / sum(mask), both sums over all micro-batches and ranks.
    """

    name: str
    values: Tensor
    mask: Tensor | None = None
    scale: float = 1.0

    def sums(self) -> tuple[Tensor, Tensor]:
        """(numerator, count), both scalars; the numerator carries the gradient."""
        if self.mask is None:
            return self.values.sum(), self.values.new_tensor(float(self.values.numel()))
        mask = self.mask.to(self.values.dtype)
        return (self.values.where(mask != 0, self.values.new_zeros(())) * mask).sum(), mask.sum()

    def scaled(self, by: float) -> Terms:
        """The same term with its scale multiplied by `by`."""
        return replace(self, scale=self.scale * by)


def as_terms(out: Terms | tuple[Terms, ...]) -> tuple[Terms, ...]:
    """One term or several, always as a tuple."""
    return (out,) if isinstance(out, Terms) else out
