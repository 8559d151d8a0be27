"""The first rows as the model will see them: trained tokens marked, masked ones dim, control tokens visible.

Reads any object that looks like encoded data (see `Examples`); everything that data wrote is shown as text, never as
markup or terminal commands.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from luthier.core.errors import counted

if TYPE_CHECKING:
    from rich.console import Group

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Tokens(Protocol):
    """One sequence: token ids, 1 where a token is trained, its row from 0, and how many tokens were cut off."""

    @property
    def ids(self) -> Sequence[int]: ...
    @property
    def mask(self) -> Sequence[int]: ...
    @property
    def row(self) -> int: ...
    @property
    def truncated(self) -> int: ...


class Counts(Protocol):
    """What encoding counted, in sentences."""

    def lines(self) -> list[str]: ...


class Examples(Protocol):
    """Encoded data: parts, examples (a sequence per part) and the report."""

    @property
    def parts(self) -> Sequence[str]: ...
    @property
    def examples(self) -> Sequence[Sequence[Any]]: ...
    @property
    def report(self) -> Counts: ...


class Piece(NamedTuple):
    """A stretch of text of one state. control: it is a single control token."""

    text: str
    trained: bool
    control: bool


def visible(text: str) -> str:
    """Text with control characters, direction marks and half characters replaced by visible signs."""

    def sign(found: re.Match[str]) -> str:
        code = ord(found[0])
        return chr(0x2400 + code) if code < 0x20 else "\u2421" if code == 0x7F else "\ufffd"

    return HIDDEN.sub(sign, text)


def pieces(sequence: Tokens, tokenizer: Any) -> Iterator[Piece]:
    """The sequence in stretches of one state, in order; the texts joined are the decoded sequence."""
    ids, mask = list(sequence.ids), list(sequence.mask)
    control = set(tokenizer.all_special_ids) | {i for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    at, before = 0, ""
    while at < len(ids):
        end = at + 1
        special = ids[at] in control
        while not special and end < len(ids) and mask[end] == mask[at] and ids[end] not in control:
            end += 1
        whole = tokenizer.decode(ids[:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if whole.startswith(before):
            text, before = whole[len(before) :], whole
        else:
            text = tokenizer.decode(ids[at:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)
            before = whole
        yield Piece(text, bool(mask[at]), special)
        at = end


def _title(sequence: Tokens, part: str, parts: Sequence[str]) -> str:
    trained = sum(sequence.mask)
    name = f", {part}" if len(parts) > 1 or part not in ("text",) else ""
    cut = f", {counted(sequence.truncated, 'token')} cut off" if sequence.truncated else ""
    return f"row {sequence.row + 1}{name}: {counted(len(sequence.ids), 'token')}, {trained} trained{cut}"


def preview_terminal(encoded: Examples, tokenizer: Any, n: int = 3, statement: str = "") -> Group:
    """The first `n` examples for `rich.print`: trained tokens bold green and underlined, masked dim, control tokens in
    reverse."""
    from rich.console import Group
    from rich.rule import Rule
    from rich.text import Text

    blocks: list[Any] = []
    for line in [statement, *encoded.report.lines()]:
        if line:
            blocks.append(Text(visible(line)))
    legend = Text("Legend: ")
    for word, trained, control in (("trained", True, False), ("masked", False, False), ("<control>", False, True)):
        legend.append(word, _style(trained, control)).append("  ")
    blocks.append(legend)
    for example in encoded.examples[:n]:
        for part, sequence in zip(encoded.parts, example, strict=True):
            blocks.append(Rule(Text(_title(sequence, part, encoded.parts)), align="left", style="dim"))
            body = Text()
            for piece in pieces(sequence, tokenizer):
                body.append(visible(piece.text), _style(piece.trained, piece.control))
            blocks.append(body)
    return Group(*blocks)


def _style(trained: bool, control: bool) -> str:
    base = "bold green underline" if trained else "dim"
    return f"{base} reverse" if control else base


STYLE = """
:root{color-scheme:light
dark;--ink:#1d2330;--soft:#6b7280;--paper:#fff;--card:#f6f7f9;--line:#dfe3e8;--on:#d5f2dd;--onink:#0b4a24;
--mark:#8a4b00} @media
(prefers-color-scheme:dark){:root{--ink:#e7eaf0;--soft:#98a1b0;--paper:#14171c;--card:#1c2027;--line:#323945;--on:#14432a;
--onink:#c9f5d8;--mark:#f0b35e}} *{box-sizing:border-box} body{margin:0 auto;padding:1.5rem 1rem
4rem;max-width:60rem;background:var(--paper);color:var(--ink); font:16px/1.5 system-ui,sans-serif}
h1{font-size:1.4rem;margin:0 0 .75rem}h2{font-size:.95rem;margin:1.5rem 0 .4rem;font-weight:600} ul{margin:.5rem 0
1rem;padding-left:1.2rem} pre{margin:0;padding:.8rem;background:var(--card);border:1px solid
var(--line);border-radius:.5rem;white-space:pre-wrap; overflow-wrap:anywhere;font:14px/1.6
ui-monospace,monospace;color:var(--soft)} .t{background:var(--on);color:var(--onink);border-bottom:2px solid
currentColor} .c{color:var(--mark);border:1px solid var(--line);border-radius:.25rem;padding:0 .15rem;font-size:.85em}
.t.c{color:var(--onink);border-color:currentColor}
"""


def preview_html(encoded: Examples, tokenizer: Any, n: int = 10, statement: str = "", title: str = "Preview") -> str:
    """The first `n` examples as one self-contained page: no script, nothing loaded, all text escaped."""
    lines = "".join(f"<li>{_safe(line)}</li>" for line in [statement, *encoded.report.lines()] if line)
    body = []
    for example in encoded.examples[:n]:
        for part, sequence in zip(encoded.parts, example, strict=True):
            inner = "".join(_span(p) for p in pieces(sequence, tokenizer))
            body.append(f"<h2>{_safe(_title(sequence, part, encoded.parts))}</h2>\n<pre>{inner}</pre>")
    legend = '<span class="t">trained</span> masked <span class="c">control token</span>'
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f'<meta name="viewport" content="width=device-width,initial-scale=1"><title>{_safe(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{_safe(title)}</h1>\n<ul>{lines}</ul>\n<pre>{legend}</pre>\n"
        + "\n".join(body)
        + "\n</body></html>\n"
    )


def _safe(text: str) -> str:
    return html.escape(visible(text), quote=True)


def _span(piece: Piece) -> str:
    names = " ".join(name for name, on in (("t", piece.trained), ("c", piece.control)) if on)
    return f'<span class="{names}">{_safe(piece.text)}</span>' if names else _safe(piece.text)


def counts(report: Any) -> Mapping[str, int]:
    """Figures of an encoding report for tables: rows, examples, tokens, trained, truncated and zero-label rows."""
    names = ("rows", "examples", "tokens", "trained", "truncated_rows", "truncated_tokens", "zero_rows")
    return {name: int(getattr(report, name)) for name in names}
