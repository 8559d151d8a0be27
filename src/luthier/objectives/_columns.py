"""Values that come with each row of the data, as objectives read them."""

from __future__ import annotations

from torch import Tensor

from luthier.core import Signals
from luthier.core.errors import Refused, sentence


def column(s: Signals, name: str, who: str, means: str, like: Tensor) -> Tensor:
    """The column (B,) in the dtype and place of `like`. Raises Refused where rows bring none, saying what it means."""
    if name not in s:
        raise Refused(sentence(who, f"the column {name!r} in every row ({means})", "rows without it",
                               "Add the number to each row, or choose a step of data.steps that writes it"))  # fmt: skip
    return s[name].to(like)
