"""Comparisons inside groups: each completion of a prompt with the others.

An objective that asks for the signal `group` gets whole groups: the feed never splits one over micro-batches, and recipes
refuse groups of one.
"""

from __future__ import annotations

from torch import Tensor


def rivals(group: Tensor) -> Tensor:
    """(B, B), True where two different completions share a prompt, from group ids (B,)."""
    same = group[:, None] == group[None, :]
    return same & ~same.new_ones(len(group)).diag()


def differences(values: Tensor) -> Tensor:
    """values_i - values_j, (B,) -> (B, B)."""
    return values[:, None] - values[None, :]


def rival_mean(values: Tensor, same: Tensor) -> Tensor:
    """Mean of values (B, B) over the rivals (B, B) of each completion, (B,); 0 for one without any.

    Where groups are of one size, the mean of these is the mean over all pairs.
    """
    mask = same.to(values.dtype)
    return (values * mask).sum(1) / mask.sum(1).clamp(min=1)


def mean_of_group(values: Tensor, group: Tensor) -> Tensor:
    """Mean over the completions of the same prompt, itself counted: values (B,), group ids (B,) -> (B,)."""
    same = (group[:, None] == group[None, :]).to(values.dtype)
    return same @ values / same.sum(1)
