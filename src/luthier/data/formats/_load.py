"""Load rows: find the files, recognise the format, build every row or say why not."""

from __future__ import annotations

import hashlib
import json
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

from luthier.core.errors import ConfigError, DataError, counted, unknown
from luthier.data.formats import _files
from luthier.data.formats._files import Record
from luthier.data.formats._recognise import NAMES, Plan, asked, recognise, standard
from luthier.data.formats._rows import Row, Unfit, build, text

SHOWN = 5


class Fault(NamedTuple):
    """A record that does not fit: its number (from 1, blank lines not counted), its place, and the reason."""

    row: int
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True)
class Loaded:
    """Rows in canonical form with all that was decided on the way.

    rows: canonical rows (see `_rows`). kind: what objectives ask for (text, preference, scored, feedback, judged, set, prompts,
    pairs).
    format: what was recognised. statement: that, in one sentence. path: the source as given. fields: canonical name ->
    column or "{pattern}". columns: all columns seen. faults: records left out, with place and reason (only with
    on_bad="drop"). places: where each row stands. complete: False if a limit cut the reading.
    """

    rows: list[Row]
    kind: str
    format: str
    statement: str
    path: str
    fields: Mapping[str, str]
    columns: tuple[str, ...]
    faults: tuple[Fault, ...] = ()
    places: tuple[str, ...] = field(default=(), repr=False)
    complete: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the canonical rows: the same rows give the same digest from any kind of file."""
        digest = hashlib.sha256(self.kind.encode())
        for row in self.rows:
            digest.update(json.dumps(row, sort_keys=True, ensure_ascii=True, default=str).encode())
            digest.update(b"\n")
        return digest.hexdigest()

    @property
    def kinds(self) -> tuple[str, ...]:
        """All kinds that `convert` can make of these rows, the own kind first."""
        from luthier.data.formats._convert import reachable

        return (self.kind, *reachable(self))

    def where(self, row: int) -> str:
        """The place of row number `row` (from 0), for messages."""
        return self.places[row] if row < len(self.places) else f"row {row + 1}"

    def __len__(self) -> int:
        return len(self.rows)


def load(
    source: str | Path,
    *,
    format: str | None = None,
    fields: Mapping[str, str] | None = None,
    split: str | None = None,
    on_bad: Literal["error", "drop"] = "error",
    limit: int | None = None,
) -> Loaded:
    """Read rows from a file, a folder or a hub name.

    format: one of messages, sharegpt, prompt/response, alpaca, text (text:paragraphs, text:lines, text:document),
    preference, scored, feedback, judged, set, prompts, query/positive (only when asked for); None recognises it.
    fields: canonical name -> column, or a pattern such as "{premise} {claim}".
    split: train, test, ... of a folder, a hub name or a JSON file of splits. on_bad: "error" stops at
    records that do not fit, "drop" leaves them out and counts them. limit: read at most so many records.
    Raises DataError naming file, place and reason; ConfigError for unknown names of formats or fields.
    """
    if on_bad not in ("error", "drop"):
        raise ConfigError(f"data.on_bad: {unknown('value', str(on_bad), ('error', 'drop'))}")
    fmt, unit = standard(format) if format else (None, None)
    mapped = _checked(fields or {})
    found, whole, is_text = _open(str(source), split, unit, limit is not None)
    if unit and not is_text:
        raise ConfigError(f"data.format: text:{unit} is for .txt files; {source} is none. Write format: text.")
    name = str(source)
    taken = list(islice(found, limit + 1)) if limit is not None else list(found)
    if limit is not None and len(taken) > limit:
        taken, whole = taken[:limit], False
    if not taken:
        raise DataError(f"{name} requires at least one row; got none. Check that it was written completely.")
    records, faults = _objects(taken, mapped, name)
    plan = _plan(records, fmt, mapped, name, faults)
    rows, places, more = _rows(records, plan, fmt is None)
    bad = tuple(sorted([*faults, *more]))
    if bad and (on_bad == "error" or not rows):
        raise DataError(_faults_message(name, plan, bad, len(taken), none_left=not rows))
    columns = tuple(dict.fromkeys(str(k) for _, _, r in records for k in r))
    sentence = _statement(name, plan, mapped, rows, bad, unit if unit else ("paragraphs" if is_text else None), whole)
    return Loaded(
        rows,
        plan.kind,
        plan.format,
        sentence,
        name,
        {k: mapped.get(k, c) for k, c in plan.columns.items()},
        columns,
        bad,
        places,
        whole,
    )


def peek(source: str | Path, *, rows: int = 200, **options: Any) -> Loaded:
    """The first rows only, for checks that must be quick; faults are counted, not raised, unless no row fits."""
    return load(source, limit=rows, on_bad="drop", **options)


def _checked(fields: Mapping[str, str]) -> dict[str, str]:
    known = [*NAMES, "tools"]
    if bad := [f for f in fields if f not in known]:
        raise ConfigError(f"data.fields.{f}: {unknown('field', f, known)}" for f in bad)
    if bad := [f for f, c in fields.items() if not isinstance(c, str) or not c]:
        raise ConfigError(f"data.fields.{f}: requires a column name; got {fields[f]!r}" for f in bad)
    return dict(fields)


def _open(source: str, split: str | None, unit: str | None, head: bool) -> tuple[Iterator[Record], bool, bool]:
    """(records, whether all are read, whether they are plain text)."""
    path = Path(source).expanduser()
    if path.is_dir():
        found, whole = _files.from_folder(path, split=split, unit=unit or "paragraphs", head=head)
        return found, whole, unit is not None and all(_files.kind_of(p) == ".txt" for p in _files.files_in(path, split))
    if path.exists():
        kind = _files.kind_of(path)
        if split is not None and kind != ".json":
            raise ConfigError(
                f"data.split: requires a folder, a hub name or a JSON file of splits; {source} is a file. Remove it."
            )
        found, whole = _files.records(path, split=split, unit=unit or "paragraphs", head=head)
        return found, whole, kind == ".txt"
    if _files.looks_like_hub(source):
        return _files.from_hub(source, split), True, False
    raise _files.missing(path)


Numbered = tuple[int, str, Mapping[str, Any]]


def _objects(taken: Iterable[Record], mapped: Mapping[str, str], name: str) -> tuple[list[Numbered], list[Fault]]:
    """Readable records as mappings, renamed as `fields` says, and the unreadable ones as faults."""
    records: list[Numbered] = []
    faults: list[Fault] = []
    for number, (where, value, fault) in enumerate(taken, 1):
        if fault:
            faults.append(Fault(number, where, fault))
        else:
            records.append((number, where, {"text": value} if isinstance(value, str) else value))
    if mapped and records:
        columns = {c for _, _, r in records for c in r}
        for canonical, pattern in mapped.items():
            if lost := [c for c in _columns_of(pattern, canonical) if c not in columns]:
                raise DataError(f"{name}, data.fields.{canonical}: {unknown('column', lost[0], columns)}")
        records, more = _renamed(records, mapped)
        faults += more
    return records, faults


def _columns_of(pattern: str, canonical: str) -> list[str]:
    if "{" not in pattern:
        return [pattern]
    try:
        parts = [(name, spec, way) for _, name, spec, way in string.Formatter().parse(pattern) if name is not None]
    except ValueError as fault:
        raise ConfigError(
            f"data.fields.{canonical}: requires a pattern such as '{{question}}'; got {pattern!r} ({fault})"
        ) from None
    if not parts or not all(name and not spec and not way for name, spec, way in parts):
        raise ConfigError(f"data.fields.{canonical}: requires plain column names in the braces; got {pattern!r}")
    return [name for name, _, _ in parts]


def _renamed(records: list[Numbered], mapped: Mapping[str, str]) -> tuple[list[Numbered], list[Fault]]:
    plain = {c: k for k, c in mapped.items() if "{" not in c}
    out: list[Numbered] = []
    faults: list[Fault] = []
    for number, where, record in records:
        kept = {c: v for c, v in record.items() if c not in plain and c not in mapped}
        moved = {f"{c}_": v for c, v in record.items() if c in mapped and c not in plain}
        made = {k: record[c] for c, k in plain.items() if c in record}
        made |= {k: record[c] for k, c in mapped.items() if c in record and k not in made}
        try:
            for canonical, pattern in mapped.items():
                if "{" in pattern:
                    made[canonical] = _fill(pattern, record)
        except Unfit as fault:
            faults.append(Fault(number, where, str(fault)))
            continue
        out.append((number, where, {**made, **kept, **moved}))
    return out, faults


def _fill(pattern: str, record: Mapping[str, Any]) -> str:
    parts = []
    for literal, name, _, _ in string.Formatter().parse(pattern):
        parts.append(literal)
        if name is not None:
            value = record.get(name)
            parts.append(str(value) if isinstance(value, (int, float)) else text(value, name, empty=True))
    return "".join(parts)


def _plan(records: list[Numbered], fmt: str | None, mapped: Mapping[str, str], name: str, faults: list[Fault]) -> Plan:
    """The format of the file: the one asked for, or the one that most records have."""
    if not records:
        raise DataError(_faults_message(name, None, tuple(faults), len(faults), none_left=True))
    columns = {str(c) for _, _, r in records for c in r}
    if fmt is not None:
        return asked(fmt, columns, name)
    votes: Counter[str] = Counter()
    plans: dict[str, Plan] = {}
    for _, _, record in records:
        only = {k: record[k] for k in mapped if k in record}
        made = (recognise(only) if only else None) or recognise(record)
        if made is not None:
            votes[made.format] += 1
            before = plans.setdefault(made.format, made)
            plans[made.format] = Plan(made.format, {**made.columns, **before.columns})
    if not votes:
        listed = ", ".join(sorted(columns)[:20]) or "none"
        raise DataError(
            f"{name} requires columns that tell what is prompt and what is response (messages, prompt + response, "
            f"instruction + output, text, chosen + rejected, ...); got {listed}. "
            f"Map them with data.fields, e.g. {{prompt: COLUMN, response: COLUMN}}."
        )
    return plans[votes.most_common(1)[0][0]]


def _rows(records: list[Numbered], plan: Plan, guessed: bool) -> tuple[list[Row], tuple[str, ...], list[Fault]]:
    rows: list[Row] = []
    places: list[str] = []
    faults: list[Fault] = []
    for number, where, record in records:
        try:
            rows.append(build(plan.format, plan.columns, record))
            places.append(where)
        except Unfit as fault:
            other = recognise(record) if guessed else None
            hint = (
                f" (it looks like {other.format}; the file is {plan.format})"
                if other and other.format != plan.format
                else ""
            )
            faults.append(Fault(number, where, f"{fault}{hint}"))
    return rows, tuple(places), faults


def _faults_message(name: str, plan: Plan | None, bad: tuple[Fault, ...], total: int, *, none_left: bool) -> str:
    listed = "\n".join(f"  {f}" for f in bad[:SHOWN])
    more = f"\n  ... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
    read = f" read as {plan.format}" if plan else ""
    do = "Repair them." if none_left else "Repair them, or leave them out with data.on_bad: drop."
    return f"{name}{read} requires every row to fit; {len(bad)} of {total} {'does' if len(bad) == 1 else 'do'} not:\n{listed}{more}\n{do}"


def _statement(
    name: str,
    plan: Plan,
    mapped: Mapping[str, str],
    rows: list[Row],
    bad: tuple[Fault, ...],
    unit: str | None,
    whole: bool,
) -> str:
    what = f"{plan.format}, split into {unit}" if unit and plan.format == "text" else plan.format
    said = plan.sentence()
    if mapped:
        said += "; mapped " + ", ".join(f"{k} = {c!r}" for k, c in mapped.items())
    shown = {k: None for row in rows for k in row}
    canonical = {
        "messages",
        "prompt",
        "response",
        "text",
        "chosen",
        "rejected",
        "responses",
        "scores",
        "label",
        "judgment",
        "tags",
        "answer",
        "query",
        "positive",
        "negative",
    }
    if plan.format == "text":
        canonical = {"text"}
    kept = [k for k in shown if k not in canonical]
    said += f"; kept beside them: {', '.join(kept[:8])}{', ...' if len(kept) > 8 else ''}" if kept else ""
    if plan.kind == "preference" and (same := sum(r["chosen"] == r["rejected"] for r in rows)):
        said += f"; {counted(same, 'pair is', 'pairs are')} equal on both sides"
    if bad:
        said += f"; {counted(len(bad), 'row')} left out, first: {bad[0]}"
    first = "" if whole else "the first "
    return f"{name}: {first}{counted(len(rows), 'row')} read as {what}: {said}."
