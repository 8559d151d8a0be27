"""How much a small file may unpack to, so that a bomb is refused before it fills the memory.

Text and tables shrink 3 to 30 times; what unpacks to more than RATIO times its size, and to more than FLOOR bytes, was made to.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luthier.core.errors import DataError, sentence

RATIO = 200
FLOOR = 1 << 28


def bound(path: Path) -> int:
    """Bytes that the file may unpack to."""
    return max(FLOOR, RATIO * path.stat().st_size)


def too_much(path: Path, came: str) -> DataError:
    """The error for a file that unpacks to more."""
    return DataError(
        sentence(
            str(path), f"a file that unpacks to at most {bound(path):,} bytes", came, "Check it, or store it unpacked"
        )
    )


def check_parquet(path: Path, metadata: Any) -> None:
    """Raise DataError where a parquet file's own figures (pyarrow's metadata) say that its rows need too much.

    Repeated values take no room in such a file, so each value of each column counts as at least one byte.
    """
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    size = max(sum(g.total_byte_size for g in groups), metadata.num_rows * metadata.num_columns)
    if size > bound(path):
        raise too_much(path, f"{metadata.num_rows:,} rows of {metadata.num_columns} columns, {size:,} bytes or more")
