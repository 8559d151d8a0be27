"""What measures of images ask of a subject and of the world, with the sentences for what is missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import Tensor

from luthier.core import MeasureContext, Row
from luthier.core.errors import DataError, sentence


class ImageSubject(Protocol):
    """An image model as measures see it; `runner()` is its denoiser."""

    def generate(self, rows: Sequence[Row], *, samples: int = 1, role: str = "measure") -> Tensor:
        """(n, samples, C, H, W) in [-1, 1], the same noise for every model."""
        ...

    def runner(self) -> Any:
        """The denoiser (x, t, condition) -> prediction, without gradient."""
        ...

    def tokens(self, rows: Sequence[Row]) -> dict[str, Tensor]:
        """Raw conditions of rows."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Images in [-1, 1] from what the denoiser works on."""
        ...

    def base(self) -> ImageSubject:
        """The model before training."""
        ...


def rows_of(rows: Sequence[Row], who: str) -> Sequence[Row]:
    """The rows. Raises DataError where there are none."""
    if not rows:
        raise DataError(sentence(who, "at least one test row", "none", "Give data.test, or raise data.test_rows"))
    return rows


def reader(ctx: MeasureContext, who: str) -> Callable[[Tensor], Any]:
    """The world's exact reader of images. Raises DataError where there is none."""
    read = ctx.handles.get("read")
    if read is None:
        raise DataError(
            sentence(who, "a world that reads its images exactly (lab:image)", "other data", "Leave it out")
        )
    return read


def held_out(ctx: MeasureContext, who: str) -> Tensor:
    """Test images (n, C, H, W) in the model's range. Raises DataError where only conditions are known."""
    images = ctx.handles.get("images")
    if not images:
        raise DataError(sentence(who, "test images", "conditions only", "Give data.test with images, or leave it out"))
    return images[0]
