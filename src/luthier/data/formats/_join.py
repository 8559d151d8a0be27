"""Several sources as one set of rows of one kind; every row keeps its place, with the name of its source."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from luthier.core.errors import DataError, counted, sentence
from luthier.data.formats._load import Loaded


def join(parts: Sequence[Loaded]) -> Loaded:
    """The rows of all parts, one part after the other; their formats may differ.

    Raises DataError where they are of several kinds, naming a source of each.
    """
    first = {p.kind: p for p in reversed(parts)}
    if len(first) > 1:
        came = ", ".join(f"{p.kind} data in {p.path} ({p.format})" for p in parts if p is first[p.kind])
        raise DataError(sentence("data.train", "sources of one kind", came, "Set data.kind where all of them can serve as "
                                 "one (docs/data.md), or leave the others out"))  # fmt: skip
    formats = tuple(dict.fromkeys(p.format for p in parts))
    rows = [row for p in parts for row in p.rows]
    told = [
        f"{counted(len(rows), 'row')} of {parts[0].kind} data from {counted(len(parts), 'source')}.",
        *(p.statement for p in parts),
    ]
    if again := _repeated(parts):
        told.append(f"{counted(again, 'row')} of a source {'stands' if again == 1 else 'stand'} in one before it too.")
    return Loaded(
        rows,
        parts[0].kind,
        formats[0] if len(formats) == 1 else " and ".join(formats),
        " ".join(told),
        " + ".join(p.path for p in parts),
        parts[0].fields,
        tuple(dict.fromkeys(c for p in parts for c in p.columns)),
        tuple(f for p in parts for f in p.faults),
        tuple(_place(p.path, p.where(i)) for p in parts for i in range(len(p.rows))),
        all(p.complete for p in parts),
    )


def _place(source: str, where: str) -> str:
    """A row's place with the whole path of its source, since two sources may have files of one name."""
    name = Path(source).name
    return source + where[len(name) :] if where.startswith(f"{name} ") else f"{source}, {where}"


def _repeated(parts: Sequence[Loaded]) -> int:
    """How many rows stand in a source before their own."""
    seen, again = set[str](), 0
    for part in parts:
        own = [json.dumps(row, sort_keys=True, default=str) for row in part.rows]
        again += sum(one in seen for one in own)
        seen.update(own)
    return again
