"""Several sources in `data.train`: what a recipe may write there, and what their weights mean. Without torch.

A weight is a share of the rows of every pass: of sources with weights 2 and 1, two rows of the first go with one of the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any

from annotated_types import Ge, Gt

from luthier.core.config import build_section, section_faults
from luthier.core.errors import ConfigError, DataError, counted, sentence


@dataclass(frozen=True, kw_only=True)
class Source:
    """One entry of a list in `data.train`; a name alone is a source with nothing but its path.

    path: a file, a folder or a hub name. weight: the share of every pass that its rows have, beside the weights of the others
    (None: each row of every source once a pass). rows: the first so many rows (0: all). format, fields, split: as in the data
    section, for this source alone.
    """

    path: str
    weight: Annotated[float, Gt(0)] | None = None
    rows: Annotated[int, Ge(0)] = 0
    format: str | None = None
    fields: dict[str, str] | None = None
    split: str | None = None


def sources_of(train: str | Sequence[Any]) -> tuple[Source, ...]:
    """The entries of `data.train`; none where it names one source. Raises ConfigError with all faults."""
    if isinstance(train, str):
        return ()
    if faults := source_faults(train):
        raise ConfigError(faults)
    return _built(train)


def _built(train: Sequence[Any]) -> tuple[Source, ...]:
    return tuple(build_section(Source, {"path": one} if isinstance(one, str) else one) for one in train)


def source_faults(train: Any) -> list[str]:
    """What is wrong with a value of `data.train`."""
    at = "data.train"
    if isinstance(train, str):
        return []
    if not isinstance(train, list | tuple):
        return [f"{at}: requires a source or a list of sources; got {train!r}. Write for example "
                f"[{{path: a.jsonl, weight: 2}}, {{path: b.jsonl, weight: 1}}]."]  # fmt: skip
    if not train:
        return [f"{at}: requires at least one source; got an empty list. Name a file, a folder or a hub name."]
    faults: list[str] = []
    for i, one in enumerate(train):
        if not isinstance(one, str | Mapping):
            known = ", ".join(f.name for f in fields(Source))
            faults.append(f"{at}[{i}]: requires a name, or a mapping of {known}; got {one!r}")
        elif isinstance(one, Mapping):
            faults += section_faults(Source, one, f"{at}[{i}]")
    return faults or _together(_built(train))


def _together(sources: Sequence[Source]) -> list[str]:
    """Faults of sources that are sound alone."""
    at, faults = "data.train", list[str]()
    if worlds := [s.path for s in sources if s.path.startswith("lab:")]:
        faults.append(f"{at}: requires files, folders or hub names in a list; got {worlds[0]}. A world mixes its own skills: "
                      "train: lab:language/SKILL+SKILL.")  # fmt: skip
    weighted = [s for s in sources if s.weight is not None]
    if weighted and len(weighted) < len(sources):
        i = next(i for i, s in enumerate(sources) if s.weight is None)
        faults.append(f"{at}: requires a weight for every source or for none; got none for {sources[i].path} ({at}[{i}]). "
                      "Give it one.")  # fmt: skip
    if weighted and len(sources) == 1:
        faults.append(
            f"{at}[0].weight: requires another source beside it; there is none, so it would do nothing. Remove it."
        )
    seen: dict[Any, int] = {}
    for i, s in enumerate(sources):
        same = (s.path, s.split, s.format, tuple(sorted((s.fields or {}).items())))
        if seen.setdefault(same, i) != i:
            faults.append(f"{at}[{i}]: requires a source that is not named before; got {s.path}, as {at}[{seen[same]}]. "
                          "Name it once, with a higher weight.")  # fmt: skip
    return faults


def list_faults(plain: Mapping[str, Any]) -> list[str]:
    """What in a recipe does not go with a list in `data.train`, or requires one."""
    data = plain.get("data")
    train = data.get("train") if isinstance(data, Mapping) else None
    if not isinstance(data, Mapping) or source_faults(train):
        return []
    sources = sources_of(train) if isinstance(train, list | tuple) else ()
    weighted = any(s.weight is not None for s in sources)
    faults: list[str] = []
    if sources and data.get("rows"):
        faults.append(f"data.rows: requires one source; data.train lists {len(sources)}. Give `rows` in each of them.")
    if "mix" in data and not weighted:
        faults.append("data.mix: requires sources with weights in data.train; there are none, so it would do nothing. "
                      "Remove it.")  # fmt: skip
    if weighted and plain.get("loop"):
        faults.append("data.train: requires sources without weights beside `loop`, which chooses among its rows itself. "
                      "Remove the weights.")  # fmt: skip
    return faults


def counts_of(sources: Sequence[Source], sizes: Sequence[int], mix: str) -> tuple[int, ...]:
    """How many rows of each source a pass has.

    The source that ends a pass gives each of its rows once: with mix "smallest" the one with the fewest rows for its weight,
    with "largest" the one with the most. Of any other the pass has that number times the ratio of their weights, rounded.
    Raises DataError for a source without rows, or with a weight so small that a pass has none of it.

    >>> counts_of([Source(path="a", weight=2), Source(path="b", weight=1)], [100, 500], "smallest")
    (100, 50)
    >>> counts_of([Source(path="a", weight=2), Source(path="b", weight=1)], [100, 500], "largest")
    (1000, 500)
    """
    if empty := [s.path for s, n in zip(sources, sizes, strict=True) if not n]:
        raise DataError(
            sentence("data.train", "at least one row of every source to train on", f"none of {empty[0]}",
                     "Lower data.holdout, change data.steps, or leave the source out"))  # fmt: skip
    weights = [float(s.weight or 0) for s in sources]
    choose = min if mix == "smallest" else max
    ends = choose(range(len(sizes)), key=lambda i: sizes[i] / weights[i])
    counts = tuple(round(sizes[ends] * w / weights[ends]) for w in weights)
    if none := [s for s, n in zip(sources, counts, strict=True) if not n]:
        raise DataError(sentence(f"data.train, {none[0].path}", "a weight with which a pass has a row of it",
                                 f"{none[0].weight:g} beside {weights[ends]:g} for the {sizes[ends]} rows of {sources[ends].path}",
                                 "Raise it, or set data.mix: largest"))  # fmt: skip
    return counts


def pass_sentence(sources: Sequence[Source], sizes: Sequence[int], counts: Sequence[int]) -> str:
    """What one pass holds of each source."""
    told = [f"{n} of the {size} rows of {s.path} ({100 * n / sum(counts):.3g} %{_times(n, size)})"
            for s, size, n in zip(sources, sizes, counts, strict=True)]  # fmt: skip
    return f"one pass has {counted(sum(counts), 'row')}: {'; '.join(told)}"


def _times(count: int, size: int) -> str:
    if count == size:
        return ", each once"
    if count < size:
        return ", the others in later passes"
    low, over = divmod(count, size)
    return f", each {low} times" if not over else f", each {low} or {low + 1} times"
