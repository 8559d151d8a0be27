"""Rows to token ids and loss masks.

What is trained: with a chat template, what the model must write after the generation prompt: the content of the
assistant's turns and the end token behind each; never a header. Without a template: the response and the end token. A
prompt is always tokenised as it is when the model is asked: no token crosses from prompt to response. If neither the
prompt ends nor the response begins with white space, a space is put between them; it belongs to the response.

Nothing is cut or dropped unseen: a row that is too long is an error unless `truncation` says what to do, and every row
that is cut or dropped is counted in the report with its reason.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, get_args

from luthier.core.errors import ConfigError, DataError, counted, unknown
from luthier.models._boundaries import Boundaries
from luthier.models._drafts import Bad, Draft, Maker
from luthier.models.chat import squeeze, template_text

TrainOn = Literal["assistant", "last", "completion", "all"]
Truncation = Literal["error", "drop", "right", "left", "prompt", "split"]
Row = Mapping[str, Any]
SHOWN = 5
PARTS = {"preference": ("chosen", "rejected"), "judged": ("judged", "plain"), "prompts": ("prompt",)}
UNLIMITED = 1_000_000
KINDS = ("text", "preference", "scored", "feedback", "judged", "set", "prompts")
ANSWERED = ("preference", "scored", "feedback", "judged", "set")
COLUMNS = ("weight", "advantage", "gap", "consistency")


@dataclass(frozen=True)
class Settings:
    """How rows become tokens.

    max_length: longest sequence in tokens; None takes the tokenizer's own limit. train_on: "assistant" every assistant
    turn, "last" the last one, "completion" those after the last user turn, "all" every token; rows of plain text are
    always trained whole. truncation: what to do with longer rows: "error" stop, "drop" leave the row out, "right" cut
    the end, "left" cut the beginning (the begin token stays), "prompt" cut the beginning of the prompt and keep the
    response, "split" cut plain text into several sequences. add_end: put the end token where no template does.
    template: None the tokenizer's own chat template, "none" no template, "plain" User/Assistant lines, or a Jinja file
    or text. system: system text for rows that have none. on_bad: rows that the template refuses or changes: "error" or
    "drop". blank: whether an answer may be empty, as one that a model gave may be: its end token is all that is trained.
    """

    max_length: int | None = None
    train_on: TrainOn = "assistant"
    truncation: Truncation = "error"
    add_end: bool = True
    template: str | None = None
    system: str | None = None
    on_bad: Literal["error", "drop"] = "error"
    blank: bool = False

    def __post_init__(self) -> None:
        choices = {"train_on": get_args(TrainOn), "truncation": get_args(Truncation), "on_bad": ("error", "drop")}
        faults = [
            f"data.{k}: {unknown('value', str(getattr(self, k)), v)}"
            for k, v in choices.items()
            if getattr(self, k) not in v
        ]
        if self.max_length is not None and self.max_length < 2:
            faults.append(f"data.max_length: requires at least 2 tokens; got {self.max_length}")
        if faults:
            raise ConfigError(faults)


class Encoded(NamedTuple):
    """One sequence. ids: tokens. mask: 1 where the token itself is trained (never the first). row: number of its row,
    from 0. truncated: how many tokens were cut off.
    """

    ids: tuple[int, ...]
    mask: tuple[int, ...]
    row: int
    truncated: int = 0

    @property
    def trained(self) -> int:
        """Number of trained tokens."""
        return sum(self.mask)


@dataclass(frozen=True)
class Report:
    """What encoding did. dropped: reason -> row numbers from 0. zero_rows: how many of them had no trained token."""

    rows: int
    examples: int
    tokens: int
    trained: int
    longest: int
    mean: float
    max_length: int | None
    truncated_rows: int
    truncated_tokens: int
    dropped: Mapping[str, tuple[int, ...]]
    zero_rows: int
    template: str
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The report in sentences."""
        share = 100 * self.trained / max(self.tokens, 1)
        limit = f"limit {self.max_length}" if self.max_length else "no limit"
        out = [
            f"{counted(self.rows, 'row')} gave {counted(self.examples, 'example')}: {counted(self.tokens, 'token')}, "
            f"{self.trained} of them trained ({share:.0f} %); longest {self.longest}, mean {self.mean:.0f}, {limit}.",
            f"{self.template}.",
            f"{counted(self.truncated_rows, 'row')} cut, {counted(self.truncated_tokens, 'token')} lost; "
            f"{counted(self.zero_rows, 'row')} without a trained token.",
        ]
        out += [
            f"{counted(len(rows), 'row')} dropped: {reason} (first: row {rows[0] + 1})."
            for reason, rows in self.dropped.items()
        ]
        return out + [f"{note}." for note in self.notes]


@dataclass(frozen=True)
class EncodedData:
    """All examples. parts: what stands in each example's tuple. columns: values per example (label, score, group,
    weight)."""

    kind: str
    parts: tuple[str, ...]
    examples: list[tuple[Encoded, ...]]
    report: Report
    columns: Mapping[str, list[float]] = field(default_factory=dict)

    def meta(self, rows: Sequence[Row]) -> list[Row]:
        """The source row of each example."""
        return [rows[e[0].row] for e in self.examples]


def encode(
    rows: Sequence[Row],
    kind: str,
    tokenizer: Any,
    settings: Settings | None = None,
    *,
    where: Callable[[int], str] | None = None,
) -> EncodedData:
    """Canonical rows of one kind as token sequences with loss masks.

    kind: text, preference, scored, feedback, judged, set or prompts. where: the place of a row, for messages. parts:
    ("text",); for preference ("chosen", "rejected"), whose prompt tokens are identical; for prompts ("prompt",), the
    generation prompt; for judged ("judged", "plain"), the prompt with its judgment behind it and without; for set one part
    "ANSWER.TAG" for every response behind every tag, the tag not trained, empty ones where a row has fewer responses. scored
    gives one example per response with columns score, group, and share (of the row's scores, where none is negative);
    feedback the column label. Raises DataError when a row is too long (truncation "error"), cannot be encoded, or no token
    at all is trained.
    """
    if kind not in KINDS:
        raise ConfigError(f"encode: {unknown('kind of data', kind, KINDS)}")
    settings, place = settings or Settings(), where or (lambda i: f"row {i + 1}")
    if settings.truncation == "split" and not all("text" in r for r in rows):
        raise ConfigError(
            "data.truncation: split is for rows of plain text only; use error, drop, right, left or prompt"
        )
    if settings.train_on == "all" and kind in ANSWERED:
        raise ConfigError(
            f"data.train_on: all is for text data; in {kind} data only the responses count. Use assistant."
        )
    maker, tokens, job = Maker(tokenizer, settings), Boundaries(tokenizer), _Job(settings, tokenizer)
    drafted: list[tuple[int, tuple[Draft, ...]]] = []
    bad: dict[str, list[int]] = defaultdict(list)
    for i, row in enumerate(rows):
        try:
            drafted.append((i, maker.drafts(i, row, kind)))
        except Bad as fault:
            bad[str(fault)].append(i)
    if bad and (settings.on_bad == "error" or not drafted):
        raise DataError(_bad_message(bad, len(rows), place))
    job.dropped.update({reason: list(at) for reason, at in bad.items()})
    sequences = _sequences([d for _, drafts in drafted for d in drafts], tokens, maker.eos)
    at = 0
    for i, drafts in drafted:
        job.add(i, sequences[at : at + len(drafts)], kind)
        at += len(drafts)
    return job.finish(rows, kind, maker, tokens, place)


def stops(tokenizer: Any, settings: Settings | None = None) -> tuple[int, ...]:
    """Tokens that end an answer: the one that training puts behind an answer, and the tokenizer's end token."""
    settings = settings or Settings()
    found = {tokenizer.eos_token_id} - {None}
    if template_text(tokenizer, settings.template) is not None:
        asked: list[Row] = [{"prompt": [{"role": "user", "content": "a"}], "response": "a"}]
        made = encode(
            asked, "text", tokenizer, Settings(add_end=settings.add_end, template=settings.template)
        ).examples[0][0]
        last = made.ids[max(i for i, m in enumerate(made.mask) if m)]
        found |= {last} - set(Boundaries(tokenizer).ids("a"))
    return tuple(sorted(found))


class _Sequence(NamedTuple):
    ids: list[int]
    mask: list[int]
    head: int
    prompt: int
    sure: bool


def _sequences(drafts: Sequence[Draft], tokens: Boundaries, eos: int | None) -> list[_Sequence]:
    """Ids and masks of all drafts; head: number of begin ids; prompt: tokens before the response; sure: decoding
    agreed."""
    cuts = [sorted({c for span in d.spans for c in span} | {d.prompt}) for d in drafts]
    made = tokens.cut([d.text for d in drafts], cuts, [d.prompt for d in drafts])
    bos = tokens.tokenizer.bos_token_id
    out = []
    for draft, places, (ids, marks) in zip(drafts, cuts, made, strict=True):
        token_at = dict(zip(places, marks, strict=True))
        mask = [0] * len(ids)
        for start, end in draft.spans:
            a, b = token_at[start], token_at[end]
            mask[a:b] = [1] * (b - a)
        sure = _agree(draft, token_at, ids, tokens)
        head, prompt = 0, token_at[draft.prompt]
        if draft.begin and tokens.begin and ids[: len(tokens.begin)] != list(tokens.begin):
            head = len(tokens.begin)
            ids, mask, prompt = [*tokens.begin, *ids], [0] * head + mask, prompt + head
        elif ids[:1] == [bos] and bos is not None:
            head = 1
        if draft.end and eos is not None and ids[-1:] != [eos]:
            ids, mask = [*ids, eos], [*mask, 1]
        if mask:
            mask[0] = 0
        out.append(_Sequence(ids, mask, head, prompt, sure))
    return out


def _agree(draft: Draft, token_at: Mapping[int, int], ids: list[int], tokens: Boundaries) -> bool:
    """Whether the trained tokens decode to the trained text. Raises DataError if they do not though the tokenizer is
    faithful."""
    for start, end in draft.spans:
        want = draft.text[start:end]
        got = tokens.decode(ids[token_at[start] : token_at[end]])
        if got != want and squeeze(got) != squeeze(want):
            if squeeze(tokens.decode(ids)) == squeeze(draft.text):
                raise DataError(
                    f"trained tokens decode to {got[:80]!r}, not to {want[:80]!r}; the tokenizer's offsets are wrong."
                )
            return False
    return True


class _Job:
    """Gathers examples: length policy, counting, the final report."""

    def __init__(self, settings: Settings, tokenizer: Any) -> None:
        self.settings = settings
        own = getattr(tokenizer, "model_max_length", None)
        self.limit = settings.max_length or (int(own) if own and own < UNLIMITED else None)
        self.examples: list[tuple[Encoded, ...]] = []
        self.dropped: dict[str, list[int]] = defaultdict(list)
        self.long: list[tuple[int, int]] = []
        self.zero = self.unsure = 0
        self.cut: dict[int, int] = defaultdict(int)

    def add(self, row: int, parts: Sequence[_Sequence], kind: str) -> None:
        """One row, with its parts; what is too long is treated as the settings say."""
        self.unsure += not all(p.sure for p in parts)
        longest = max(len(p.ids) for p in parts)
        made: list[tuple[Encoded, ...]] | str
        if self.limit is None or longest <= self.limit:
            made = [tuple(Encoded(tuple(p.ids), tuple(p.mask), row) for p in parts)]
        elif self.settings.truncation == "error":
            self.long.append((row, longest))
            return
        else:
            made = _shorten(row, parts, self.limit, self.settings.truncation, kind)
        if isinstance(made, str):
            self.dropped[made].append(row)
            return
        if kind != "prompts":
            kept = [e for e in made if all(p.trained for p in e)]
            if len(kept) < len(made) and not kept:
                self.zero += 1
                self.dropped["no trained token" + (" is left after cutting" if made[0][0].truncated else "")].append(
                    row
                )
                return
            made = kept
        self.cut[row] += sum(p.truncated for e in made for p in e)
        self.examples += [(p,) for e in made for p in e] if kind == "scored" else made

    def finish(
        self, rows: Sequence[Row], kind: str, maker: Maker, tokens: Boundaries, place: Callable[[int], str]
    ) -> EncodedData:
        """The data with its report. Raises DataError for long rows under "error", and when nothing is trained."""
        if self.long:
            raise DataError(_long_message(self.long, self.limit, len(rows), place))
        if not self.examples:
            raise DataError(_nothing_message(self.dropped, len(rows), place))
        sizes = [len(p.ids) for e in self.examples for p in e]
        notes = [f"in {counted(len(at), 'row')} {what}" for what, at in maker.noted.items()]
        if tokens.repaired:
            notes.append(
                f"{counted(tokens.repaired, 'sequence was', 'sequences were')} tokenised in pieces, "
                "because a token crossed from prompt to response"
            )
        if self.unsure:
            notes.append(
                f"{counted(self.unsure, 'row holds', 'rows hold')} text that the tokenizer does not keep; "
                "decoding could not confirm their masks"
            )
        if maker.chat is not None and "strftime_now" in maker.chat.template:
            notes.append("The chat template writes today's date, so tokens change with the day")
        report = Report(
            rows=len(rows), examples=len(self.examples), tokens=sum(sizes),
            trained=sum(p.trained for e in self.examples for p in e),
            longest=max(sizes), mean=sum(sizes) / len(sizes), max_length=self.limit,
            truncated_rows=sum(n > 0 for n in self.cut.values()), truncated_tokens=sum(self.cut.values()),
            dropped={k: tuple(v) for k, v in self.dropped.items()}, zero_rows=self.zero,
            template=maker.template(rows), notes=tuple(notes),
        )  # fmt: skip
        parts = PARTS.get(kind, ("text",))
        if kind == "set":
            parts = _fill(self.examples, rows)
        return EncodedData(kind, parts, self.examples, report, _columns(rows, kind, self.examples))


def _shorten(row: int, parts: Sequence[_Sequence], limit: int, way: str, kind: str) -> list[tuple[Encoded, ...]] | str:
    """The parts cut to `limit` tokens, or the reason to drop the row.

    Prompts shared by several parts are cut alike; one token stays before a response, so that its first one is trained.
    """
    if way == "drop":
        return f"longer than {limit} tokens"
    if way == "right":
        return [
            tuple(Encoded(tuple(p.ids[:limit]), tuple(p.mask[:limit]), row, max(0, len(p.ids) - limit)) for p in parts)
        ]
    if way == "split":
        p = parts[0]
        starts = range(0, len(p.ids), limit)
        blocks = [(p.ids[a : a + limit], p.mask[a : a + limit]) for a in starts]
        return [(Encoded(tuple(ids), (0, *mask[1:]), row),) for ids, mask in blocks]
    over = max(len(p.ids) for p in parts) - limit
    if kind == "text" and way == "prompt":
        room = min(p.mask.index(1) if 1 in p.mask else len(p.mask) for p in parts) - max(parts[0].head, 1)
    elif kind in ANSWERED:
        room = min(p.prompt for p in parts) - max(parts[0].head, 1)
    else:
        room = limit + over
    if over > room:
        return f"the response alone is longer than {limit} tokens"
    out = []
    for p in parts:
        ids, mask = [*p.ids[: p.head], *p.ids[p.head + over :]], [*p.mask[: p.head], *p.mask[p.head + over :]]
        out.append(Encoded(tuple(ids), (0, *mask[1:]), row, over))
    return [tuple(out)]


def _fill(examples: list[tuple[Encoded, ...]], rows: Sequence[Row]) -> tuple[str, ...]:
    """Give every example of a set the same parts, and their names; what a row lacks is one token that is not trained."""
    tags = {len(rows[e[0].row]["tags"]) for e in examples}
    if len(tags) > 1:
        raise DataError(f"set data require as many tags in every row; got {' and '.join(map(str, sorted(tags)))}.")
    most = max(map(len, examples))
    for i, e in enumerate(examples):
        examples[i] = (*e, *[Encoded(e[0].ids[:1], (0,), e[0].row)] * (most - len(e)))
    n = tags.pop()
    return tuple(f"{at // n}.{at % n}" for at in range(most))


def _columns(rows: Sequence[Row], kind: str, examples: Sequence[tuple[Encoded, ...]]) -> dict[str, list[float]]:
    """Values per example that objectives read as signals."""
    out: dict[str, list[float]] = {}
    at = [e[0].row for e in examples]
    if kind == "feedback":
        out["label"] = [float(rows[i]["label"]) for i in at]
    if kind == "scored":
        seen: Counter[int] = Counter()
        out["score"], out["group"] = [], [float(i) for i in at]
        for i in at:
            out["score"].append(float(rows[i]["scores"][seen[i]]))
            seen[i] += 1
        if all(min(rows[i]["scores"]) >= 0 < sum(rows[i]["scores"]) for i in at):
            out["share"] = [score / sum(rows[i]["scores"]) for score, i in zip(out["score"], at, strict=True)]
    for name in COLUMNS:
        values = [rows[i].get(name) for i in at]
        if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
            out[name] = [float(v) for v in values]  # type: ignore[arg-type]
    return out


def _listed(rows: Sequence[int], place: Callable[[int], str]) -> str:
    return ", ".join(place(i) for i in rows[:SHOWN]) + (", ..." if len(rows) > SHOWN else "")


def _bad_message(bad: Mapping[str, list[int]], total: int, place: Callable[[int], str]) -> str:
    count = sum(map(len, bad.values()))
    lines = [f"  {_listed(at, place)}: {reason}" for reason, at in list(bad.items())[:SHOWN]]
    more = [f"  ... and {len(bad) - SHOWN} more reasons"] if len(bad) > SHOWN else []
    head = f"encoding requires rows that the chat template can show; {count} of {total} cannot be:"
    return "\n".join([head, *lines, *more, "Or leave them out with data.on_bad: drop."])


def _long_message(long: Sequence[tuple[int, int]], limit: int | None, total: int, place: Callable[[int], str]) -> str:
    first = ", ".join(f"{place(i)} has {n}" for i, n in long[:SHOWN])
    return (
        f"encoding requires at most {limit} tokens per row (data.max_length); {len(long)} of {counted(total, 'row')} "
        f"{'is' if len(long) == 1 else 'are'} longer: {first}{', ...' if len(long) > SHOWN else ''}; "
        f"the longest has {max(n for _, n in long)}. "
        f"Raise data.max_length, or set data.truncation: prompt (keeps the response), right, left, drop, split (text)."
    )


def _nothing_message(dropped: Mapping[str, list[int]], total: int, place: Callable[[int], str]) -> str:
    reasons = (
        "; ".join(f"{counted(len(at), 'row')}: {reason} ({_listed(at, place)})" for reason, at in dropped.items())
        or "there are no rows"
    )
    return (
        f"training requires at least one trained token; none of {counted(total, 'row')} has one: {reasons}. "
        f"Check data.train_on and the rows."
    )
