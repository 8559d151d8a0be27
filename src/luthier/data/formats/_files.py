"""Bytes to records: which files a source means, and what stands in each of them, with its place.

Nothing here knows what a prompt is. A record that cannot be read keeps its place and says why; only a file that is
unreadable as a whole (wrong encoding, broken archive, no header) raises.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from luthier.core.errors import DataError, nearest, sentence
from luthier.core.hub import hub
from luthier.data.formats._bounds import bound, check_parquet, too_much

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test", "validation": "validation",
          "valid": "validation", "val": "validation", "dev": "validation", "eval": "validation",
          "evaluation": "validation"}  # fmt: skip
META = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
TEXT_UNITS = ("paragraphs", "lines", "document")
HEAD = 1 << 22
DEPTH = 64


class Record(NamedTuple):
    """One record of a file: where it stands, its value (a mapping, or plain text), or why it is unreadable."""

    where: str
    value: Any = None
    fault: str = ""


class Broken(NamedTuple):
    """Stands in a parsed value where the text is not valid JSON in a way that Python's parser lets pass."""

    reason: str


def kind_of(path: Path) -> str | None:
    """The file's suffix without `.gz`, if it is one that can be read."""
    name = path.name.lower().removesuffix(".gz")
    return next((s for s in SUFFIXES if name.endswith(s)), None)


def _raw(path: Path, head: bool) -> tuple[bytes, bool]:
    """(bytes, whether they are all of the file); `head` reads whole lines from the first few megabytes only."""
    try:
        with gzip.open(path) if path.name.lower().endswith(".gz") else path.open("rb") as handle:
            packed = path.name.lower().endswith(".gz")
            raw = handle.read(HEAD + 1 if head else bound(path) + 1 if packed else -1)
            if packed and len(raw) > bound(path):
                raise too_much(path, "more")
    except (gzip.BadGzipFile, EOFError, zlib.error) as fault:
        raise DataError(
            sentence(str(path), "a whole gzip file", f"{fault}", "Compress or download it again")
        ) from fault
    except OSError as fault:
        raise DataError(
            sentence(str(path), "a readable file", fault.strerror or str(fault), "Check the path and its permissions")
        ) from fault
    if not raw.strip():
        raise DataError(
            sentence(str(path), "at least one row", "an empty file", "Check that it was written completely")
        )
    if head and len(raw) > HEAD:
        return raw[: raw.rfind(b"\n", 0, HEAD) + 1] or raw, False
    return raw, True


def decode(raw: bytes, name: str) -> str:
    """UTF-8 text, with or without a byte order mark. Raises DataError naming the offset and a likely encoding."""
    head = raw[:400]
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or head.count(0) > len(head) // 4:
        raise DataError(
            sentence(name, "UTF-8 text", "bytes that look like UTF-16", f"Convert it: iconv -f utf-16 -t utf-8 {name}")
        )
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as fault:
        at = fault.start + len(raw) - len(fault.object)
        line = raw.count(b"\n", 0, at) + 1
        try:
            raw.decode("cp1252")
            guess = "cp1252"
        except UnicodeDecodeError:
            guess = "latin-1"
        came = f"byte 0x{raw[at]:02x} at offset {at} (line {line})"
        raise DataError(
            sentence(name, "UTF-8 text", came, f"It may be {guess}: iconv -f {guess} -t utf-8 {name}")
        ) from None


def parse(text: str) -> Any:
    """JSON with duplicate keys and NaN marked as Broken inside the value. Raises ValueError for anything else amiss."""

    def unique(pairs: list[tuple[str, Any]]) -> Any:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        seen: set[str] = set()
        twice = next(k for k, _ in pairs if k in seen or seen.add(k))  # type: ignore[func-returns-value]
        return Broken(f"key {twice!r} stands twice in one object")

    try:
        return json.loads(
            text, object_pairs_hook=unique, parse_constant=lambda name: Broken(f"{name} is not a JSON value")
        )
    except RecursionError:
        raise ValueError("nested too deeply") from None


def broken(value: Any) -> str:
    """Why a parsed value is no plain JSON: the first Broken in it, or nesting beyond DEPTH; else an empty string."""
    level = [value]
    for _ in range(DEPTH):
        inner: list[Any] = []
        for item in level:
            if isinstance(item, Broken):
                return item.reason
            inner.extend(item.values() if isinstance(item, dict) else item if isinstance(item, list) else ())
        if not inner:
            return ""
        level = inner
    return "nested too deeply"


def _item(where: str, value: Any) -> Record:
    if reason := broken(value):
        return Record(where, fault=reason)
    if isinstance(value, (dict, str)):
        return Record(where, value)
    return Record(where, fault=f"holds a {type(value).__name__}, not an object")


def _json_lines(text: str, name: str) -> Iterator[Record]:
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{name} line {number}"
        try:
            yield _item(where, parse(line))
        except ValueError as fault:
            what = f"{fault.msg}, column {fault.colno}" if isinstance(fault, json.JSONDecodeError) else str(fault)
            yield Record(where, fault=f"broken JSON: {what}")


def _is_one_list(text: str) -> bool:
    """Whether the text is one JSON list instead of a value per line."""
    body = text.strip()
    if not body.startswith("["):
        return False
    first, rest, _ = body.partition("\n")
    try:
        parse(first)
    except ValueError:
        return True
    return not rest


def _json(text: str, name: str, split: str | None) -> Iterator[Record]:
    """A list of objects, an object of columns, an object that wraps one list or holds splits, or lines of objects."""
    try:
        value = parse(text)
    except json.JSONDecodeError as fault:
        if "\n" in text.strip() and text.lstrip().startswith("{") and fault.msg == "Extra data":
            yield from _json_lines(text, name)
            return
        raise DataError(
            sentence(
                name, "valid JSON", f"{fault.msg} on line {fault.lineno}, column {fault.colno}", "Repair that place"
            )
        ) from None
    except ValueError as fault:
        raise DataError(sentence(name, "valid JSON", str(fault), "Repair it")) from None
    if isinstance(value, dict):
        value = _unwrap(value, name, split)
    if not isinstance(value, list):
        raise DataError(sentence(name, "a list of objects", f"a {type(value).__name__}", "Write one object per row"))
    for number, item in enumerate(value, 1):
        yield _item(f"{name} item {number}", item)


def _unwrap(value: dict[str, Any], name: str, split: str | None) -> list[Any]:
    lists = {k: v for k, v in value.items() if isinstance(v, list)}
    of_rows = {k: v for k, v in lists.items() if v and all(isinstance(x, (dict, Broken)) for x in v)}
    splits = {SPLITS[k.lower()]: v for k, v in of_rows.items() if k.lower() in SPLITS}
    if splits and len(splits) == len(value):
        return splits[_choose(set(splits), split, name)]
    if len(of_rows) == 1 and len(lists) == 1 and not {"messages", "conversations", "conversation"} & set(of_rows):
        return next(iter(of_rows.values()))
    sizes = {len(v) for v in lists.values()}
    if lists and len(lists) == len(value) and len(sizes) == 1 and not of_rows:
        return [dict(zip(value, row, strict=True)) for row in zip(*value.values(), strict=True)]
    return [value]


def _choose(found: set[str], split: str | None, name: str) -> str:
    listed = ", ".join(sorted(found))
    if split is not None:
        wanted = SPLITS.get(split.lower(), split)
        if wanted not in found:
            raise DataError(
                sentence(name, f"a split named {split!r}", listed or "files without split names", "Name one of those")
            )
        return wanted
    if len(found) == 1:
        return next(iter(found))
    raise DataError(
        sentence(
            name,
            "one split, so that test rows are not trained on",
            listed,
            "Choose one with data.split, or name a file",
        )
    )


def _fields(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter, strict=True), [])
    except csv.Error:
        return []


def _check_separator(text: str, name: str, delimiter: str) -> None:
    """Raise DataError where the header is one field by this separator and several column names by another one."""
    header = text.lstrip("\r\n").partition("\n")[0].rstrip("\r")
    if len(_fields(header, delimiter)) > 1:
        return
    for other, said in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars"), (",", "commas")):
        columns = _fields(header, other)
        if other == delimiter or len(set(columns)) < 2 or not all(re.fullmatch(r"[\w .-]{1,40}", c) for c in columns):
            continue
        suffix = {"\t": ".tsv", ",": ".csv"}.get(other)
        do = f"Name the file {suffix}" if suffix else (
            f"Convert it: python -c \"import csv, sys; csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter='{other}'))\""
            f" < {name} > comma.csv")  # fmt: skip
        came = f"a header that looks separated by {said}: {', '.join(map(repr, columns[:6]))}"
        raise DataError(sentence(name, f"columns separated by {'commas' if delimiter == ',' else 'tabs'}", came, do))


def _table(text: str, name: str, delimiter: str) -> Iterator[Record]:
    csv.field_size_limit(1 << 30)
    _check_separator(text, name, delimiter)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        header = next(reader)
    except (csv.Error, StopIteration) as fault:
        raise DataError(sentence(name, "a header line", str(fault) or "none", "Write the column names first")) from None
    if twice := [h for i, h in enumerate(header) if h in header[:i]]:
        raise DataError(sentence(name, "distinct column names", f"{twice[0]!r} twice", "Rename one of them"))
    while True:
        number = reader.line_num + 1
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as fault:
            yield Record(f"{name} line {number}", fault=f"broken {'csv' if delimiter == ',' else 'tsv'}: {fault}")
            continue
        if not row:
            continue
        if len(row) != len(header):
            yield Record(f"{name} line {number}", fault=f"has {len(row)} fields, the header has {len(header)}")
        else:
            yield Record(f"{name} line {number}", dict(zip(header, row, strict=True)))


def _plain(text: str, name: str, unit: str) -> Iterator[Record]:
    if unit == "document":
        yield Record(name, text)
        return
    lines = text.replace("\r\n", "\n").split("\n")
    start, block = 1, list[str]()
    for number, line in enumerate([*lines, ""], 1):
        if unit == "lines":
            if line.strip():
                yield Record(f"{name} line {number}", line)
        elif line.strip():
            start = start if block else number
            block.append(line)
        elif block:
            yield Record(f"{name} line {start}", "\n".join(block))
            block = []


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    from pyarrow import parquet

    number = unpacked = 0
    try:
        with parquet.ParquetFile(path) as file:
            check_parquet(path, file.metadata)
            for batch in file.iter_batches(batch_size=1024):
                if (unpacked := unpacked + batch.nbytes) > bound(path):
                    raise too_much(path, f"more than that in the first {number:,} rows")
                for value in batch.to_pylist():
                    number += 1
                    yield Record(f"{path.name} row {number}", value)
    except (pyarrow.ArrowException, OSError, ValueError) as fault:
        raise DataError(
            sentence(str(path), "a readable parquet file", str(fault).split("\n")[0], "Write or download it again")
        ) from fault


def _arrow_folder(folder: Path) -> Iterator[Record]:
    """A folder written by `datasets.save_to_disk`, read without that library."""
    import pyarrow
    from pyarrow import ipc

    number = 0
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        for entry in state["_data_files"]:
            path = inside(folder / entry["filename"], folder)
            with pyarrow.memory_map(str(path)) as source, ipc.open_stream(source) as reader:
                for batch in reader:
                    for value in batch.to_pylist():
                        number += 1
                        yield Record(f"{path.name} row {number}", value)
    except (OSError, ValueError, KeyError, TypeError, pyarrow.ArrowException) as fault:
        raise DataError(
            sentence(str(folder), "a whole folder of datasets.save_to_disk", str(fault).split("\n")[0], "Save it again")
        ) from fault


def inside(path: Path, folder: Path) -> Path:
    """`path`, if it does not lead out of `folder` through a link or `..`. Raises DataError otherwise."""
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(
            sentence(
                str(path),
                f"a file inside {folder}",
                f"a link to {path.resolve()}",
                "Copy the file, or name it directly",
            )
        )
    return path


def split_of(path: Path) -> str | None:
    """The split that a file name speaks of: train, test or validation.

    >>> split_of(Path("train-00000-of-00002.parquet")), split_of(Path("dev/a.jsonl")), split_of(Path("rows.csv"))
    ('train', 'validation', None)
    """
    words = [w for part in path.parts for w in re.split(r"[^a-z]+", part.lower().split(".")[0])]
    return next((SPLITS[w] for w in words if w in SPLITS), None)


def files_in(folder: Path, split: str | None) -> list[Path]:
    """All data files of a folder, sorted; of one split where names tell splits. Raises DataError if there are none."""
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and kind_of(p) and p.name not in META
             and not any(part.startswith(".") for part in p.relative_to(folder).parts)]  # fmt: skip
    if not found:
        raise DataError(sentence(str(folder), f"data files ({', '.join(SUFFIXES)})", "none", "Name another folder"))
    named = {p: split_of(p.relative_to(folder)) for p in found}
    splits = {s for s in named.values() if s}
    if split is not None or len(splits) > 1:
        chosen = _choose(splits, split, str(folder))
        found = [p for p in found if named[p] == chosen]
    return [inside(p, folder) for p in found]


def records(path: Path, *, split: str | None, unit: str, head: bool, shown: str = "") -> tuple[Iterator[Record], bool]:
    """(records of one file, whether the whole file will be read)."""
    name, kind = shown or path.name, kind_of(path)
    if kind is None:
        came = f"{path.suffix or 'no suffix'!r}"
        raise DataError(
            sentence(str(path), f"one of {', '.join(SUFFIXES)} (also .gz)", came, "Convert or rename the file")
        )
    if kind == ".parquet":
        return _parquet(path), True
    raw, whole = _raw(path, head and kind not in (".json",))
    text = decode(raw, name)
    if kind == ".json" or (kind in (".jsonl", ".ndjson") and _is_one_list(text)):
        return _json(text, name, split), whole
    makers: Mapping[str, Callable[[], Iterator[Record]]] = {
        ".csv": lambda: _table(text, name, ","), ".tsv": lambda: _table(text, name, "\t"),
        ".txt": lambda: _plain(text, name, unit),
    }  # fmt: skip
    return makers.get(kind, lambda: _json_lines(text, name))(), whole


def from_folder(folder: Path, *, split: str | None, unit: str, head: bool) -> tuple[Iterator[Record], bool]:
    """Records of all files of a folder, or of a folder written by `datasets.save_to_disk`."""
    if (folder / "dataset_dict.json").is_file():
        parts = {
            SPLITS.get(p.name.lower(), p.name): p for p in sorted(folder.iterdir()) if (p / "state.json").is_file()
        }
        return _arrow_folder(inside(parts[_choose(set(parts), split, str(folder))], folder)), True
    if (folder / "state.json").is_file():
        return _arrow_folder(folder), True
    files = files_in(folder, split)

    def chain() -> Iterator[Record]:
        for path in files:
            yield from records(path, split=split, unit=unit, head=head, shown=str(path.relative_to(folder)))[0]

    return chain(), not head


def from_hub(name: str, split: str | None) -> Iterator[Record]:
    """Records of a data set of the hub, `owner/name` or `owner/name:config`. Raises DataError when it cannot be had."""
    import datasets

    owned, _, config = name.partition(":")
    why = ""
    try:
        with hub(owned) as why:
            loaded = datasets.load_dataset(owned, config or None, split=split or "train")
    except Exception as fault:  # the hub client raises its own many kinds
        first = str(fault).strip().split("\n")[0][:200]
        answer = f"{why}, with none downloaded before" if why else f"the hub answered {type(fault).__name__}: {first}"
        came = f"no such path here, and {answer}"
        do = "Check the name and the network, or download the files and name their folder"
        raise DataError(sentence(f"data {name!r}", "a file, a folder or a reachable hub name", came, do)) from fault
    return (Record(f"{name} row {i}", dict(value)) for i, value in enumerate(loaded, 1))


def missing(path: Path) -> DataError:
    """The error for a path that does not exist, with the nearest names beside it."""
    beside = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = nearest(path.name, beside)
    hint = (
        f"Did you mean {' or '.join(near)}"
        if near
        else f"{'This folder' if path.parent == Path() else path.parent} holds {', '.join(sorted(beside)[:8]) or 'nothing'}"
    )
    return DataError(sentence(f"data {str(path)!r}", "an existing file or folder", "none", hint))


def looks_like_hub(source: str) -> bool:
    """Whether a source that is no path can be a hub name: `owner/name`, no file suffix, no path syntax.

    >>> looks_like_hub("openai/gsm8k:main"), looks_like_hub("./rows.jsonl"), looks_like_hub("data/rows.jsonl")
    (True, False, False)
    """
    return bool(re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+(:[\w.-]+)?", source)) and kind_of(Path(source)) is None
