"""Rows of a batch in groups that belong together: samples of one prompt, one after another."""

from __future__ import annotations

from torch import Tensor

from luthier.core.errors import Refused, sentence


def grouped(x: Tensor, group: int | None, who: str) -> Tensor:
    """Rows (B, ...) as (groups, members, d), all numbers of a row in one axis; one group if None.

    Raises Refused when the groups do not come out even.
    """
    size = len(x) if group is None else group
    if size < 1 or len(x) % size:
        raise Refused(
            sentence(who, f"a batch of whole groups of {size}", f"{len(x)} rows", "Change `group` or the batch")
        )
    return x.reshape(len(x) // size, size, -1)
