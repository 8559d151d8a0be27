"""Where rows come from: files, hubs, or the lab's worlds; how they are split; what measures read of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from luthier.core.component import Component
from luthier.core.config import name_and_parameters
from luthier.core.errors import ConfigError, DataError, Refused, counted, sentence, unknown
from luthier.core.registry import find
from luthier.core.streams import numpy_stream
from luthier.recipes.recipe import Data
from luthier.recipes.sources import Source, counts_of, pass_sentence, sources_of

Row = Mapping[str, Any]
WORLD = "lab:language"


@dataclass
class Rows:
    """Rows with their kind, the sentence that says how they were read, and their fingerprint.

    sources, ends: where they come from several, these, and the number of the row behind the last one of each, as read.
    """

    rows: list[Row]
    kind: str
    statement: str
    fingerprint: str
    path: str
    notes: list[str] = field(default_factory=list)
    loaded: Any = None
    places: list[int] | None = None
    sources: tuple[Source, ...] = ()
    ends: tuple[int, ...] = ()

    def where(self, row: int) -> str:
        """The place of a row in its file, for messages; rows may have been held out or selected since reading."""
        at = row if self.places is None else self.places[row]
        return self.loaded.where(at) if self.loaded is not None else f"row {at + 1}"

    @property
    def weighted(self) -> bool:
        """Whether its sources have weights."""
        return any(s.weight is not None for s in self.sources)

    def origin(self, row: int) -> int:
        """The number of the source that a row comes from; 0 where there is one."""
        return bisect_right(self.ends, row if self.places is None else self.places[row]) if self.ends else 0

    def keep(self, index: Sequence[int]) -> None:
        """Keep only these rows, in this order."""
        before = self.places or list(range(len(self.rows)))
        self.rows, self.places = [self.rows[i] for i in index], [before[i] for i in index]

    def become(self, rows: Sequence[Row], source: Sequence[int], kind: str) -> None:
        """Other rows in place of these, each made of the row with the number in `source`."""
        before = self.places or list(range(len(self.rows)))
        self.rows, self.places, self.kind = list(rows), [before[i] for i in source], kind


@dataclass
class Splits:
    """Training, test and old rows; verify and truth come from a world that knows the answers."""

    train: Rows
    test: list[Row]
    old: list[Row]
    verify: Callable[[Row, str], float] | None = None
    truth: Callable[[Row], Mapping[str, float] | None] | None = None


def advice(wanted: str, rows: Rows) -> str:
    """What to do when an objective needs data of another kind."""
    from luthier.data.formats import suggest

    if rows.loaded is not None:
        return suggest(wanted, rows.loaded)
    return "Use lab:language/preferences for pairs" if wanted == "preference" else "Choose another source of the world"


MAKES = {"pairs": "preference", "targets": "text"}  # what builders make, by their group in the data room


def kind_after(rows: Rows, steps: Sequence[Any] | None) -> str:
    """Kind of the data after these steps, where builders make rows of another one. Nothing is imported.

    Raises Refused for a builder that cannot read what it would get.
    """
    kind = rows.kind
    for i, spec in enumerate(steps or ()):
        name = spec.id if isinstance(spec, Component) else name_and_parameters(spec, f"data.steps[{i}]")[0]
        entry = find(name, "data")
        made = MAKES.get(entry.id.split(".")[1])
        if made is None:
            continue
        if kind not in entry.card.needs.batch:
            wanted = " or ".join(entry.card.needs.batch)
            raise Refused(sentence(f"data.steps[{i}] ({entry.short})", f"{wanted} data", f"{kind} data in {rows.path}",
                                   "Give rows with `prompt`, `responses` and `scores`, or leave the step out"))  # fmt: skip
        kind = made
    return kind


def is_world(source: str) -> bool:
    """Whether a source names a lab world instead of files."""
    return source == WORLD or source.startswith(WORLD + "/")


def world_rows(source: str, split: str, n: int, seed: int, noise: float = 0.0) -> Rows:
    """Rows of the language world: `lab:language/skill+skill`, or `lab:language/preferences`.

    Raises ConfigError for a skill that the world does not have.
    """
    from luthier.lab.language import World

    world = World()
    names = source.removeprefix(WORLD).strip("/").split("+")
    if names == ["preferences"]:
        rows: list[Row] = list(world.preferences(n, split, seed))
        kind = "preference"
    else:
        rows, kind = [], "text"
        share = -(-n // len(names))
        for name in names:
            if name not in world.skills:
                raise ConfigError(f"data {source!r}: {unknown('skill', name, [*world.skills, 'preferences'])}")
            made = world.noisy(name, split, share, seed, noise) if noise else world.rows(name, split, share, seed)
            rows.extend(made)
        rows = rows[:n]
    told = f"{counted(len(rows), 'row')} of {source}, split {split!r}" + (
        f", {noise:.0%} of them with wrong answers" if noise else ""
    )
    return Rows(rows, kind, told, f"{source}@{world.version}:{split}:{n}:{seed}:{noise}", source)


def file_rows(source: str, data: Data) -> Rows:
    """Rows of a file, folder or hub name, recognised by the formats of the data room."""
    from luthier.data.formats import convert, load

    loaded = load(source, format=data.format, fields=data.fields, split=data.split, on_bad=data.on_bad)
    if data.kind is not None and data.kind != loaded.kind:
        loaded = convert(loaded, data.kind)
    return Rows(list(loaded.rows), loaded.kind, loaded.statement, loaded.fingerprint, str(source), loaded=loaded)


def training_rows(data: Data) -> Rows:
    """All rows of `data.train`, of one source or of several of one kind. Raises with the source's name."""
    if isinstance(data.train, str):
        return file_rows(data.train, data)
    from luthier.data.formats import join

    sources, read = sources_of(data.train), list[Rows]()
    for i, one in enumerate(sources):
        own = replace(
            data, format=one.format or data.format, fields=one.fields or data.fields, split=one.split or data.split
        )
        try:
            rows = file_rows(one.path, own)
        except ConfigError as fault:
            raise ConfigError(f"data.train[{i}] ({one.path}): {f}" for f in fault.faults) from fault
        if one.rows and len(rows.rows) > one.rows:
            rows.loaded = replace(rows.loaded, rows=rows.loaded.rows[: one.rows], statement=f"{rows.statement} The first "
                                  f"{one.rows} of them are used (data.train[{i}].rows).")  # fmt: skip
        read.append(rows)
    loaded = join([r.loaded for r in read])
    ends = [sum(len(r.loaded.rows) for r in read[: i + 1]) for i in range(len(read))]
    return Rows(list(loaded.rows), loaded.kind, loaded.statement, loaded.fingerprint, loaded.path, loaded=loaded,
                sources=sources, ends=tuple(ends))  # fmt: skip


def passes(data: Data, train: Rows) -> list[str]:
    """A sentence on what a pass holds of weighted sources, as far as reading tells: data.steps and lengths may change it."""
    if not train.weighted:
        return []
    owners = [train.origin(i) for i in range(len(train.rows))]
    sizes = [owners.count(i) for i in range(len(train.sources))]
    return [pass_sentence(train.sources, sizes, counts_of(train.sources, sizes, data.mix))]


def load_splits(data: Data, seed: int) -> Splits:
    """All rows that a recipe asks for. The seed of the data never depends on the arm."""
    if isinstance(data.train, str) and is_world(data.train):
        from luthier.lab.language import World

        world = World()
        train = world_rows(data.train, "train", data.rows or 512, seed, data.noise)
        test = world_rows(data.test or data.train, data.judge_on, data.test_rows or 100, 0).rows
        old = [r for s in listed(data.old) for r in _source(s, data, seed).rows]

        def verify(row: Row, text: str) -> float:
            return (
                float(world.judge(dict(row), text)["correct"])
                if "skill" in row
                else float(text.strip() == row["response"].strip())
            )

        return Splits(train, test, old, verify, lambda row: world.truth(dict(row)) if "skill" in row else None)
    train = training_rows(data)
    if data.rows and len(train.rows) > data.rows:
        train.notes.append(f"the first {data.rows} of {len(train.rows)} rows are used (data.rows)")
        train.rows = train.rows[: data.rows]
    if data.test is not None:
        test = file_rows(data.test, data).rows
    else:
        test, each = _held_out(train, data.holdout)
        train.notes.append(f"no test data given: {counted(len(test), 'row')} held out of training (data.holdout){each}")
    if data.judge_on == "stop":
        test, each = _held_out(train, data.holdout)
        train.notes.append(f"measured on {len(test)} more rows held out of training (data.judge_on: stop){each}")
    if data.test_rows and len(test) > data.test_rows:
        even = [i * len(test) // data.test_rows for i in range(data.test_rows)]  # so that no source is left out
        test = [test[i] for i in even] if train.sources else test[: data.test_rows]
    old = [r for s in listed(data.old) for r in _source(s, data, seed).rows]
    return Splits(train, list(test), old)


def retained(data: Data, seed: int) -> Rows | None:
    """The rows of `data.retain`, in equal parts of its sources; None where it names none.

    Raises DataError for rows that are no text, and for files that are measured as `data.old` too.
    """
    sources = listed(data.retain)
    if not sources:
        return None
    if both := [s for s in sources if s in listed(data.old) and not is_world(s)]:
        raise DataError(sentence("data.retain", "rows that are not measured", f"{both[0]}, which data.old names too",
                                 "Split the file in two"))  # fmt: skip
    each = -(-data.retain_rows // len(sources))
    found = [world_rows(s, "train", each, seed) if is_world(s) else _cut(file_rows(s, data), each) for s in sources]
    if kinds := {r.kind for r in found} - {"text"}:
        raise DataError(
            sentence("data.retain", "rows of text", f"{kinds.pop()} data", "Name rows with answers to keep")
        )
    rows = [row for one in found for row in one.rows]
    told = "; ".join(r.statement for r in found)
    return Rows(rows, "text", told, "+".join(r.fingerprint for r in found), " + ".join(sources))


def _source(source: str, data: Data, seed: int) -> Rows:
    n = data.test_rows or 100
    return world_rows(source, data.judge_on, n, 0) if is_world(source) else _cut(file_rows(source, data), n)


def _cut(rows: Rows, n: int) -> Rows:
    rows.rows = rows.rows[:n]
    return rows


def listed(old: str | Sequence[str] | None) -> list[str]:
    """One source or several as a list."""
    return [] if old is None else [old] if isinstance(old, str) else list(old)


def _held_out(train: Rows, share: float) -> tuple[list[Row], str]:
    """(rows taken out of training, how many of each source); of several sources the same share of each."""
    if not train.sources:
        kept, out = holdout(len(train.rows), share)
    else:
        total = len(holdout(len(train.rows), share)[1])
        groups = [[i for i in range(len(train.rows)) if train.origin(i) == at] for at in range(len(train.sources))]
        each = _apportioned(total, [len(group) for group in groups])
        out = sorted(group[i] for group, n in zip(groups, each, strict=True) for i in holdout(len(group), n)[1])
        kept = sorted(set(range(len(train.rows))) - set(out))
    test, owners = [train.rows[i] for i in out], [train.origin(i) for i in out]
    told = ", ".join(f"{owners.count(i)} of {s.path}" for i, s in enumerate(train.sources))
    train.keep(kept)
    return test, f": {told}" if told else ""


def _apportioned(total: int, sizes: Sequence[int]) -> list[int]:
    """`total` in proportion to sizes, by largest remainders; some of every size is left."""
    exact = [total * n / max(sum(sizes), 1) for n in sizes]
    out = [min(int(x), max(n - 1, 0)) for x, n in zip(exact, sizes, strict=True)]
    for i in sorted(range(len(sizes)), key=lambda i: out[i] - exact[i]):
        out[i] += sum(out) < total and out[i] + 1 < sizes[i]
    return out


def holdout(rows: int, share: float) -> tuple[list[int], list[int]]:
    """(kept, held out) row numbers: a share of rows (below 1) or a number, drawn with a fixed stream."""
    n = round(share * rows) if share < 1 else int(share)
    if n >= rows:
        raise DataError(sentence("data.holdout", f"fewer than all {rows} rows", str(n), "Lower it or give data.test"))
    out = set(numpy_stream(0, "data.holdout").permutation(rows)[:n].tolist())
    return [i for i in range(rows) if i not in out], sorted(out)


def question(row: Row) -> tuple[Any, str]:
    """(prompt, response) of a test row: the last assistant turn is the response, all before it the prompt."""
    if row.get("messages"):
        messages = list(row["messages"])
        for at in range(len(messages) - 1, -1, -1):
            if messages[at].get("role") == "assistant":
                return messages[:at], str(messages[at].get("content") or "")
        return messages, ""
    if "chosen" in row:
        chosen = row["chosen"]
        return row.get("prompt", ""), chosen if isinstance(chosen, str) else str(chosen[-1]["content"])
    if "text" in row and "prompt" not in row:
        return "", str(row["text"])
    response = row.get("response", row.get("answer", ""))
    return row.get("prompt", ""), str(response)


def measured(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Test rows as measures read them: every row has `prompt` and `response`, and keeps its other columns."""
    out = []
    for row in rows:
        prompt, response = question(row)
        extra: dict[str, Any] = {}
        if isinstance(row.get("paraphrase"), str) and isinstance(prompt, list):
            extra["paraphrase"] = [*prompt[:-1], {"role": "user", "content": row["paraphrase"]}]
        out.append({**row, "prompt": prompt, "response": response, **extra})
    return out
