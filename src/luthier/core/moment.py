"""Where on its noise path a denoiser is being asked: said by who runs the network, read by adaptations that depend on it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_NOW: ContextVar[Tensor | None] = ContextVar("luthier.moment", default=None)


@contextmanager
def at_moment(share: Tensor) -> Generator[None]:
    """Inside the block `moment()` is `share`, (B,): time of each row as a share of the path, 0 clean and 1 noise."""
    token = _NOW.set(share)
    try:
        yield
    finally:
        _NOW.reset(token)


def moment() -> Tensor | None:
    """The share of the path at which each row of the batch is asked, (B,); None outside denoisers."""
    return _NOW.get()
